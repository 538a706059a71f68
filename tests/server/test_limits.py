"""What a server does not take on, and what it asks of those who ask without a token."""

import asyncio
import copy
import json
import socket
import time
from contextlib import closing

import pytest
import torch
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import GatedModel, asked, listening, posted, served_model, tiny_app, tiny_served

from tokencredit.models.fingerprint import weights_fingerprint
from tokencredit.models.hf_vocabularies import tokenizer_fingerprint
from tokencredit.server.encoding import pieces
from tokencredit.text.reading_settings import ReadingSettings

TEXT = {"prompt": "the film", "response": " is good"}


@pytest.fixture(scope="module")
def served():
    return tiny_served()


def told(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"texts": [{}] * 60},
        {"ids": [{"prompt_ids": ["a"] * 9000, "response_ids": ["b"] * 9000}]},
        {"texts": [{"response": "a", **{str(n): n for n in range(9000)}}]},
        {"texts": [{"prompt": [{}] * 9000, "response": "a"}]},
        {"texts": [TEXT], "credit": [1] * 9000, "details": [2] * 9000},
    ],
)
def test_the_first_mistakes_are_told_and_no_millions(served, body):
    message = told(posted(tiny_app(served), "/score", body), 422)["message"]
    assert "more. Expected" not in message
    assert len(message) < 900


@pytest.mark.parametrize(
    "entry",
    [
        {"texts": [{**TEXT, "ended": "false"}]},
        {"texts": [{**TEXT, "ended": 0}]},
        {"ids": [{"prompt_ids": [True], "response_ids": [1]}]},
        {"ids": [{"prompt_ids": ["1"], "response_ids": [1]}]},
        {"ids": [{"prompt_ids": [1.0], "response_ids": [1]}]},
    ],
)
def test_nothing_is_made_into_another_type(served, entry):
    assert told(posted(tiny_app(served), "/score", entry), 422)["type"] == "RequestError"


def test_a_request_has_a_bound_in_tokens(served):
    app = tiny_app(served, max_request_tokens=40)
    ids = {"prompt_ids": [5], "response_ids": [6] * 9}
    assert posted(app, "/score", {"ids": [ids] * 4}).status_code == 200
    for body in ({"ids": [ids] * 5}, {"texts": [TEXT] * 30}):
        answer = posted(tiny_app(served, max_request_tokens=40), "/score", body)
        assert told(answer, 413)["type"] == "TooManyTokens"
    answer = posted(tiny_app(served, max_request_tokens=40), "/get_reward", {"query": ["a"] * 41})
    assert told(answer, 413)["type"] == "TooManyTokens"


def test_a_text_that_fits_no_row_is_not_cut_into_tokens(served):
    texts = [TEXT, {"response": "a" * 70_000}]
    message = told(posted(tiny_app(served), "/score", {"texts": texts}), 422)["message"]
    assert message.startswith("text 1 has 70000 characters; expected at most 65536")


def test_texts_of_unlike_length_are_encoded_apart_and_come_back_in_order(served):
    texts = [{"response": " film" * n} for n in (1, 90, 2, 40, 1)]
    rows = posted(tiny_app(served), "/score", {"texts": texts}).json()["scores"]
    assert [len(row["token_ids"]) for row in rows] == [1, 90, 2, 40, 1]
    sizes = [1] * 1000 + [15_000]
    assert [len(group) for group in pieces(sizes, 65_536)] == [1000, 1]


def test_a_mistake_names_its_place_in_the_request(served):
    texts = [{"response": " bad" * 300}, *({"response": "a"} for _ in range(5))]
    message = told(posted(tiny_app(served), "/score", {"texts": texts}), 422)["message"]
    assert message.startswith("text 0: ")


def test_tokens_that_the_model_does_not_know_are_refused(served):
    tokenizer = copy.deepcopy(served.tokenizer)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    app = tiny_app(served_model(served.model, tokenizer))
    texts = [TEXT, {"prompt": "a", "response": " b<|new|>"}]
    for path, body in (("/score", {"texts": texts}), ("/get_reward", {"query": ["a", "<|new|>"]})):
        error = told(posted(app, path, body), 422)
        assert error["type"] == "DataError"
        assert "text 1 has a token of the id 320" in error["message"]
        app = tiny_app(served_model(served.model, tokenizer))


LOOPS = "{% if 'loop' in messages[0].content %}" + (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)


def test_a_template_that_loops_is_ended_and_seen(monkeypatch):
    monkeypatch.setattr("tokencredit.server.turns._LONG_PIECE", 0.1)
    served = tiny_served(byte_level(chat_template=LOOPS + CHAT_TEMPLATE))
    app = tiny_app(served, encoding_timeout=1.0)

    async def work(client):
        body = {"texts": [{"prompt": "loop", "response": "a"}]}
        looping = asyncio.create_task(client.post("/score", json=body))
        ready = []
        while not looping.done():
            ready.append((await client.get("/ready")).status_code)
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.05)
        good = await client.post("/score", json={"texts": [TEXT]})
        return await looping, ready, good, await client.get("/ready")

    looping, ready, good, ready_again = asked(app, work)
    assert told(looping, 422)["type"] == "EncodingTimeout"
    assert 503 in ready
    assert (good.status_code, ready_again.status_code) == (200, 200)


def sent(address, content):
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(content)
    return connection


