import math
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tokencredit.errors import NumericError, VerdictError
from tokencredit.server.batching import (
    Batcher,
    QueueClosedError,
    QueueFullError,
    batch_with_the_oldest,
)
from tokencredit.server.rows import RowScores, TokenRow


def row(length: int) -> TokenRow:
    return TokenRow([0], [1] * (length - 1), [], [], [], ())


class Scorer:
    """Scores a row by its length; waits at the gate, if there is one; some lengths fail."""

    def __init__(self, *, gated: bool = False, failing: dict[int, Exception] | None = None):
        self.batches: list[list[int]] = []
        self.failing = failing or {}
        self.begun, self.gate = threading.Event(), threading.Event()
        if not gated:
            self.gate.set()

    def __call__(self, rows):
        lengths = [each.length for each in rows]
        self.batches.append(lengths)
        self.begun.set()
        assert self.gate.wait(10)
        for length in lengths:
            if length in self.failing:
                raise self.failing[length]
        return [RowScores(float(length), {}) for length in lengths]


@pytest.fixture
def batcher():
    made = []

    def make(scorer, **settings):
        defaults = {"max_batch_tokens": 1000, "max_wait": 0.0, "queue_size": 100}
        made.append((scorer, Batcher(scorer, **{**defaults, **settings})))
        return made[-1][1]

    yield make
    for scorer, each in made:
        scorer.gate.set()
        each.close()


def submit(batcher, *lengths):
    batcher.reserve(len(lengths))
    return batcher.submit([row(length) for length in lengths])


def scores(future):
    return [each.sequence_score for each in future.result(10)]


def behind_a_gate(batcher, scorer):
    """One row in the scorer's hands, so that what comes now waits."""
    first = submit(batcher, 1)
    assert scorer.begun.wait(10)
    return first


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "taken"),
    [
        ([10], 5, [0]),
        ([10, 10, 10, 10], 30, [0, 1, 2]),
        ([100, 300, 150, 90, 201], 10_000, [0, 2, 3]),
        ([10, 64, 30], 10_000, [0, 1, 2]),
        ([10, 65, 30], 10_000, [0, 2]),
        ([200, 300, 150, 210], 630, [0, 2, 3]),
        ([300, 10, 200, 10], 10_000, [0, 2]),
    ],
)
def test_the_oldest_goes_with_those_nearest_in_length(lengths, max_tokens, taken):
    assert batch_with_the_oldest(lengths, max_tokens=max_tokens) == taken


def test_rows_come_back_in_their_order_and_requests_take_turns(batcher):
    scorer = Scorer(gated=True)
    queue = batcher(scorer, max_batch_tokens=300)
    first = behind_a_gate(queue, scorer)
    one, other = submit(queue, 100, 900, 120), submit(queue, 110, 1000)
    scorer.gate.set()
    assert [scores(future) for future in (first, one, other)] == [[1], [100, 900, 120], [110, 1000]]
    assert scorer.batches == [[1], [100, 110], [900], [1000], [120]]


def test_what_comes_while_the_first_waits_goes_with_it(batcher):
    scorer = Scorer()
    queue = batcher(scorer, max_wait=0.5)
    futures = [submit(queue, 10) for _ in range(3)]
    assert [scores(future) for future in futures] == [[10]] * 3
    assert scorer.batches == [[10, 10, 10]]


def test_a_full_batch_does_not_wait(batcher):
    queue = batcher(Scorer(), max_wait=60.0, max_batch_tokens=20)
    assert scores(submit(queue, 10, 10)) == [10, 10]


def test_a_full_queue_refuses_and_takes_again(batcher):
    scorer = Scorer(gated=True)
    queue = batcher(scorer, queue_size=3)
    behind_a_gate(queue, scorer)
    waiting = submit(queue, 2, 2)
    queue.reserve(1)
    assert (queue.waiting, queue.accepts) == (3, False)
    with pytest.raises(QueueFullError) as refused:
        queue.reserve(1)
    assert 1 <= refused.value.retry_after <= 60
    queue.release(1)
    assert queue.accepts
    scorer.gate.set()
    assert scores(waiting) == [2, 2]
    assert scores(submit(queue, 3, 3, 3)) == [3, 3, 3]


def test_a_row_that_fails_fails_alone_and_is_named(batcher):
    scorer = Scorer(gated=True, failing={13: NumericError("NaN")})
    queue = batcher(scorer)
    behind_a_gate(queue, scorer)
    good, bad, also = submit(queue, 10, 11), submit(queue, 12, 13, 13), submit(queue, 14)
    scorer.gate.set()
    assert scores(good) == [10, 11]
    assert scores(also) == [14]
    with pytest.raises(NumericError, match=r"^text 1: NaN$"):
        bad.result(10)
    assert scores(submit(queue, 5)) == [5]


def test_a_verdict_that_cannot_be_read_is_what_its_row_says(batcher):
    """It fails neither its request nor the row of another client beside it."""
    scorer = Scorer(gated=True, failing={12: VerdictError("it says nothing")})
    queue = batcher(scorer)
    behind_a_gate(queue, scorer)
    futures = [submit(queue, 10, 12, 11), submit(queue, 13)]
    scorer.gate.set()
    one, other = (future.result(10) for future in futures)
    assert [row.unreadable for row in one] == [None, "it says nothing", None]
    assert [row.sequence_score for row in (one[0], one[2], *other)] == [10, 11, 13]
    assert math.isnan(one[1].sequence_score)


def test_an_error_that_nobody_foresaw_stops_nothing(batcher):
    queue = batcher(Scorer(failing={7: KeyError("secret")}))
    with pytest.raises(KeyError):
        submit(queue, 7).result(10)
    assert queue.alive
    assert scores(submit(queue, 8)) == [8]


def test_too_few_scores_are_an_error(batcher):
    scorer = Scorer()
    queue = batcher(scorer)
    queue._scores = lambda rows: scorer(rows)[1:]
    with pytest.raises(ValueError, match="zip"):
        submit(queue, 4).result(10)


def test_a_request_that_gave_up_is_not_scored(batcher):
    scorer = Scorer(gated=True)
    queue = batcher(scorer)
    first = behind_a_gate(queue, scorer)
    given_up, waiting = submit(queue, 40, 40), submit(queue, 41)
    assert given_up.cancel()
    scorer.gate.set()
    assert scores(first) == [1]
    assert scores(waiting) == [41]
    assert scorer.batches == [[1], [41]]


def test_closing_finishes_what_was_accepted(batcher):
    scorer = Scorer(gated=True)
    queue = batcher(scorer, max_batch_tokens=10)
    behind_a_gate(queue, scorer)
    accepted = [submit(queue, 10), submit(queue, 10)]
    queue.reserve(1)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while queue.accepts:
        time.sleep(0.001)
    with pytest.raises(QueueClosedError):
        queue.reserve(1)
    accepted.append(queue.submit([row(10)]))
    scorer.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert [scores(future) for future in accepted] == [[10]] * 3
    assert not queue.alive


def test_batches_are_observed(batcher):
    seen = []
    scorer = Scorer(gated=True)
    queue = batcher(scorer, observe=lambda *numbers: seen.append(numbers))
    behind_a_gate(queue, scorer)
    future = submit(queue, 20, 30)
    scorer.gate.set()
    assert scores(future) == [20, 30]
    queue.close()
    assert [numbers[:3] for numbers in seen] == [(1, 1, 1), (2, 50, 60)]
    assert all(numbers[3] >= 0 for numbers in seen)
