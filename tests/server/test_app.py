import asyncio
import json
import logging
import re
import time

import pytest
import torch
from credit_names import ONE_PASS_ALONE
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, wordpiece

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import GatedModel, asked, break_model, posted, tiny_app, tiny_served

from tokencredit.reward_model.hf_scores import reward_model_output
from tokencredit.scorers.text_rewards import paid_texts
from tokencredit.text.hf_token_rows import token_texts
from tokencredit.text.reading_settings import ReadingSettings

PROMPTS = ["the film is", "one slow scene , then", "a", ""]
RESPONSES = [
    " a good café 日本 🙂 , very good plot",
    " bad",
    "",
    "\u202e<script>\x00 good</script>",
]
TEXTS = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]


@pytest.fixture(scope="module")
def served():
    return tiny_served()


def score(app, **body):
    answer = posted(app, "/score", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["scores"]


def refused(answer, status, error):
    """The message of an error, which is JSON of one form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (told,) = answer.json().values()
    assert set(told) == {"type", "message"}
    assert told["type"] == error
    assert "Traceback" not in answer.text
    return told["message"]


@pytest.mark.parametrize("credit", ONE_PASS_ALONE)
def test_scores_are_those_of_the_model_itself(served, credit):
    """One by one, as `score-tokens` would do it."""
    rows = score(tiny_app(served), texts=TEXTS, credit=[credit])
    for text, row in zip(TEXTS[:2], rows[:2], strict=True):
        responses = [text["response"]]
        found = paid_texts([served.credits[credit]], [text["prompt"]], responses)
        encoded, (paid,) = found.encoded, found.token_scores
        assert row["sequence_score"] == pytest.approx(found.sequence_scores.item(), abs=1e-5)
        assert row["token_scores"] == {credit: pytest.approx(paid[0].tolist(), abs=1e-5)}
        assert [row["tokens"]] == token_texts(served.tokenizer, encoded, responses)
        assert [list(span) for span in encoded.response_spans[0]] == row["spans"]
        assert row["token_ids"] == encoded.batch.response_ids[0].tolist()


def test_batching_changes_nothing(served):
    """Requests at once, in few batches, against each text in a request and a batch of its own."""
    texts = [*TEXTS, *({"prompt": "a" * n, "response": " film" * n} for n in range(1, 9))]
    sizes = []

    async def at_once(client):
        answers = await asyncio.gather(
            *(client.post("/score", json={"texts": [text, texts[0]]}) for text in texts)
        )
        numbers = (await client.get("/metrics")).text
        sizes.append(float(re.search(r"^tokencredit_batch_rows_count (\S+)$", numbers, re.M)[1]))
        return [answer.json()["scores"][0] for answer in answers]

    together = asked(tiny_app(served, max_wait_ms=300.0), at_once)
    assert sizes[0] < len(texts)
    for text, row in zip(texts, together, strict=True):
        (alone,) = score(tiny_app(served), texts=[text])
        assert row["sequence_score"] == pytest.approx(alone["sequence_score"], abs=1e-5)
        for name in ONE_PASS_ALONE:
            assert row["token_scores"][name] == pytest.approx(alone["token_scores"][name], abs=1e-5)


def test_unicode_and_markup_come_back_as_they_are(served):
    rows = score(tiny_app(served), texts=TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        assert row["tokens"] == [text["response"][a:b] for a, b in row["spans"]]
        assert {len(row["tokens"])} == {len(paid) for paid in row["token_scores"].values()}
        ends = [b for _, b in row["spans"]]
        assert ends[-1:] == [len(text["response"])] * bool(text["response"])


def test_an_empty_response_has_a_score_and_no_tokens(served):
    (row,) = score(tiny_app(served), texts=[{"prompt": "the film", "response": ""}])
    ids = served.tokenizer("the film", return_tensors="pt")["input_ids"]
    assert row["sequence_score"] == pytest.approx(served.model(ids).logits.item(), abs=1e-5)
    assert row["tokens"] == row["token_ids"] == []
    assert row["token_scores"] == {name: [] for name in ONE_PASS_ALONE}


def test_token_ids_are_scored_as_they_are(served):
    app = tiny_app(served)
    ids = served.tokenizer("the film", return_tensors="pt")["input_ids"][0].tolist()
    (of_ids,) = score(app, ids=[{"prompt_ids": ids[:2], "response_ids": ids[2:]}])
    expected = served.model(torch.tensor([ids])).logits.item()
    assert of_ids["sequence_score"] == pytest.approx(expected, abs=1e-5)
    assert "".join(of_ids["tokens"]) == served.tokenizer.decode(ids[2:])
    assert of_ids["token_ids"] == ids[2:]
    assert sum(of_ids["token_scores"]["attention"]) == pytest.approx(expected, abs=1e-4)


def test_no_credit_is_the_sequence_score_alone(served):
    for body in ({"texts": TEXTS[:1]}, {"ids": [{"prompt_ids": [5], "response_ids": [6, 7]}]}):
        (row,) = score(tiny_app(served), **body, credit=[])
        assert row["token_scores"] == {}
        assert row["tokens"] == row["spans"] == []
        assert row["token_ids"]


def test_conversations_are_rendered():
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    served = tiny_served(tokenizer)
    message = {"role": "user", "content": "rate this film", "name": "x"}
    answered = {"role": "assistant", "content": "good"}
    (row,) = score(tiny_app(served), texts=[{"prompt": [message], "response": "good"}])
    ids = tokenizer.apply_chat_template([message, answered], return_tensors="pt", return_dict=False)
    assert row["sequence_score"] == pytest.approx(served.model(ids).logits.item(), abs=1e-5)
    assert "".join(row["tokens"]) == "good"
    # The template's words behind the response are read and are no tokens of it.
    assert len(row["token_ids"]) < len(ids[0])


def test_a_model_that_reads_in_both_directions_offers_no_prefixes():
    served = tiny_served(wordpiece(), "bert")
    assert served.credit_methods == ("terminal", "uniform", "attention")
    (row,) = score(tiny_app(served), texts=[{"response": "a good film"}])
    assert set(row["token_scores"]) == set(served.credit_methods)
    answer = posted(
        tiny_app(served), "/score", {"texts": TEXTS[:1], "credit": ["prefix-difference"]}
    )
    message = refused(answer, 422, "RequestError")
    assert "expected some of terminal, uniform, attention" in message


def test_the_shape_of_openrlhf(served):
    """Whole texts, tokenized with nothing added, as OpenRLHF's own server does it."""
    queries = ["<bos>the film is good<eos>", "a bad 日本 film"]
    body = {"query": queries, "prompts": ["the film is", "a"], "labels": [None, "x"]}
    answer = posted(tiny_app(served), "/get_reward", body).json()
    assert set(answer) == {"rewards", "scores", "extra_logs"}
    assert answer["rewards"] == answer["scores"]
    assert all(len(logged) == 2 for logged in answer["extra_logs"].values())
    for query, reward in zip(queries, answer["rewards"], strict=True):
        ids = served.tokenizer(query, add_special_tokens=False, return_tensors="pt")["input_ids"]
        expected = reward_model_output(served.model, ids, torch.ones_like(ids)).sequence_scores
        assert reward == pytest.approx(expected.item(), abs=1e-5)


def test_openrlhfs_texts_end_as_the_model_learnt():
    served = tiny_served(reading=ReadingSettings(append_eos=True))
    body = {"query": ["the film<eos>", "the film"]}
    first, other = posted(tiny_app(served), "/get_reward", body).json()["rewards"]
    assert first == pytest.approx(other, abs=1e-5)


BAD_BODIES = {
    "no JSON": (b"{", "RequestError", "Invalid JSON"),
    "not UTF-8": (b'{"texts": [{"response": "\xff"}]}', "RequestError", "Invalid JSON"),
    "half a character": (b'{"texts": [{"response": "\\ud800"}]}', "RequestError", "Invalid JSON"),
    "too deep": (b"[" * 5000, "RequestError", "Invalid JSON"),
    "a list": ([], "RequestError", "got []"),
    "nothing": ({}, "RequestError", "nothing to score"),
    "no texts": ({"texts": []}, "RequestError", "nothing to score"),
    "both": (
        {"texts": TEXTS, "ids": [{"prompt_ids": [1], "response_ids": [1]}]},
        "RequestError",
        "expected one of them",
    ),
    "no response": ({"texts": [{"prompt": "a"}]}, "RequestError", "texts[0].response"),
    "a number": ({"texts": [{"response": 3}]}, "RequestError", "texts[0].response"),
    "misspelt": ({"texts": [{"respons": "a"}]}, "RequestError", "texts[0].respons"),
    "a credit that is none": (
        {"texts": TEXTS, "credit": ["atention"]},
        "RequestError",
        "credit names 'atention'",
    ),
    "messages without a template": (
        {"texts": [TEXTS[0], {"prompt": [{"role": "user", "content": "a"}], "response": "b"}]},
        "DataError",
        "text 1: 1 prompts are conversations",
    ),
    "too long": (
        {"texts": [TEXTS[0], {"prompt": "a", "response": " bad" * 200}]},
        "DataError",
        "text 1: row 0 has",
    ),
    "a foreign id": (
        {"ids": [{"prompt_ids": [1], "response_ids": [10**9]}]},
        "DataError",
        "text 0 has the id 1000000000",
    ),
    "a huge id": ({"ids": [{"prompt_ids": [10**30], "response_ids": []}]}, "DataError", "the id"),
    "a negative id": ({"ids": [{"prompt_ids": [-1], "response_ids": [1]}]}, "DataError", "id -1"),
    "no prompt ids": (
        {"ids": [{"prompt_ids": [], "response_ids": [1]}]},
        "DataError",
        "no prompt_ids",
    ),
    "too many ids": (
        {"ids": [{"prompt_ids": [1], "response_ids": [1] * 200}]},
        "DataError",
        "201 tokens; expected at most 128",
    ),
    "more than the queue holds": ({"texts": TEXTS * 20}, "RequestError", "80 texts in one request"),
}


@pytest.mark.parametrize(("body", "error", "message"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_requests_are_told_what_is_wrong(served, body, error, message):
    said = refused(posted(tiny_app(served), "/score", body), 422, error)
    assert message in said
    assert re.search("[Ee]xpected", said)
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": []}, "query is empty"),
        ({"query": "a"}, "query: Input should be a valid list"),
        ({"query": ["a", ""]}, "text 1 is empty"),
        ({"query": ["bad " * 300]}, "expected at most 128"),
    ],
)
def test_bad_reward_requests(served, body, message):
    answer = posted(tiny_app(served), "/get_reward", body)
    assert message in refused(answer, 422, answer.json()["error"]["type"])


def test_other_addresses_and_methods(served):
    async def work(client):
        return await client.get("/nowhere"), await client.get("/score")

    nowhere, wrong_method = asked(tiny_app(served), work)
    assert "expected POST /score" in refused(nowhere, 404, "NotFound")
    refused(wrong_method, 405, "MethodNotAllowed")


def test_a_body_that_is_too_large_is_not_read(served):
    limit = 1000

    json_type = {"Content-Type": "application/json"}

    async def pieces():
        for _ in range(3):
            yield b" " * 400

    async def work(client):
        announced = await client.post("/score", content=b" " * (limit + 1), headers=json_type)
        streamed = await client.post("/score", content=pieces(), headers=json_type)
        fits = await client.post("/score", content=b" " * limit, headers=json_type)
        return announced, streamed, fits

    announced, streamed, fits = asked(tiny_app(served, max_body_bytes=limit), work)
    for answer in (announced, streamed):
        assert "more than 1000 bytes" in refused(answer, 413, "BodyTooLarge")
    refused(fits, 422, "RequestError")


def test_a_token_is_asked_for(served):
    app = tiny_app(served, token="sésame")
    right = "Bearer sésame".encode()
    wrong = [
        None,
        b"",
        b"Bearer",
        b"Bearer x",
        b"Basic s\xc3\xa9same",
        b"s\xc3\xa9same",
        right[:-1],
    ]

    async def work(client):
        answers = []
        for value in (*wrong, right, b"bearer s\xc3\xa9same"):
            headers = {} if value is None else {b"Authorization": value}
            answers.append(await client.post("/score", json={"texts": TEXTS}, headers=headers))
        unasked = [await client.get(path) for path in ("/health", "/ready", "/metrics", "/")]
        reward = await client.post("/get_reward", json={"query": ["a"]})
        return answers, unasked, reward

    answers, unasked, reward = asked(app, work)
    for answer in (*answers[: len(wrong)], reward):
        refused(answer, 401, "Unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert [answer.status_code for answer in answers[len(wrong) :]] == [200, 200]
    assert [answer.status_code for answer in unasked] == [200] * 4


async def until(condition):
    """Waits until it is true."""
    end = time.monotonic() + 40
    while time.monotonic() < end:
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came about")


def test_a_full_queue_answers_429_and_the_rest_is_scored(served):
    gated = GatedModel(served)
    app = tiny_app(gated, queue_size=2, max_wait_ms=0.0)
    body = {"texts": TEXTS[:1]}

    async def work(client):
        accepted = [asyncio.create_task(client.post("/score", json=body))]
        await until(gated.begun.is_set)
        accepted += [asyncio.create_task(client.post("/score", json=body)) for _ in range(2)]
        await until(lambda: app.state.intake.batcher.waiting == 2)
        over = await client.post("/score", json=body)
        ready = (await client.get("/ready")).status_code
        gated.gate.set()
        answers = await asyncio.gather(*accepted)
        return over, ready, answers, (await client.get("/ready")).status_code

    over, ready, answers, ready_again = asked(app, work)
    refused(over, 429, "QueueFull")
    assert 1 <= int(over.headers["retry-after"]) <= 60
    assert (ready, ready_again) == (503, 200)
    assert {answer.status_code for answer in answers} == {200}


def test_what_takes_too_long_answers_504_and_is_dropped(served):
    gated = GatedModel(served)
    app = tiny_app(gated, request_timeout=0.5, max_wait_ms=0.0)

    async def work(client):
        first, second = await asyncio.gather(
            *(client.post("/score", json={"texts": TEXTS[:1]}) for _ in range(2))
        )
        gated.gate.set()
        await until(lambda: app.state.intake.batcher.waiting == 0)
        for _ in range(20):  # half a second may be short on a busy machine
            third = await client.post("/score", json={"texts": TEXTS[:1]})
            if third.status_code == 200:
                break
        return first, second, third

    first, second, third = asked(app, work)
    for answer in (first, second):
        assert "within 0.5 s" in refused(answer, 504, "Timeout")
    assert third.status_code == 200


def test_nan_is_an_error_and_spoils_no_other_request(caplog):
    served = tiny_served()
    break_model(served)
    gated = GatedModel(served)
    bad = {"texts": [TEXTS[0], {"prompt": "a secret", "response": " good!"}]}

    async def work(client):
        bodies = [bad, *({"texts": [text]} for text in TEXTS[:3])]
        tasks = [asyncio.create_task(client.post("/score", json=body)) for body in bodies]
        await asyncio.sleep(0.2)
        gated.gate.set()
        reward = await client.post("/get_reward", json={"query": ["good!"]})
        return await asyncio.gather(*tasks), reward

    with caplog.at_level(logging.DEBUG):
        (broken, *others), reward = asked(tiny_app(gated, max_wait_ms=50.0), work)
    message = refused(broken, 500, "NumericError")
    assert message.startswith("text 1: the reward model gives NaN or infinite scores")
    refused(reward, 500, "NumericError")
    assert {answer.status_code for answer in others} == {200}
    assert "secret" not in caplog.text


def test_an_error_that_nobody_foresaw_tells_and_logs_no_text(served, caplog):
    class Buggy(GatedModel):
        def scores(self, rows):
            raise KeyError(rows[0].tokens)

    answer = posted(tiny_app(Buggy(served)), "/score", {"texts": [{"response": "sésame"}]})
    assert "not foreseen" in refused(answer, 500, "InternalError")
    assert "KeyError, not foreseen" in caplog.text
    assert "in scores" in caplog.text
    assert "é" not in caplog.text + answer.text


def test_stopping_finishes_what_was_accepted(served):
    gated = GatedModel(served)
    app = tiny_app(gated)
    intake = app.state.intake

    async def work(client):
        accepted = asyncio.create_task(client.post("/score", json={"texts": TEXTS}))
        await until(lambda: intake.batcher.waiting == len(TEXTS))
        closing = asyncio.create_task(asyncio.to_thread(intake.close))
        await until(lambda: not intake.batcher.accepts)
        late = await client.post("/score", json={"texts": TEXTS})
        gated.gate.set()
        await closing
        return await accepted, late, await client.get("/health")

    accepted, late, health = asked(app, work)
    assert accepted.status_code == 200
    assert len(accepted.json()["scores"]) == len(TEXTS)
    refused(late, 503, "Stopping")
    assert health.status_code == 503


def test_numbers_for_prometheus(served):
    async def work(client):
        await client.post("/score", json={"texts": TEXTS})
        await client.post("/score", json={})
        await client.post("/", data={"prompt": "a", "response": " b"})
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return answer.text

    text = asked(tiny_app(served), work)
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert numbers['tokencredit_requests_total{endpoint="score",status="200"}'] == "1.0"
    assert numbers['tokencredit_requests_total{endpoint="score",status="422"}'] == "1.0"
    assert numbers['tokencredit_requests_total{endpoint="page",status="200"}'] == "1.0"
    assert numbers['tokencredit_request_seconds_count{endpoint="score"}'] == "2.0"
    assert float(numbers["tokencredit_batch_rows_sum"]) == len(TEXTS) + 1
    assert float(numbers['tokencredit_tokens_total{kind="text"}']) > len(TEXTS)
    assert float(numbers["tokencredit_waiting_rows"]) == 0
    assert float(numbers["process_resident_memory_bytes"]) > 1e6


def test_openapi_describes_the_requests(served):
    described = asked(tiny_app(served), lambda client: client.get("/openapi.json")).json()
    paths = {"/score", "/get_reward", "/about", "/health", "/ready", "/metrics"}
    assert paths == set(described["paths"])
    body = described["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    assert {"texts", "ids", "credit", "details"} == set(body["schema"]["properties"])


def test_health_is_quick_while_the_model_works(served):
    gated = GatedModel(served)

    async def work(client):
        task = asyncio.create_task(client.post("/score", json={"texts": TEXTS}))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        health = await client.get("/health")
        seconds = time.monotonic() - started
        gated.gate.set()
        return health.json(), seconds, (await task).status_code

    health, seconds, status = asked(tiny_app(gated), work)
    assert (health, status) == ({"alive": True}, 200)
    assert seconds < 10


def test_numbers_in_answers_are_json(served):
    answer = posted(tiny_app(served), "/score", {"texts": TEXTS})
    json.loads(answer.content, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(("announced", "status"), [("9" * 5000, 413), ("-1", 200), ("x", 200)])
def test_any_length_may_be_announced(served, announced, status):
    app, body = tiny_app(served), json.dumps({"texts": TEXTS[:1]}).encode()
    answer = posted(app, "/score", body, headers={"content-length": announced})
    assert answer.status_code == status


def test_the_token_is_in_no_log_answer_or_number(served, caplog):
    app = tiny_app(served, token="a-right-token")

    async def work(client):
        answers = []
        for token in ("a-right-token", "a-wrong-token"):
            headers = {"Authorization": f"Bearer {token}"}
            form = {"prompt": "a", "response": " b", "token": token}
            answers += [
                await client.post("/score", json={"texts": TEXTS[:1]}, headers=headers),
                await client.post("/score", content=b"{", headers=headers),
                await client.post("/", data=form),
            ]
        return [*answers, await client.get("/metrics"), await client.get("/openapi.json")]

    with caplog.at_level(logging.DEBUG):
        answers = asked(app, work)
    assert [answer.status_code for answer in answers] == [200, 422, 200, 401, 401, 401, 200, 200]
    said = caplog.text + "".join(f"{answer.text}{answer.headers}" for answer in answers)
    assert "right-token" not in said
    assert "wrong-token" not in said
