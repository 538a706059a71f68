"""What the server says of itself, and what it says of a text besides token scores."""

import dataclasses

import pytest
import torch
from credit_names import ONE_PASS_ALONE
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, wordpiece

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import asked, break_model, posted, tiny_app, tiny_served

from tokencredit.batch import ResponseScores
from tokencredit.scorers.hf_local import own_scores
from tokencredit.scorers.texts import whole_texts
from tokencredit.server.client import About
from tokencredit.text.reading_settings import ReadingSettings

TEXTS = [{"prompt": "the film is", "response": " a good plot"}, {"prompt": "a", "response": ""}]
DETAILS = ["prefix-scores", "attention"]


@pytest.fixture(scope="module")
def served():
    return tiny_served()


def score(served, **body):
    answer = posted(tiny_app(served), "/score", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["scores"]


def said_by(served, **settings):
    headers = {"Authorization": "Bearer x"}
    return asked(tiny_app(served, **settings), lambda client: client.get("/about", headers=headers))


def test_a_server_says_what_it_serves(served):
    said = said_by(served, queue_size=7, max_body_bytes=900, token="x").json()
    assert said == {
        "credit": list(ONE_PASS_ALONE),
        "details": DETAILS,
        "attention_layer": -1,
        "template": "plain",
        "renders_chats": False,
        "reads_eos": False,
        "vocabulary": said["vocabulary"],
        "fingerprint": said["fingerprint"],
        "max_tokens": 128,
        "max_texts": 7,
        "max_request_tokens": 2**18,
        "max_body_bytes": 900,
        "request_timeout": 60.0,
    }
    left_out = {"reads_eos", "reads_segments"}
    assert {field.name for field in dataclasses.fields(About)} <= {*said, *left_out}
    refused = said_by(served, token="y")
    assert refused.status_code == 401
    assert "vocabulary" not in refused.text


def test_a_server_says_how_its_model_learnt():
    tokenizer = byte_level(bos=True, chat_template=CHAT_TEMPLATE)
    served = tiny_served(tokenizer)
    said = said_by(served).json()
    assert (said["reads_eos"], said["renders_chats"]) == (False, True)
    said = said_by(tiny_served(tokenizer, reading=ReadingSettings("plain"))).json()
    assert said["renders_chats"] is False
    assert said_by(tiny_served(wordpiece(), "bert")).json()["details"] == ["attention"]


def test_details_are_those_of_the_model_itself(served):
    rows = score(served, texts=TEXTS, credit=[], details=DETAILS)
    encoded = whole_texts(served.model, served.reading, ["the film is"], [" a good plot"])
    scores = own_scores(
        served.model,
        served.reading,
        encoded.batch,
        attention_mask=encoded.attention_mask,
        attention_layer=-1,
    )
    assert rows[0]["prefix_scores"] == pytest.approx(scores.prefix_scores[0].tolist(), abs=1e-5)
    assert rows[0]["attention"] == pytest.approx(scores.attention[0].tolist(), abs=1e-5)
    assert [tuple(span) for span in rows[0]["spans"]] == encoded.response_spans[0]
    assert rows[0]["token_scores"] == {}
    assert rows[1]["prefix_scores"] == pytest.approx([rows[1]["sequence_score"]], abs=1e-5)
    assert rows[1]["attention"] == []


def test_what_is_not_asked_for_is_not_there(served):
    for row in score(served, texts=TEXTS):
        assert list(row) == ["sequence_score", "token_ids", "tokens", "spans", "token_scores"]
    (row, _) = score(served, texts=TEXTS, credit=[], details=["attention"])
    assert "prefix_scores" not in row
    assert len(row["attention"]) == len(row["tokens"])


def test_texts_with_and_without_details_share_a_batch(served):
    app = tiny_app(served, max_wait_ms=200.0)

    async def work(client):
        both = {"texts": TEXTS, "credit": ["uniform"], "details": DETAILS}
        first = client.post("/score", json=both)
        second = client.post("/score", json={"texts": TEXTS, "credit": []})
        return [(await answer).json()["scores"] for answer in (first, second)]

    first, second = asked(app, work)
    assert first[0]["attention"]
    assert set(second[0]) == {"sequence_score", "token_ids", "tokens", "spans", "token_scores"}
    assert first[0]["sequence_score"] == pytest.approx(second[0]["sequence_score"], abs=1e-5)


def test_details_of_ids(served):
    ids = [{"prompt_ids": [5, 6], "response_ids": [7, 8, 9]}]
    (row,) = score(served, ids=ids, credit=[], details=DETAILS)
    for count, prefix_score in enumerate(row["prefix_scores"]):
        expected = served.model(torch.tensor([[5, 6, 7, 8, 9][: 2 + count]])).logits.item()
        assert prefix_score == pytest.approx(expected, abs=1e-5)
    assert len(row["attention"]) == 3
    assert row["tokens"] == []


def test_a_response_that_was_cut_off_is_read_without_its_end():
    served = tiny_served(reading=ReadingSettings(append_eos=True))
    text = {"prompt": "the film", "response": " is good"}
    whole, ended, cut_off = score(
        served, texts=[text, {**text, "ended": True}, {**text, "ended": False}]
    )
    assert whole == ended
    assert cut_off["token_ids"] == whole["token_ids"][:-1]
    assert whole["token_ids"][-1] == served.tokenizer.eos_token_id
    assert cut_off["sequence_score"] != pytest.approx(whole["sequence_score"], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"details": ["prefixes"]}, "details names 'prefixes'; expected some of prefix-scores"),
        ({"details": "attention"}, "details: Input should be a valid list"),
        ({"texts": [{"response": "a", "ended": 3}]}, "texts[0].ended"),
    ],
)
def test_bad_requests(served, changes, message):
    answer = posted(tiny_app(served), "/score", {"texts": TEXTS, **changes})
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


def test_attention_that_is_nan_is_an_error(served, monkeypatch):
    def nan_attention(model, batch, **_):
        shape = batch.response_mask.shape
        return ResponseScores(torch.zeros(len(batch)), None, torch.full(shape, torch.nan))

    monkeypatch.setattr("tokencredit.scorers.hf_local.score_responses", nan_attention)
    body = {"texts": TEXTS[:1], "credit": [], "details": ["attention"]}
    answer = posted(tiny_app(served), "/score", body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "NumericError")


def test_nan_prefixes_are_an_error():
    served = tiny_served()
    break_model(served, " good")
    text = {"prompt": "the film is", "response": " a good plot"}
    body = {"texts": [text], "credit": [], "details": ["prefix-scores"]}
    answer = posted(tiny_app(served), "/score", body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "NumericError")
