"""A served reward model gives what the same model gives in this process."""

import ast
import dataclasses
import json
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, unigram, word_level, wordpiece

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from readings import local_scorer, written_by
from tiny_server import break_model, listening, posted, served_model, tiny_app

from tokencredit.batch import ResponseBatch, TokenScorer
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import (
    ConfigError,
    DataError,
    NumericError,
    ServerError,
    TokenCreditWarning,
)
from tokencredit.models.hf_vocabularies import shares_vocabulary, vocabulary_fingerprint
from tokencredit.recipes.serving.served_model import ServedModel
from tokencredit.scorers.hf_segment_ends import SegmentEndSettings
from tokencredit.scorers.hf_token_scores import score_for_policy, served_token_scorer
from tokencredit.scorers.hf_trained_reading import remember_score_positions
from tokencredit.scorers.served import served_reward_model
from tokencredit.server import asking
from tokencredit.server.client import RewardServer, about
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

PACKAGE = Path(__file__).resolve().parents[2] / "src"
POLICY = byte_level()
PROMPTS = ["the film is", "one slow scene , then", "a"]
RESPONSES = [" a good café 日本 🙂 , very good plot", " bad", " good good"]
CHATS = [[{"role": "user", "content": prompt, "name": "x"}] for prompt in PROMPTS]
CHAT = byte_level(chat_template=CHAT_TEMPLATE, merges=20)
TOKENIZERS = {
    "its own ids": byte_level(),
    "bytes": byte_level(merges=0),
    "first token": byte_level(bos=True, merges=20),
    "unigram": unigram(),
    "word level": word_level(),
    "chat": CHAT,
}


def served_by(tokenizer, architecture="gpt2", *, eos_appended=None, **settings):
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    model = tiny_model(architecture, **size)
    model.config.eos_appended = eos_appended
    return served_model(model, tokenizer, **settings)


@contextmanager
def at_address(served, **limits):
    with listening(tiny_app(served, **limits)) as address:
        yield RewardServer(address, retries=0)


def generated(policy=POLICY):
    """One response that ended, one that was cut off, one with tokens that do not count."""
    ended = encode_responses(policy, PROMPTS, RESPONSES, append_eos=[True, False, True]).batch
    counts = ended.response_mask.clone()
    counts[2, 1] = False
    return dataclasses.replace(ended, response_mask=counts)


