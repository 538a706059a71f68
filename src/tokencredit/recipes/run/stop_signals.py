"""SIGTERM and SIGINT, heeded where a run can stop and lose nothing."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_HEEDED = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """The signal that asked the run to stop, and 0 before there is one."""

    number: int = 0

    def end(self) -> None:
        """End the run as programs end by this signal, once everything is written.

        Raises:
            KeyboardInterrupt: for SIGINT; the command line makes it exit status 130.
            SystemExit: for SIGTERM, with exit status 143.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)


@contextmanager
def stop_requests(what_comes: str) -> Iterator[StopRequest]:
    """Note the first SIGTERM or SIGINT instead of ending at once; a second one ends at once.

    Outside the main thread, which alone may handle signals, none is noted.

    Args:
        what_comes: is said on standard error when a signal is noted, what is done before the end.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _HEEDED}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, _frame: FrameType | None) -> None:
        request.number = number
        restore()
        # No `print`, which the signal may have interrupted.
        os.write(2, f"{signal.Signals(number).name}: {what_comes}\n".encode())

    for number in _HEEDED:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
