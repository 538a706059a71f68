"""Connections that say nothing, too little or that read nothing; real sockets, short times."""

import logging
import socket
import time
from contextlib import ExitStack, closing, suppress

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import listening

from tokencredit.server.listening import FewLines

HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LARGE = 24 * 2**20


async def app(scope, receive, send):
    """Answers every request, /large with much."""
    if scope["type"] != "http":
        return
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def connected(address, content=b""):
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(content)
    return connection


def answered(connection):
    """Whether an answer of the application has come, however it was cut."""
    said = b""
    while not said.endswith(b"ok"):
        piece = connection.recv(2**16)
        if not piece:
            return False
        said += piece
    return said.startswith(b"HTTP/1.1 200")


def closed_after(connection, drip=b""):
    """Seconds until the server has closed the connection, which is sent a byte at a time."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < 20:
        try:
            if not connection.recv(2**16):
                return time.monotonic() - started
        except TimeoutError:
            if drip:
                try:
                    connection.sendall(drip)
                except OSError:
                    return time.monotonic() - started
        except OSError:
            return time.monotonic() - started
    raise AssertionError("it is open still")


@pytest.mark.parametrize(
    ("said", "drip"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nX-A: ", b"a"),
        (HEALTH + b"GET /hea", b"l"),
        (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n", b" "),
    ],
    ids=["silent", "dripped headers", "dripped second request", "dripped body nobody reads"],
)
def test_what_does_not_become_a_request_is_closed(said, drip):
    with listening(app, header_seconds=0.4) as address, closing(connected(address, said)) as sent:
        assert closed_after(sent, drip) < 15


def test_a_connection_stays_open_after_an_answer():
    with listening(app, header_seconds=0.2) as address, closing(connected(address)) as kept:
        for _ in range(2):
            kept.sendall(HEALTH)
            assert answered(kept)
            time.sleep(0.5)


def test_quiet_connections_make_room():
    with listening(app, most=3) as address, ExitStack() as stack:
        quiet = [stack.enter_context(closing(connected(address))) for _ in range(8)]
        with closing(connected(address, HEALTH)) as other:
            assert answered(other)
        assert closed_after(quiet[0]) < 15


def whole_length(connection, most=float("inf")):
    """Bytes that come, the headers among them, until the connection is closed or there are more."""
    received = 0
    with suppress(ConnectionError):
        while received <= most and (piece := connection.recv(2**20)):
            received += len(piece)
    return received


def test_an_answer_that_nobody_reads_is_dropped():
    request = HEALTH.replace(b"/health", b"/large")
    bounded = listening(app, answer_seconds=0.3)
    with bounded as address, closing(connected(address, request)) as slow:
        time.sleep(2.0)
        assert whole_length(slow) < LARGE
    with listening(app) as address, closing(connected(address, request)) as reader:
        assert whole_length(reader, LARGE) > LARGE


def test_answers_that_wait_for_readers_are_bounded_together():
    request = HEALTH.replace(b"/health", b"/large")
    with listening(app, unread_bytes=LARGE * 5 // 4) as address, ExitStack() as stack:
        slow = [stack.enter_context(closing(connected(address, request))) for _ in range(3)]
        time.sleep(1.0)
        with closing(connected(address, HEALTH)) as other:
            assert answered(other)
        whole = [whole_length(each, LARGE) > LARGE for each in slow]
    assert whole.count(True) == 1


def test_few_lines_of_a_kind_are_written():
    few = FewLines(lines=2, seconds=0.2)

    def written(message, *values):
        record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, message, values, None)
        return record.getMessage() if few.filter(record) else None

    said = [written("limit exceeded by %d", n) for n in range(5)]
    assert said == ["limit exceeded by 0", "limit exceeded by 1", None, None, None]
    assert written("another") == "another"
    time.sleep(0.25)
    assert written("limit exceeded by %d", 9) == "limit exceeded by 9 (and 3 like it before)"
