"""Rows that wait, and one thread that takes them in batches of like length.

Requests take turns by the tokens that are scored for each: the oldest row of the one whose turn it
is is in the batch that is taken, and with it go those nearest to it in length. So none waits for
ever, and none after all rows of another.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from tokencredit.errors import TokenCreditError, VerdictError
from tokencredit.server.fairness import FairClock, Share
from tokencredit.server.rows import RowScores, TokenRow

# Up to this length, padding costs less than another forward pass.
_SHORT = 64

# Rows, tokens, tokens with padding, seconds of one forward pass.
BatchObserver = Callable[[int, int, int, float], None]


class QueueFullError(Exception):
    """More rows wait than the queue holds; holds the seconds after which to try again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class QueueClosedError(Exception):
    """The server is stopping and accepts no more."""


@dataclass(eq=False)
class _Job(Share):
    """The rows of one request and what is known of them. Only the worker changes it."""

    rows: int
    scores: dict[int, RowScores] = field(default_factory=dict)
    future: "Future[list[RowScores]]" = field(default_factory=Future)

    def take(self, index: int, scores: RowScores) -> None:
        self.scores[index] = scores
        # A request that has given up is told nothing.
        if len(self.scores) == self.rows and self.future.set_running_or_notify_cancel():
            self.future.set_result([self.scores[index] for index in range(self.rows)])

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Waiting:
    row: TokenRow
    index: int
    job: _Job
    since: float


