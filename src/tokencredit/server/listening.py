"""Connections and the process: what uvicorn leaves open, bounded.

Uvicorn waits for the first line of a request and for a slow reader as long as these like, and its
limit on connections counts the silent ones. Here each has its time, and silent ones make room.
"""

import logging
import math
import os
import resource
import signal
import threading
import time
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokencredit.errors import ConfigError

_LOG = logging.getLogger("tokencredit.server")
# Descriptors that are kept for other things than connections.
_OTHER_FILES = 64
# After the time for requests that were accepted, until the process ends in any case.
_LAST_SECONDS = 5
_LINES, _LINE_SECONDS = 10, 60.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        most: connections at a time.
        header_seconds: for the headers of a request to come.
        idle_seconds: that a connection is kept after an answer.
        answer_seconds: for a client to read an answer.
        unread_bytes: of answers that wait for their readers, together.
        stop_seconds: for what was accepted, once the process is told to stop.
    """

    most: int = 512
    header_seconds: float = 20.0
    idle_seconds: int = 75
    answer_seconds: float = 60.0
    unread_bytes: int = 128 * 2**20
    stop_seconds: float = 25.0


class _Connection(H11Protocol):
    """One connection, with limits on what uvicorn's own has none for."""

    def __init__(self, limits: ConnectionLimits, **given: Any) -> None:
        super().__init__(**given)
        self.limits = limits
        self._head: TimerHandle | None = None
        self._reader: TimerHandle | None = None
        self.quiet_since = self.loop.time()

    @property
    def is_quiet(self) -> bool:
        """Whether no request is at work and no answer is being read."""
        at_work = self.cycle is not None and not self.cycle.response_complete
        return not at_work and not self.flow.write_paused and not self.transport.is_closing()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers; where there are too many, the quietest makes room."""
        super().connection_made(transport)
        self._wait_for_headers()
        there = [each for each in self.connections if isinstance(each, _Connection)]
        quiet = [each for each in there if each.is_quiet and each is not self]
        if quiet and sum(not each.transport.is_closing() for each in there) > self.limits.most:
            min(quiet, key=lambda each: each.quiet_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clocks."""
        self._stop_clocks()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Give a request that begins its time, and stop the clock once its headers are there."""
        before = self.cycle
        if self._head is None and (before is None or before.response_complete):
            self._wait_for_headers()
        super().data_received(data)
        if self.cycle is not before and not self.cycle.response_complete:
            self._headers_came()

    def on_response_complete(self) -> None:
        """What is left of a body that nobody reads has no more time than headers have."""
        before = self.cycle
        self.quiet_since = self.loop.time()
        super().on_response_complete()
        if self.cycle is not before and not self.cycle.response_complete:
            self._headers_came()
        elif before.more_body and self._head is None:
            self._wait_for_headers()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._reader = self.loop.call_later(self.limits.answer_seconds, self.transport.abort)
        unread = [
            each
            for each in self.connections
            if isinstance(each, _Connection) and each.flow.write_paused
        ]
        sizes = {each: each.transport.get_write_buffer_size() for each in unread}
        if sum(sizes.values()) > self.limits.unread_bytes:
            max(unread, key=lambda each: sizes[each]).transport.abort()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _wait_for_headers(self) -> None:
        self._head = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _headers_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_clocks(self) -> None:
        self._headers_came()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


class _Server(uvicorn.Server):
    """Says that it listens once it does and heeds signals, and ends some time after a signal."""

    def __init__(self, config: uvicorn.Config, *, last_seconds: float) -> None:
        super().__init__(config)
        self.announce: Callable[[], None] = lambda: None
        self._end = threading.Timer(last_seconds, _end_now)
        self._end.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a thread ends the process where something holds that up."""
        if not self.should_exit:
            self._end.start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets=sockets)
        if self.started and not self.should_exit:
            self.announce()


class FewLines(logging.Filter):
    """Lets a few lines of a kind through in a minute, and then says how many more there were."""

    def __init__(self, lines: int = _LINES, seconds: float = _LINE_SECONDS) -> None:
        super().__init__()
        self._lines, self._seconds = lines, seconds
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        kind, now = (record.name, str(record.msg)[:80]), time.monotonic()
        since, number = self._seen.get(kind, (now, 0))
        if now - since >= self._seconds:
            if number > self._lines:
                left_out = number - self._lines
                record.msg = f"{record.getMessage()} (and {left_out} like it before)"
                record.args = ()
            since, number = now, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[kind] = (since, number + 1)
        return number < self._lines


_FEW_LINES = FewLines()


def listen(
    app: FastAPI,
    host: str,
    port: int,
    *,
    limits: ConnectionLimits,
    announce: Callable[[str, int], None],
    access_log: bool = False,
) -> bool:
    """Answer requests until SIGINT or SIGTERM; then finish those that were accepted.

    Args:
        app: made by `reward_app`.
        host: to listen at.
        port: likewise; 0 takes a free one.
        limits: of connections.
        announce: called with address and port once it listens.
        access_log: whether each request is logged.

    Returns:
        Whether everything that was accepted is finished.

    Raises:
        ConfigError: nothing can listen there.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limits.most if files < 0 else min(limits.most, max(1, files - _OTHER_FILES))
    if most < limits.most:
        _LOG.warning("at most %d connections, since no more files may be open (ulimit -n)", most)
    bounded = replace(limits, most=most)
    settings = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(_Connection, bounded),  # type: ignore[arg-type]
        ws="none",
        log_level="info" if access_log else "warning",
        access_log=access_log,
        server_header=False,
        # Quiet connections have made room before; these all have a request at work.
        limit_concurrency=most + 1,
        # A connection that is closed while its client sends again loses the request.
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
    )
    for name in ("uvicorn.error", "asyncio", "tokencredit.server"):
        logging.getLogger(name).addFilter(_FEW_LINES)
    server = _Server(settings, last_seconds=limits.stop_seconds + _LAST_SECONDS)
    with _heeding_signals(server):
        try:
            listening = settings.bind_socket()
        except SystemExit as error:
            raise ConfigError(
                f"nothing can listen at {host}, port {port}; expected a free port of an address "
                "of this machine: choose another `port`, or 0 for any"
            ) from error
        server.announce = partial(announce, *listening.getsockname()[:2])
        server.run(sockets=[listening])
    return app.state.intake.close(0.0)


@contextmanager
def _heeding_signals(server: uvicorn.Server) -> Iterator[None]:
    """SIGINT and SIGTERM stop the server, also before it runs, and end in a normal exit.

    Uvicorn sets the handlers while it runs, and raises the signals again once it has stopped.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    kept = {number: signal.signal(number, server.handle_exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _end_now() -> None:
    _LOG.error("not everything was finished in the time that it has after a signal: ending anyway")
    os._exit(1)
