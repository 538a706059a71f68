import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tokencredit.server import turns as module
from tokencredit.server.fairness import FairClock, Share
from tokencredit.server.turns import TookTooLongError, Turns


@pytest.fixture
def turns():
    made = Turns(seconds=0.3, name="test")
    yield made
    assert made.close(10.0)


def held(turns):
    """Work that keeps the thread until the gate opens."""
    gate, begun = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert gate.wait(10)
        yield

    turns.submit(work(), seconds=0.0)
    assert begun.wait(10)
    return gate


def pieces(name, number, log, seconds=0.0):
    for index in range(number):
        log.append(f"{name}{index}")
        time.sleep(seconds)
        yield
    return name


def test_small_work_passes_large_work_that_came_before():
    turns, log = Turns(seconds=60.0, name="test"), []
    gate = held(turns)
    large = turns.submit(pieces("large", 9, log, 0.01), seconds=0.5)
    small = [turns.submit(pieces(f"s{n}-", 1, log), seconds=0.001) for n in range(3)]
    gate.set()
    assert large.result(10) == "large"
    assert [future.result(10) for future in small] == ["s0-", "s1-", "s2-"]
    assert log[:3] == ["s0-0", "s1-0", "s2-0"]
    assert turns.close(10.0)


def test_large_work_is_not_kept_waiting_for_ever():
    """However many small ones come, it has its share of the clock."""
    clock, large, order = FairClock(), Share(), []
    clock.begin(large)
    for _ in range(100):
        small = Share()
        clock.begin(small)
        chosen = clock.next_of([large, small], lambda share: 10.0 if share is large else 1.0)
        order.append(chosen is large)
        clock.done(chosen, 10.0 if chosen is large else 1.0, waiting=2)
    assert not order[0]
    assert 5 <= sum(order) <= 20


def test_what_nobody_waits_for_is_not_done(turns):
    gate, log = held(turns), []
    given_up, kept = (turns.submit(pieces(n, 2, log), seconds=0.0) for n in ("a", "b"))
    assert given_up.cancel()
    gate.set()
    assert kept.result(10) == "b"
    assert log == ["b0", "b1"]


def test_a_piece_that_does_not_end_is_ended(turns, monkeypatch):
    monkeypatch.setattr(module, "_LONG_PIECE", 0.05)
    seen = []

    def endless():
        while True:
            try:
                seen.append(turns.lags)
                time.sleep(0.01)
            except Exception:  # as a template's caller may have it
                seen.append("caught")
        yield

    with pytest.raises(TookTooLongError):
        turns.submit(endless(), seconds=0.0).result(20)
    assert True in seen
    assert "caught" not in seen
    assert turns.submit(pieces("next", 1, []), seconds=0.0).result(10) == "next"
    assert not turns.lags


def test_errors_go_to_their_own_request(turns):
    def failing():
        yield
        raise KeyError("x")

    bad, good = turns.submit(failing(), seconds=0.0), turns.submit(pieces("a", 1, []), seconds=0.0)
    with pytest.raises(KeyError):
        bad.result(10)
    assert good.result(10) == "a"


def test_closing_does_not_wait_for_what_holds_the_thread():
    turns = Turns(seconds=60.0, name="test")
    gate = held(turns)
    assert not turns.close(0.1)
    gate.set()
    assert turns.close(10.0)