class Batcher:
    """A bounded queue of rows and the thread that scores them.

    Args:
        scores: of rows, in one forward pass.
        max_batch_tokens: of one forward pass, padding included.
        max_wait: seconds that a row waits for others to come.
        queue_size: rows that may wait.
        queue_tokens: tokens that may wait before no more rows are taken in.
        observe: told of every forward pass.
    """

    def __init__(
        self,
        scores: Callable[[Sequence[TokenRow]], list[RowScores]],
        *,
        max_batch_tokens: int,
        max_wait: float,
        queue_size: int,
        queue_tokens: int = 2**20,
        observe: BatchObserver = lambda *_: None,
    ) -> None:
        self._scores, self._observe = scores, observe
        self._max_batch_tokens, self._max_wait = max_batch_tokens, max_wait
        self._queue_size, self._queue_tokens = queue_size, queue_tokens
        self._waiting: list[_Waiting] = []
        self._clock = FairClock()
        self._reserved = 0
        self._closing = False
        self._seconds_per_row = 0.01
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tokencredit-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait or are about to."""
        with self._changed:
            return len(self._kept()) + self._reserved

    @property
    def accepts(self) -> bool:
        """Whether another row would be taken in."""
        with self._changed:
            room = self._room() > 0
            return room and not self._closing and self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread that scores is there."""
        return self._thread.is_alive()

    def reserve(self, rows: int) -> None:
        """Keep places in the queue while texts become rows; `submit` or `release` gives them up.

        Raises:
            QueueFullError: there are not as many places.
            QueueClosedError: the server is stopping.
        """
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise QueueClosedError
            if rows > self._room():
                raise QueueFullError(self.retry_after)
            self._reserved += rows

    @property
    def retry_after(self) -> int:
        """Seconds after which those that wait may have been scored."""
        waiting = len(self._waiting) + self._reserved
        return min(60, 1 + int(waiting * self._seconds_per_row))

    def release(self, rows: int) -> None:
        """Give up places that were reserved."""
        with self._changed:
            self._reserved -= rows
            self._changed.notify()

    def submit(self, rows: Sequence[TokenRow]) -> "Future[list[RowScores]]":
        """Queue rows for which places were reserved.

        Returns:
            Their scores in this order, or the error of the first row that failed. Cancelled, those
            that still wait are dropped.
        """
        job = _Job(len(rows))
        now = time.monotonic()
        with self._changed:
            self._reserved -= len(rows)
            self._waiting += [_Waiting(row, index, job, now) for index, row in enumerate(rows)]
            self._clock.begin(job)
            self._changed.notify()
        return job.future

    def close(self, seconds: float | None = None) -> bool:
        """Accept no more, score what was accepted, and stop the thread.

        Args:
            seconds: to wait for that; None waits for as long as it takes.

        Returns:
            Whether the thread has stopped.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _kept(self) -> list[_Waiting]:
        """The rows that wait, without those whose requests have given up."""
        self._waiting = [each for each in self._waiting if not each.job.future.done()]
        return self._waiting

    def _room(self) -> int:
        """Rows that may still come."""
        waiting = self._kept()
        if sum(each.row.length for each in waiting) >= self._queue_tokens:
            return 0
        return self._queue_size - len(waiting) - self._reserved

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[_Waiting]:
        """The next rows to score, once they are enough or have waited; none at the end."""
        with self._changed:
            while True:
                if self._kept():
                    oldest = min(each.since for each in self._waiting)
                    left = oldest + self._max_wait - time.monotonic()
                    tokens = sum(each.row.length for each in self._waiting)
                    if left <= 0 or self._closing or tokens >= self._max_batch_tokens:
                        break
                    self._changed.wait(left)
                elif self._closing and not self._reserved:
                    return []
                else:
                    self._changed.wait()
            first = self._next_turn()
            waiting = [first, *(each for each in self._waiting if each is not first)]
            lengths = [each.row.length for each in waiting]
            taken = set(batch_with_the_oldest(lengths, max_tokens=self._max_batch_tokens))
            batch = [each for index, each in enumerate(waiting) if index in taken]
            jobs = len({id(each.job) for each in waiting})
            for each in batch:
                self._clock.done(each.job, float(each.row.length), waiting=jobs)
            self._waiting = [each for i, each in enumerate(waiting) if i not in taken]
            return batch

    def _next_turn(self) -> _Waiting:
        """The oldest row of the request whose turn it is."""
        firsts: dict[_Job, _Waiting] = {}
        for each in self._waiting:
            firsts.setdefault(each.job, each)
        return firsts[self._clock.next_of(firsts, lambda job: float(firsts[job].row.length))]

    def _answer(self, batch: list[_Waiting]) -> None:
        """Score a batch; where that fails, its halves, so that a bad row fails alone.

        A verdict that cannot be read is what there is to say of its row, and no failure.
        """
        started = time.monotonic()
        try:
            scored = list(zip(batch, self._scores([each.row for each in batch]), strict=True))
        except Exception as error:  # whatever it is, the other requests go on
            if len(batch) > 1:
                self._answer(batch[: len(batch) // 2])
                self._answer(batch[len(batch) // 2 :])
            elif isinstance(error, VerdictError):
                batch[0].job.take(batch[0].index, RowScores(math.nan, {}, unreadable=str(error)))
            else:
                batch[0].job.fail(_of_row(error, batch[0].index))
            return
        seconds = time.monotonic() - started
        self._seconds_per_row += 0.1 * (seconds / len(batch) - self._seconds_per_row)
        lengths = [each.row.length for each in batch]
        self._observe(len(batch), sum(lengths), len(batch) * max(lengths), seconds)
        for each, row_scores in scored:
            each.job.take(each.index, row_scores)


def batch_with_the_oldest(lengths: Sequence[int], *, max_tokens: int) -> list[int]:
    """Which of the waiting rows go together: the first, and those nearest to it in length.

    Padding at most doubles a row, unless all are short.

    Args:
        lengths: of the rows, the oldest first.
        max_tokens: of the batch, padding included; a longer row goes alone.

    >>> batch_with_the_oldest([100, 900, 120, 90, 110], max_tokens=360)
    [0, 3, 4]
    """
    taken = [0]
    shortest = longest = lengths[0]
    # Sorting keeps the order of age among rows that are equally near.
    for index in sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0])):
        if (len(taken) + 1) * longest > max_tokens:
            break
        low, high = min(shortest, lengths[index]), max(longest, lengths[index])
        if high <= max(2 * low, _SHORT) and (len(taken) + 1) * high <= max_tokens:
            taken.append(index)
            shortest, longest = low, high
    return sorted(taken)


def _of_row(error: Exception, index: int) -> Exception:
    """An error that also says which text of the request it is about."""
    if isinstance(error, TokenCreditError):
        return type(error)(f"text {index}: {error}")
    return error
