"""The client against a server of a few lines that fails in every way. No test waits."""

import json
import logging
import random
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    ServerError,
    TokenCreditError,
)
from tokencredit.server import asking
from tokencredit.server.client import RewardServer, about, parted, post_scores, scored

TOKEN = "open-sesame-42"
TEXTS = [{"prompt": "It is", "response": " good"}, {"prompt": "", "response": " bad"}]
ROW = {
    "sequence_score": 0.5,
    "token_ids": [3, 4],
    "tokens": [" go", "od"],
    "spans": [[0, 3], [3, 4]],
    "token_scores": {"uniform": [0.25, 0.25]},
    "prefix_scores": [0.1, 0.2, 0.3],
    "attention": [0.5, 0.25],
}
ABOUT = {
    "credit": ["uniform"],
    "details": [],
    "attention_layer": -1,
    "template": "auto",
    "renders_chats": False,
    "vocabulary": "0",
    "fingerprint": "1",
    "max_texts": 2,
    "max_request_tokens": 100_000,
    "max_body_bytes": 10_000,
}


def row(**changes):
    return {key: value for key, value in {**ROW, **changes}.items() if value is not ...}


def ok(*rows):
    return 200, {}, json.dumps({"fingerprint": "1", "scores": list(rows or (ROW, ROW))}).encode()


def problem(status, error="QueueFull", message="as many wait", **headers):
    body = {"error": {"type": error, "message": message}}
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, json.dumps(body).encode()