def assert_same(found, expected):
    for name in ("sequence_scores", "prefix_scores", "attention"):
        value, right = getattr(found, name), getattr(expected, name)
        if right is None:
            assert value is None, name
        else:
            torch.testing.assert_close(value, right, atol=2e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("eos_appended", [None, True, False])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_scores_are_those_of_the_model_in_this_process(tokenizer, eos_appended):
    served, batch = served_by(tokenizer, eos_appended=eos_appended), generated()
    conversations = [None] if tokenizer.chat_template is None else [None, CHATS]
    with at_address(served) as server:
        model = served_reward_model(server, written_by(POLICY), credit=CreditSettings("attention"))
        assert model.shares_vocabulary == shares_vocabulary(tokenizer, POLICY)
        for chats in conversations:
            local = local_scorer(served.model, tokenizer, POLICY)
            found, expected = (
                scorer(batch, attention=True, conversations=chats) for scorer in (model, local)
            )
            assert_same(found, expected)


def test_the_end_of_a_response_is_seen():
    """The comparison above could not fail if no score depended on it."""
    batch, tokenizer = generated(), TOKENIZERS["bytes"]
    scores = [
        local_scorer(served_by(tokenizer, eos_appended=eos).model, tokenizer, POLICY)(
            batch
        ).sequence_scores
        for eos in (True, False)
    ]
    changed = (scores[0] - scores[1]).abs() > 1e-3
    assert changed.tolist() == [True, False, True]


@pytest.mark.parametrize("credit", ["terminal", "uniform", "attention", "prefix-difference"])
def test_the_callable_pays_as_the_model_in_this_process(credit):
    served, batch = served_by(TOKENIZERS["unigram"], eos_appended=True), generated()
    settings = CreditSettings(credit, beta=0.7, prefixes="one-pass")
    with at_address(served, queue_size=2) as server:
        scorer = served_token_scorer(server, POLICY, credit=settings)
        assert isinstance(scorer, TokenScorer)
        found = scorer(batch)
    expected, _ = score_for_policy(served.model, served.tokenizer, POLICY, batch, credit=settings)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert found.dtype == torch.float32
    assert not bool(found[~batch.response_mask].any())


def test_a_served_model_scores_prefixes_in_one_pass_and_says_so():
    served = served_by(TOKENIZERS["unigram"])
    with at_address(served) as server:
        with pytest.warns(TokenCreditWarning, match="is served and reads other tokens"):
            served_reward_model(
                server, written_by(POLICY), credit=CreditSettings("prefix-difference")
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            served_reward_model(server, written_by(POLICY), credit=CreditSettings("terminal"))


def test_a_response_to_a_prompt_without_text_stands_alone():
    batch = generated()
    empty = torch.full_like(batch.prompt_ids[:, -1:], POLICY.bos_token_id)
    batch = ResponseBatch(
        empty, torch.ones_like(empty).bool(), batch.response_ids, batch.response_mask
    )
    for tokenizer in (CHAT, TOKENIZERS["first token"]):
        served = served_by(tokenizer)
        with at_address(served) as server:
            model = served_reward_model(
                server, written_by(POLICY), credit=CreditSettings("terminal")
            )
            found = model(batch)
        assert_same(found, local_scorer(served.model, tokenizer, POLICY)(batch))


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_template_is_the_servers(template):
    served, batch = served_by(CHAT, reading=ReadingSettings(template)), generated(CHAT)
    with at_address(served) as server:
        model = served_reward_model(server, written_by(CHAT), credit=CreditSettings("terminal"))
        found = model(batch)
    expected = local_scorer(served.model, CHAT, CHAT, reading=ReadingSettings(template))(batch)
    assert_same(found, expected)


def test_a_model_that_reads_in_both_directions_has_attention_alone():
    served, batch = served_by(wordpiece(), "bert"), generated()
    with at_address(served) as server:
        with pytest.raises(ConfigError, match="'prefix-difference' needs prefix-scores"):
            served_token_scorer(server, POLICY)
        model = served_reward_model(server, written_by(POLICY), credit=CreditSettings("attention"))
        found = model(batch, attention=True)
    expected = local_scorer(served.model, served.tokenizer, POLICY)(batch, attention=True)
    assert expected.prefix_scores is None
    assert_same(found, expected)


def test_what_the_server_does_not_offer_is_refused_at_once():
    served = served_by(POLICY)
    served = dataclasses.replace(served, credits={"terminal": served.credits["terminal"]})
    with at_address(served) as server:
        with pytest.raises(ConfigError, match=r"'attention' needs attention.*offers none"):
            served_token_scorer(server, POLICY, credit="attention")
        with pytest.raises(ConfigError, match="credit method is 'atention'"):
            served_token_scorer(server, POLICY, credit="atention")
        assert served_token_scorer(server, POLICY, credit="terminal")(generated()).any()
    answer = posted(
        tiny_app(served), "/score", {"texts": [{"response": "a"}], "details": ["attention"]}
    )
    assert answer.status_code == 422
    assert "details names 'attention'; expected some of none" in answer.text


def test_another_layer_is_refused():
    with at_address(served_by(POLICY, layer=0)) as server:
        with pytest.raises(ConfigError, match=r"credit\.layer is -1 and the reward server"):
            served_reward_model(server, written_by(POLICY), credit=CreditSettings("attention"))
        assert served_reward_model(server, written_by(POLICY), credit=CreditSettings("terminal"))
        assert served_reward_model(
            server, written_by(POLICY), credit=CreditSettings("attention", layer=0)
        )


def test_a_model_that_gives_nan_and_a_text_that_is_too_long():
    served = served_by(POLICY)
    break_model(served, " good")
    with at_address(served, max_batch_tokens=64) as server:
        model = served_reward_model(server, written_by(POLICY), credit=CreditSettings("terminal"))
        with pytest.raises(NumericError, match="NaN or infinite"):
            model(generated())
    with (
        at_address(dataclasses.replace(served_by(POLICY), max_tokens=8)) as server,
        pytest.raises(DataError, match="expected at most 8"),
    ):
        served_token_scorer(server, POLICY)(generated())


def test_another_model_at_the_address_stops_the_run():
    """Also where the server was started again between two questions."""
    first, other = served_by(POLICY), served_by(byte_level(merges=20))
    batch = generated()
    with at_address(first) as server:
        model = served_reward_model(server, written_by(POLICY), credit=CreditSettings("terminal"))
        expected = model(batch)
    port = int(server.address.rpartition(":")[2])
    with listening(tiny_app(first), port):
        assert_same(model(batch), expected)
    with (
        listening(tiny_app(other), port),
        pytest.raises(ServerError, match="begin another run") as told,
    ):
        model(batch)
    assert model.about.fingerprint in str(told.value)
    assert other.about.fingerprint in str(told.value)


@pytest.mark.parametrize("tokenizer", ["its own ids", "unigram"])
def test_a_model_that_is_read_at_the_ends_of_segments(tokenizer):
    """Its numbers at each position are not its prefix scores, and both come."""
    served = served_by(TOKENIZERS[tokenizer])
    batch = encode_responses(POLICY, PROMPTS, RESPONSES, append_eos=[True, False, True]).batch
    remember_score_positions(served.model.config, "segments", SegmentEndSettings("ngram", length=2))
    served = served_model(served.model, served.tokenizer)
    segments = SegmentSettings("ngram", length=2)
    credit = CreditSettings("segment", prefixes="one-pass")  # as all that are served are scored
    with at_address(served) as server:
        assert "position-scores" in about(server).details
        found = served_reward_model(server, written_by(POLICY), credit=credit)(batch)
        paid = served_token_scorer(server, POLICY, credit=credit, segments=segments)(batch)
        with pytest.raises(DataError, match="tokens inside them that do not count"):
            served_reward_model(server, written_by(POLICY), credit=credit)(generated())
    expected = local_scorer(served.model, served.tokenizer, POLICY)(batch)
    assert_same(found, expected)
    torch.testing.assert_close(found.position_scores, expected.position_scores)
    assert not torch.allclose(found.position_scores, found.prefix_scores, atol=1e-3)
    local, _ = score_for_policy(
        served.model, served.tokenizer, POLICY, batch, credit=credit, segments=segments
    )
    torch.testing.assert_close(paid, local, atol=2e-5, rtol=1e-5)


def test_nobody_there():
    with pytest.raises(ServerError, match="refused"):
        served_token_scorer(RewardServer("http://127.0.0.1:1", retries=0), POLICY)


def test_fingerprints_are_those_of_vocabularies():
    same, other = byte_level(bos=True), byte_level(merges=20)
    assert vocabulary_fingerprint(POLICY) == vocabulary_fingerprint(same)
    assert vocabulary_fingerprint(POLICY) != vocabulary_fingerprint(other)


def test_a_client_needs_nothing_of_the_extra():
    """Training against a server, on a machine where none can run."""
    seen, left = set(), ["tokencredit.scorers.served"]
    while left:
        name = left.pop()
        file = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
        if name in seen or not file.is_file():
            seen.add(name)
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                left += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                left += [alias.name for alias in node.names]
    assert "tokencredit.server.client" in seen
    assert "tokencredit.text.alignment" in seen
    tops = {name.split(".")[0] for name in seen}
    assert not tops & {"fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client"}


@pytest.mark.parametrize("tokenizer", ["its own ids", "bytes"])
def test_many_responses_go_in_requests_and_passes_of_bounded_size(tokenizer, monkeypatch):
    served, batch = served_by(TOKENIZERS[tokenizer]), generated()
    many = batch[torch.arange(len(batch)).repeat(7)]
    requests, passes = [], []
    sent, scored = asking.exchanged, ServedModel.scores

    def counted(address, method, path, headers, body, **keywords):
        if path == "/score":
            asked = json.loads(body)
            requests.append(len(asked.get("ids") or asked["texts"]))
        return sent(address, method, path, headers, body, **keywords)

    def recorded(self, rows):
        passes.append(len(rows) * max(row.length for row in rows))
        return scored(self, rows)

    monkeypatch.setattr(asking, "exchanged", counted)
    monkeypatch.setattr(ServedModel, "scores", recorded)  # which the application asks for at once
    with at_address(served, queue_size=4, max_batch_tokens=128) as server:
        found = served_reward_model(server, written_by(POLICY))(many)
    assert sum(requests) == len(many)
    assert max(requests) == 4
    assert 64 < max(passes) <= 128
    assert_same(found, local_scorer(served.model, served.tokenizer, POLICY)(many))