def request(body, length=None):
    head = "POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def waits_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_work_of_clients_that_have_gone_leaves_the_queue(served):
    gated = GatedModel(served)
    app = tiny_app(gated, max_wait_ms=0.0)
    batcher, body = app.state.intake.batcher, json.dumps({"texts": [TEXT] * 9}).encode()
    with listening(app) as address, closing(sent(address, request(body))):
        waits_until(gated.begun.is_set)
        others = [sent(address, request(body)) for _ in range(3)]
        waits_until(lambda: batcher.waiting >= 27)
        for each in others[1:]:
            each.close()
        waits_until(lambda: batcher.waiting <= 9)
        gated.gate.set()
        assert others[0].recv(2**16).startswith(b"HTTP/1.1 200")
        others[0].close()


def test_a_body_that_does_not_come_is_not_waited_for(served):
    with (
        listening(tiny_app(served, body_timeout=0.3)) as address,
        closing(sent(address, request(b"{", length=99))) as slow,
    ):
        assert slow.recv(2**16).startswith(b"HTTP/1.1 408")


def test_bodies_are_bounded_together(served):
    app = tiny_app(served, max_body_bytes=1000, queue_bytes=1500, body_timeout=10.0)
    body = json.dumps({"texts": [TEXT]}).encode()
    with listening(app) as address:
        kept = [sent(address, request(b" " * 900, length=1000)) for _ in range(1)]
        waits_until(lambda: app.state.intake._bytes == 900)
        kept.append(sent(address, request(b" " * 700, length=1000)))
        assert kept[1].recv(2**16).startswith(b"HTTP/1.1 429")
        for each in kept:
            each.close()
        waits_until(lambda: app.state.intake._bytes == 0)
        with closing(sent(address, request(body))) as after:
            assert after.recv(2**16).startswith(b"HTTP/1.1 200")


def test_a_small_request_passes_a_large_one(served):
    gated = GatedModel(served)
    app = tiny_app(gated, max_wait_ms=0.0, max_batch_tokens=128)
    large = {"ids": [{"prompt_ids": [5], "response_ids": [6] * 120}] * 20, "credit": []}
    done = []

    async def work(client):
        async def post(name, body):
            answer = await client.post("/score", json=body)
            done.append(name)
            return answer.status_code

        tasks = [asyncio.create_task(post("large", large))]
        while app.state.intake.batcher.waiting < 19:
            await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(post("small", {"texts": [TEXT]})))
        while app.state.intake.batcher.waiting < 20:
            await asyncio.sleep(0.01)
        gated.gate.set()
        return await asyncio.gather(*tasks)

    assert asked(app, work) == [200, 200]
    assert done == ["small", "large"]


def test_tokens_that_wait_are_bounded(served):
    gated = GatedModel(served)
    app = tiny_app(gated, max_wait_ms=0.0, max_batch_tokens=128, queue_tokens=200)
    body = {"ids": [{"prompt_ids": [5], "response_ids": [6] * 99}] * 4, "credit": []}

    async def work(client):
        first = asyncio.create_task(client.post("/score", json=body))
        while not gated.begun.is_set():
            await asyncio.sleep(0.01)
        second = await client.post("/score", json=body)
        gated.gate.set()
        return await first, second

    first, second = asked(app, work)
    assert first.status_code == 200
    assert told(second, 429)["type"] == "QueueFull"


VISITS = {
    "by name": ({}, 200),
    "by number": ({"Host": "127.0.0.1:80"}, 200),
    "by number in brackets": ({"Host": "[::1]:80"}, 200),
    "a name of its own": ({"Host": "rewards.example:80"}, 200),
    "a page of the server": ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
    "a name that came to stand for it": ({"Host": "evil.example"}, 403),
    "such a page": ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    "another page": ({"Origin": "https://evil.example"}, 403),
    "another page of this machine": ({"Origin": "http://localhost:3000"}, 403),
    "a page of no origin": ({"Origin": "null"}, 403),
    "a form": ({"Content-Type": "text/plain"}, 415),
    "with an encoding": ({"Content-Type": "application/json; charset=utf-8"}, 200),
}


@pytest.mark.parametrize(("headers", "status"), VISITS.values(), ids=VISITS)
def test_without_a_token_no_page_of_another_site_may_ask(served, headers, status):
    hosts = ("localhost", "rewards.example")
    headers = {"Host": "localhost:80", **headers}
    body = json.dumps({"texts": [TEXT]}).encode()
    app = tiny_app(served, hosts=hosts)
    assert posted(app, "/score", body, headers=headers).status_code == status
    if status == 403:
        for path in ("/about", "/metrics", "/"):
            app = tiny_app(served, hosts=hosts)
            answer = asked(app, lambda client, path=path: client.get(path, headers=headers))
            assert answer.status_code == 403
    with_token, app = {**headers, "Authorization": "Bearer x"}, tiny_app(served, token="x")
    assert posted(app, "/score", body, headers=with_token).status_code == 200


def said(served):
    return asked(tiny_app(served), lambda client: client.get("/about")).json()["fingerprint"]


def test_a_fingerprint_is_that_of_all_that_scores_depend_on():
    first, again = tiny_served(), tiny_served()
    assert said(first) == said(again)
    answer = posted(tiny_app(first), "/score", {"texts": [TEXT]}).json()
    assert answer["fingerprint"] == said(again)
    with torch.no_grad():
        again.model.score.weight[0, 0] += 1e-4
    assert said(first) != said(served_model(again.model, again.tokenizer))
    other = tiny_served(byte_level(bos=True, chat_template=CHAT_TEMPLATE))
    assert weights_fingerprint(other.model) == weights_fingerprint(first.model)
    assert said(other) != said(first)
    assert said(tiny_served(reading=ReadingSettings("plain", append_eos=True))) != said(first)


def test_padding_is_no_part_of_a_tokenizers_fingerprint():
    tokenizer = byte_level()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a film"], padding=True, truncation=True, max_length=9)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(byte_level(bos=True)) != before
