"""One question to a server and its answer, over HTTP, with a limit on time and size.

Nothing is followed and nothing is kept: a redirect is an answer like any other, and the headers of
a question reach the host that was named and no other.
"""

import io
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from socket import socket
from typing import Any
from urllib.parse import urlsplit

from tokencredit.errors import ConfigError, ServerError

_PIECE = 2**16
_MOST_BYTES = 2**28
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_address(name: str) -> bool:
    """Whether this names a server and not a folder or a Hub id.

    >>> is_address("https://rewards.example:9000"), is_address("my/reward")
    (True, False)
    """
    return "://" in name


def token_in(variable: str, *, setting: str) -> str:
    """The bearer token that an environment variable holds; it is never printed.

    Args:
        variable: its name.
        setting: that gave the name, for the message.

    Raises:
        ConfigError: the variable is not set or empty.
    """
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(
            f"{setting} names {variable!r}, which is not set or empty; expected the name of an "
            "environment variable that holds the token, not the token itself"
        )
    return token


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        headers: with names in lower case.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def checked_address(address: str) -> str:
    """An address of a server, checked, without a slash at its end.

    Raises:
        ConfigError: it is not `http://host` or `https://host` with a port or path at most.
    """
    expected = "expected http://host:port or https://host:port, with a path at most"
    try:
        parts = urlsplit(address)
        usable = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        usable = False
    if not usable or not address.isascii() or not address.isprintable() or " " in address:
        # Not said back whole: what stands before an @ may be a secret.
        raise ConfigError(
            f"{address.rpartition('@')[2][:80]!a} is no address of a reward server; {expected}"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"the address of the reward server at {parts.hostname!r} holds a user, a query or a "
            f"fragment; {expected}: a token comes from an environment variable"
        )
    return address.rstrip("/")


def exchanged(
    address: str, method: str, path: str, headers: Mapping[str, str], body: bytes, *, timeout: float
) -> Answer:
    """Ask once, on a connection of its own.

    Args:
        address: as `checked_address` returns it.
        method: of HTTP.
        path: after the address.
        headers: to send.
        body: to send; empty for none.
        timeout: seconds for all of it: connecting, sending, and the whole of the answer with its
            headers, however slowly they come.

    Raises:
        OSError, HTTPException: no whole answer came in time.
        ServerError: it is larger than any answer should be.
    """
    parts = urlsplit(address)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    end = time.monotonic() + timeout
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.connect()
        # It reads and writes as a socket does, and that is all that is asked of it.
        connection.sock = _InTime(connection.sock, end)
        # A server that refuses a body may have said why before it hung up.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, parts.path + path, body or None, dict(headers))
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, _whole_body(response))
    finally:
        connection.close()


@dataclass(frozen=True)
class _InTime:
    """A socket whose every wait ends at the same moment; its own timeout begins anew each time."""

    kept: socket
    end: float

    def wait_no_longer(self) -> None:
        """Set what is left of the time."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.kept.settimeout(left)

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        for start in range(0, len(data), _PIECE):
            self.wait_no_longer()
            self.kept.sendall(data[start : start + _PIECE])

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002
        """For reading."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Once nothing reads from it any more."""
        self.kept.close()


class _Reader(io.RawIOBase):
    """What comes from a socket, in time."""

    def __init__(self, source: _InTime) -> None:
        self._source = source
        self._raw = source.kept.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._source.wait_no_longer()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _whole_body(response: HTTPResponse) -> bytes:
    body = bytearray()
    while not response.isclosed() and response.length != 0:
        piece = response.read1(_PIECE)
        if not piece:
            break
        body += piece
        if len(body) > _MOST_BYTES:
            raise ServerError(
                f"the answer of the reward server is larger than {_MOST_BYTES} bytes; expected "
                "scores: look at what listens there, or send fewer texts at a time"
            )
    if response.length:
        raise IncompleteRead(b"", response.length)
    return bytes(body)


def retry_after(answer: Answer) -> float:
    """Seconds that an answer asks to wait, a number or a date; 0 where it asks for nothing.

    >>> retry_after(Answer(429, {"retry-after": "7"}, b""))
    7.0
    """
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    left = date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)
    return max(0.0, left.total_seconds())


def failure_in_words(error: Exception) -> str:
    """Why no whole answer came."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case IncompleteRead():
            return "the answer broke off"
        case ConnectionRefusedError():
            return "the connection was refused"
        case ConnectionError():
            return f"the connection broke ({type(error).__name__})"
    return f"no connection ({getattr(error, 'strerror', None) or type(error).__name__})"