class Fake:
    """Answers what its script says, in order, and the last of it for ever."""

    def __init__(self, script):
        self.script, self.asked = list(script), []

    def serve(self, port=0):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                fake.asked.append((self.path, dict(self.headers), json.loads(body or b"null")))
                step = fake.script.pop(0) if len(fake.script) > 1 else fake.script[0]
                step(self) if callable(step) else self.answer(*step)

            do_GET = do_POST

            def answer(self, status, headers, body, *, announced=None):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(announced or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving(*script):
    fake = Fake(script).serve()
    try:
        yield fake
    finally:
        fake.stop()


class Waits:
    """A clock that only waiting moves."""

    def __init__(self, then=lambda: None):
        self.seconds, self.then = [], then

    def sleep(self, seconds):
        self.seconds.append(seconds)
        self.then()

    def clock(self):
        return sum(self.seconds)


def asked_of(fake, waits=None, **settings):
    waits = waits or Waits()
    settings = {"token": TOKEN, "timeout": 20.0, "retries": 3} | settings
    address = settings.pop("address", None) or fake.address
    server = RewardServer(address, **settings, sleep=waits.sleep, clock=waits.clock)
    return scored(server, TEXTS, credit=["uniform"], details=["prefix-scores", "attention"])


def test_scores_come_as_they_are_sent():
    with serving(ok()) as fake:
        first, second = post_scores(fake.address + "/", TEXTS, ["uniform"], token=TOKEN)
    assert first == second
    assert first.sequence_score == 0.5
    assert first.spans == [(0, 3), (3, 4)]
    assert first.token_scores == {"uniform": [0.25, 0.25]}
    assert first.prefix_scores is first.attention is None
    path, headers, body = fake.asked[0]
    assert (path, headers["Authorization"]) == ("/score", f"Bearer {TOKEN}")
    assert body == {"texts": TEXTS, "credit": ["uniform"]}


def test_nothing_asked_needs_no_server():
    assert post_scores("http://127.0.0.1:1", []) == []


def test_details_are_asked_for_and_read():
    with serving(ok()) as fake:
        (first, _) = asked_of(fake)
    assert (first.prefix_scores, first.attention) == ([0.1, 0.2, 0.3], [0.5, 0.25])
    assert fake.asked[0][2]["details"] == ["prefix-scores", "attention"]


def test_a_path_before_the_servers_own():
    with serving(ok()) as fake:
        asked_of(fake, address=f"{fake.address}/rewards/")
    assert fake.asked[0][0] == "/rewards/score"


def test_down_and_then_up():
    fake = Fake([ok()]).serve()
    fake.stop()
    port = fake.server.server_address[1]

    def come_back():
        if len(waits.seconds) == 2:
            fake.serve(port)

    waits = Waits(come_back)
    assert len(asked_of(fake, waits)) == 2
    fake.stop()
    assert len(waits.seconds) == 2
    assert all(0 <= wait <= limit for wait, limit in zip(waits.seconds, (1.0, 2.0), strict=True))


def test_down_for_ever_is_told_how_often_how_long_and_why(caplog):
    fake = Fake([ok()]).serve()
    fake.stop()
    waits = Waits()
    with caplog.at_level(logging.WARNING), pytest.raises(ServerError) as caught:
        asked_of(fake, waits, retries=12, backoff=4.0, longest_wait=8.0)
    message = str(caught.value)
    assert fake.address in message
    assert f"13 times in {sum(waits.seconds):.0f} s" in message
    assert "refused" in message
    assert isinstance(caught.value, ConnectionError)
    assert len(waits.seconds) == 12
    assert max(waits.seconds) <= 8.0
    assert len({round(wait, 6) for wait in waits.seconds}) > 6  # full jitter, not one number
    assert len(caplog.records) == 12
    assert TOKEN not in message + caplog.text


def test_the_seeded_generator_of_a_run_draws_no_wait():
    waits = Waits(), Waits()
    for each in waits:
        random.seed(0)
        with serving(problem(503)) as fake, pytest.raises(ServerError):
            asked_of(fake, each)
    assert waits[0].seconds != waits[1].seconds


def slow(handler):
    handler.server.released.wait(20)
    handler.answer(*ok())


def dripping(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        if handler.server.released.wait(0.02):
            return


def dripped_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(1000):
        handler.wfile.write(b"a")
        if handler.server.released.wait(0.02):
            return


def endless_continue(handler):
    while not handler.server.released.is_set():
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def cut_off(handler):
    handler.answer(200, {}, ok()[2][:-20], announced=len(ok()[2]))


def cut_off_in_pieces(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ff\r\n{")


def hung_up(handler):
    handler.connection.close()


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (slow, "no answer in time"),
        (dripping, "no answer in time"),
        (dripped_headers, "no answer in time"),
        (endless_continue, "no answer in time"),
        (cut_off, "broke off"),
        (cut_off_in_pieces, "broke off"),
        (hung_up, "the connection broke"),
        (problem(429), "429, as many wait"),
        (problem(502, "x", "bad gateway"), "502, bad gateway"),
        (problem(503), "503"),
        ((504, {}, b""), "504, without a message"),
    ],
)
def test_what_may_pass_is_asked_again(failure, cause):
    for script, answered in (((failure, ok()), True), ((failure,), False)):
        with serving(*script) as fake:
            fake.server.released = threading.Event()
            waits = Waits()
            slowly = failure in (slow, dripping, dripped_headers, endless_continue)
            settings = {"timeout": 0.15 if slowly else 20.0, "retries": 1}
            if answered:
                assert len(asked_of(fake, waits, **settings)) == 2
            else:
                with pytest.raises(ServerError, match=cause):
                    asked_of(fake, waits, **settings)
            fake.server.released.set()
        assert len(fake.asked) == 2
        assert len(waits.seconds) == 1


def test_an_answer_in_pieces_is_whole():
    def pieces(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        body = ok()[2]
        for part in (body[:7], body[7:]):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    with serving(pieces) as fake:
        assert len(asked_of(fake)) == 2


IN_AN_HOUR, AN_HOUR_AGO = (
    format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True) for hours in (1, -1)
)
WISHES = {
    "seconds": ("7", 7.0, 8.0),
    "too many": ("900", 60.0, 61.0),
    "far too many": ("9" * 400, 60.0, 61.0),
    "a date": (IN_AN_HOUR, 60.0, 61.0),
    "a date that is over": (AN_HOUR_AGO, 0.0, 1.0),
    "a word": ("soon", 0.0, 1.0),
    "negative": ("-5", 0.0, 1.0),
}


@pytest.mark.parametrize(("wished", "least", "most"), WISHES.values(), ids=WISHES)
def test_a_full_server_says_when_to_come_back_within_bounds(wished, least, most):
    waits = Waits()
    with serving(problem(429, Retry_After=wished), ok()) as fake:
        asked_of(fake, waits)
    (wait,) = waits.seconds
    assert least <= wait <= most


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (problem(401, "Unauthorized", "no token"), ConfigError, "does not take the token"),
        (problem(403, "x", "no"), ConfigError, "does not take the token"),
        (problem(413, "BodyTooLarge", "more than 9 bytes"), ServerError, "more than 9 bytes"),
        (problem(422, "RequestError", "credit names 'x'"), ServerError, "credit names 'x'"),
        (problem(422, "DataError", "text 1: too long"), DataError, "text 1: too long"),
        (problem(422, "ModelError", "no template"), ModelError, "no template"),
        (problem(500, "NumericError", "it gives NaN"), NumericError, "it gives NaN"),
        (problem(500, "InternalError", "the log says"), ServerError, "the log says"),
        (problem(404, "NotFound", "Not Found"), ServerError, "of this version"),
        ((400, {}, b"<html>\x1b[31m no"), ServerError, r"400, <html> \[31m no"),
        ((204, {}, b""), ServerError, "answered 204"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), ServerError, "is not followed"),
        ((307, {"Location": "/elsewhere"}, b""), ServerError, "is not followed"),
        ((200, {}, b"<html>log in</html>"), ServerError, "no JSON"),
        ((200, {}, b"[" * 100_000), ServerError, "no JSON"),
        ((200, {}, b"[]"), ServerError, "scores"),
        (ok(ROW), ServerError, "2 rows"),
        (ok(ROW, ROW, ROW), ServerError, "2 rows"),
        (ok(ROW, 3), ServerError, r"scores\[1\]"),
        (ok(ROW, row(sequence_score=...)), ServerError, "sequence_score"),
        (ok(ROW, row(sequence_score="1")), ServerError, "sequence_score"),
        (ok(ROW, row(sequence_score=True)), ServerError, "sequence_score"),
        (ok(ROW, row(sequence_score=float("nan"))), NumericError, r"scores\[1\].sequence_score"),
        (ok(ROW, row(sequence_score=None)), NumericError, "null"),
        (ok(ROW, row(sequence_score=1e300)), NumericError, "sequence_score"),
        (ok(ROW, row(sequence_score=10**400)), NumericError, "sequence_score"),
        (ok(ROW, row(prefix_scores=[0.0, float("inf"), 0.0])), NumericError, "prefix_scores"),
        (ok(ROW, row(attention=[0.0, -float("inf")])), NumericError, "attention"),
        (ok(ROW, row(token_scores={"uniform": [None, 1.0]})), NumericError, "token_scores"),
        (ok(ROW, row(token_scores={"uniform": [1.0]})), ServerError, "2 numbers"),
        (ok(ROW, row(token_scores={})), ServerError, "uniform"),
        (ok(ROW, row(prefix_scores=[0.0, 1.0])), ServerError, "3 numbers"),
        (ok(ROW, row(attention=...)), ServerError, "attention"),
        (ok(ROW, row(token_ids=[1.5, 2])), ServerError, "token_ids"),
        (ok(ROW, row(spans=[[0, 3]])), ServerError, "2 spans"),
        (ok(ROW, row(spans=[[0, 3], [3, 99]])), ServerError, "characters from 0 to 4"),
        (ok(ROW, row(spans=[[0, 3], [3, 2]])), ServerError, "characters from 0 to 4"),
        (ok(ROW, row(spans=[[0, 3], [True, 4]])), ServerError, "characters from 0 to 4"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(answer, error, message):
    waits = Waits()
    with serving(answer) as fake, pytest.raises(error, match=message) as caught:
        asked_of(fake, waits)
    assert type(caught.value) is error
    assert waits.seconds == []
    assert len(fake.asked) == 1


def test_what_does_not_speak_http_is_an_error_at_once():
    with (
        serving(lambda handler: handler.wfile.write(b"220 mail\r\n\r\n")) as fake,
        pytest.raises(ServerError, match="does not speak HTTP"),
    ):
        asked_of(fake)
    assert len(fake.asked) == 1


def test_an_answer_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr("tokencredit.server.exchange._MOST_BYTES", 100)
    with serving(ok()) as fake, pytest.raises(ServerError, match="larger than 100 bytes"):
        asked_of(fake)


def test_a_certificate_that_is_not_trusted(monkeypatch):
    def refused(*_, **__):
        raise ssl.SSLCertVerificationError("x")

    monkeypatch.setattr(asking, "exchanged", refused)
    with pytest.raises(ServerError, match="is not trusted"):
        asked_of(None, address="https://rewards.example")


@pytest.mark.parametrize("status", [401, 422, 500, 503, 302])
def test_the_token_is_in_no_error_and_no_log(status, caplog):
    """Also where the server says it back."""
    answer = problem(status, "x", f"Bearer {TOKEN} is not good", Location=f"/{TOKEN}")
    with serving(answer) as fake, pytest.raises(TokenCreditError) as caught:
        asked_of(fake, retries=1)
    server = RewardServer(fake.address, TOKEN)
    assert TOKEN not in str(caught.value) + caplog.text + repr(server)
    assert fake.asked[0][1]["Authorization"] == f"Bearer {TOKEN}"


def test_a_redirect_takes_the_token_nowhere():
    with serving(ok()) as other:
        redirect = (307, {"Location": other.address + "/score"}, b"")
        with serving(redirect) as fake, pytest.raises(ServerError, match="is not followed"):
            asked_of(fake)
    assert other.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "my/reward",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://[::1",
        "http://host/a b",
        "http://host\r\nX: y",
        "http://höst",
        "http://me:secret-word@host",
        "http://host/?key=secret-word",
        "http://host/#secret-word",
        "",
    ],
)
def test_an_address_is_http_and_holds_no_secret(address):
    with pytest.raises(ConfigError, match="expected http://host:port") as caught:
        RewardServer(address)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": "sésame"}, "printable ASCII"),
        ({"token": "a\r\nb"}, "printable ASCII"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"retries": -1}, "retries -1"),
        ({"backoff": -1.0}, "backoff is -1"),
        ({"longest_wait": float("inf")}, "longest_wait inf"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RewardServer("http://host", **settings)
    assert "sésame" not in str(caught.value)


def test_more_than_a_request_can_hold_goes_in_several():
    with serving((200, {}, json.dumps(ABOUT).encode()), ok(), ok(ROW)) as fake:
        server = RewardServer(fake.address)
        said = about(server)
        rows = scored(server, [*TEXTS, TEXTS[0]], about=said)
    assert [path for path, _, _ in fake.asked] == ["/about", "/score", "/score"]
    assert [body["texts"] for _, _, body in fake.asked[1:]] == [TEXTS, TEXTS[:1]]
    assert len(rows) == 3
    assert said.reads_eos is None


def test_another_model_than_at_first_is_an_error_at_once():
    other = 200, {}, json.dumps({"fingerprint": "other", "scores": [ROW, ROW]}).encode()
    waits = Waits()
    with serving((200, {}, json.dumps(ABOUT).encode()), ok(), other) as fake:
        server = RewardServer(fake.address, sleep=waits.sleep)
        said = about(server)
        assert len(scored(server, TEXTS, about=said)) == 2
        with pytest.raises(ServerError, match="answers as 'other' and was '1' at first"):
            scored(server, TEXTS, about=said)
    assert waits.seconds == []


def test_groups_are_bounded_in_tokens():
    ids = [{"prompt_ids": [1], "response_ids": [2] * 9}] * 5
    assert [len(group) for group in parted(ids, 9, 10_000, 25)] == [2, 2, 1]
    assert [len(group) for group in parted([{"response": "a" * 90}] * 3, 9, 10_000, 250)] == [2, 1]


def test_groups_fit_into_a_body_and_lose_nothing():
    texts = [{"response": "é" * n} for n in (1, 30, 3, 200, 5, 5, 5)]
    groups = list(parted(texts, most=3, most_bytes=700))
    assert [text for group in groups for text in group] == texts
    assert [len(group) for group in groups] == [3, 1, 3]
    for group in groups:
        whole = {"texts": list(group), "credit": [], "details": ["prefix-scores", "attention"]}
        assert len(json.dumps(whole)) <= 700 or len(group) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"credit": ...},
        {"details": "attention"},
        {"details": [1]},
        {"vocabulary": 3},
        {"max_texts": 0},
        {"reads_eos": "yes"},
    ],
)
def test_a_server_that_says_nonsense_of_itself(changes):
    said = {key: value for key, value in {**ABOUT, **changes}.items() if value is not ...}
    with serving((200, {}, json.dumps(said).encode())) as fake, pytest.raises(ServerError):
        about(RewardServer(fake.address))


def test_ids_come_back_as_they_were_sent():
    ids = [{"prompt_ids": [1], "response_ids": [3, 4]}]
    with serving(ok(row(spans=[]))) as fake:
        (found,) = scored(RewardServer(fake.address), ids)
        assert fake.asked[0][2] == {"ids": ids, "credit": []}
        with pytest.raises(ServerError, match="those that were sent"):
            scored(RewardServer(fake.address), [{"prompt_ids": [1], "response_ids": [3, 5]}])
    assert found.token_ids == [3, 4]


def test_no_test_waited():
    started = time.monotonic()
    with serving(problem(503)) as fake, pytest.raises(ServerError):
        asked_of(fake, retries=20)
    assert len(fake.asked) == 21
    assert time.monotonic() - started < 30
