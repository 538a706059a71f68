"""One thread that does the work of many requests in turns, a piece of each at a time.

So a large request keeps no small one waiting, and tokenizers are used by one thread alone. Turns
go by the time that is taken for each request.
"""

import ctypes
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokencredit.server.fairness import FairClock, Share

Result = TypeVar("Result")

# A piece is made to take a fraction of a second.
_LONG_PIECE = 2.0


class TookTooLongError(BaseException):
    """Raised inside a piece of work that goes on beyond its time; no `except Exception` holds it.

    A template that loops is the program of the model's author, and no library call ends it.
    """


@dataclass(eq=False)
class _Task(Share):
    work: Generator[None, None, Any]
    seconds: float
    future: "Future[Any]" = field(default_factory=Future)

    def end(self, *, value: Any = None, error: BaseException | None = None) -> None:
        # Who has given up is told nothing.
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class Turns:
    """A thread for work that is cut into pieces.

    Args:
        seconds: that one piece may take; then `TookTooLongError` is raised in it.
        name: of the thread.
    """

    def __init__(self, *, seconds: float, name: str) -> None:
        self._seconds = seconds
        self._tasks: list[_Task] = []
        self._clock = FairClock()
        self._changed = threading.Condition()
        self._closing = False
        self._since: float | None = None
        self._interrupting = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._watch = threading.Thread(target=self._watched, name=f"{name}-watch", daemon=True)
        self._thread.start()
        self._watch.start()

    @property
    def lags(self) -> bool:
        """Whether the piece at work takes long, or the thread is gone."""
        since = self._since
        slow = since is not None and time.monotonic() - since > _LONG_PIECE
        return slow or not self._thread.is_alive()

    def submit(self, work: Generator[None, None, Result], *, seconds: float) -> "Future[Result]":
        """Do this, a piece up to each `yield` at a time.

        Args:
            work: its pieces.
            seconds: that one of them may take, roughly.

        Returns:
            What the generator returns or raises. Cancelled, it is not gone on with.
        """
        task = _Task(work, seconds)
        with self._changed:
            is_last = self._closing
            if not is_last:
                self._clock.begin(task)
                self._tasks.append(task)
                self._changed.notify_all()
        if is_last:
            # What was accepted before is answered: its scores are still to be written.
            while self._piece(task):
                pass
        return task.future

    def close(self, seconds: float) -> bool:
        """Finish what was submitted and stop the thread; False where that takes longer."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            started = time.monotonic()
            goes_on = self._piece(task)
            with self._changed:
                waiting = len(self._tasks)
                self._clock.done(task, time.monotonic() - started, waiting=waiting)
                if not goes_on:
                    self._tasks.remove(task)

    def _next(self) -> _Task | None:
        with self._changed:
            while not self._wanted():
                if self._closing:
                    return None
                self._changed.wait()
            return self._clock.next_of(self._tasks, lambda task: task.seconds)

    def _wanted(self) -> list[_Task]:
        """The tasks that somebody still waits for."""
        self._tasks = [task for task in self._tasks if not task.future.cancelled()]
        return self._tasks

    def _piece(self, task: _Task) -> bool:
        """Do one piece; whether there is more to do."""
        is_timed = threading.current_thread() is self._thread
        try:
            try:
                self._since = time.monotonic() if is_timed else None
                next(task.work)
            finally:
                self._since = None
                # An interruption that is on its way arrives here and not in the next piece.
                while self._interrupting:
                    time.sleep(0)
                time.sleep(0)
        except StopIteration as end:
            task.end(value=end.value)
        except BaseException as error:  # whatever it is, the other requests go on
            task.end(error=error)
        else:
            return True
        return False

    def _watched(self) -> None:
        """Interrupt each piece that takes too long, once."""
        told: float | None = None
        while self._thread.is_alive():
            time.sleep(min(0.25, self._seconds / 4))
            since = self._since
            if since is None or since == told or time.monotonic() - since <= self._seconds:
                continue
            self._interrupting = True
            if self._since == since:
                told = since
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(TookTooLongError)
                )
            self._interrupting = False
