"""A reward model in vLLM gives what the same model gives in this process."""

import dataclasses
import warnings
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from readings import local_scorer, written_by
from tiny_models import tiny_model
from tiny_pooling import TinyPooling
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, unigram
from tiny_vllm import failure, listening

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import ResponseBatch
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.credit.settings import CreditSettings
from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    ServerError,
    TokenCreditWarning,
)
from tokencredit.scorers.hf_segment_ends import SegmentEndSettings
from tokencredit.scorers.hf_token_scores import score_for_policy
from tokencredit.scorers.hf_trained_reading import remember_score_positions
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.server.asking import RewardServer
from tokencredit.server.vllm_scoring import probed, scoring_server, token_outputs
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.segments import SegmentSettings

POLICY = byte_level()
PROMPTS = ["the film is", "one slow scene , then", "a"]
RESPONSES = [" a good café 日本 🙂", " bad", " good good"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
TOKENIZERS = {
    "its own ids": byte_level(),
    "bytes": byte_level(merges=0),
    "unigram": unigram(),
    "chat": byte_level(chat_template=CHAT_TEMPLATE, merges=20),
}
PROBE = list(range(3, 50, 2))
CUT = SegmentSettings(kind="ngram", length=2)
GIVEN = {"sequence_scores", "prefix_scores", "position_scores", "kept_tokens", "segments"}
METHODS = [name for name, row in CREDIT_METHODS.items() if set(row.needs) <= GIVEN]


def saved(folder, tokenizer, architecture="llama", **config: Any):
    """A reward model on disk, and in this process."""
    model = tiny_model(
        architecture, vocab_size=len(tokenizer), max_position_embeddings=256, **config
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def own_ids(tmp_path_factory):
    """A model that reads the policy's ids, and its folder."""
    folder = tmp_path_factory.mktemp("reward")
    return saved(folder, TOKENIZERS["its own ids"]), folder


def generated() -> ResponseBatch:
    """One response that ended, one that was cut off, one with tokens that do not count."""
    ended = encode_responses(POLICY, PROMPTS, RESPONSES, append_eos=[True, False, True]).batch
    counts = ended.response_mask.clone()
    counts[2, 1] = False
    return dataclasses.replace(ended, response_mask=counts)


@contextmanager
def pooled(tiny, credit="prefix-difference", *, named=None, length=256, **settings: Any):
    """Rewards by the stand-in."""
    tiny.length = length
    with listening(tiny) as address:
        name = f"vllm+{address}" + (f"#{named}" if named else "")
        yield loaded_rewards(
            [RewardSource(name, name="reward")],
            CreditSettings(credit, **settings),
            CUT,
            CombinationSettings(),
            written_by(POLICY),
            server=lambda where: RewardServer(where, retries=2, sleep=lambda _: None),
        )


def assert_same(found, expected):
    for name in ("sequence_scores", "prefix_scores", "position_scores"):
        value, right = getattr(found, name), getattr(expected, name)
        if right is None:
            assert value is None, name
        else:
            torch.testing.assert_close(value, right, atol=2e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("prefixes", ["own-text", "one-pass"])
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_scores_are_those_of_the_model_in_this_process(tmp_path, tokenizer, labels, prefixes):
    model, batch = saved(tmp_path, tokenizer, num_labels=labels), generated()
    local = local_scorer(model, tokenizer, POLICY, prefixes=prefixes)
    with pooled(TinyPooling(tmp_path), prefixes=prefixes) as rewards:
        scorer = rewards.sources[0].scorer
        for chats in [None] if tokenizer.chat_template is None else [None, CHATS]:
            expected = local(batch, conversations=chats)
            assert_same(scorer(batch, conversations=chats), expected)
        alone = scorer(batch[:1])
        for name in ("sequence_scores", "prefix_scores"):
            one, all_ = getattr(alone, name), getattr(scorer(batch), name)[:1]
            torch.testing.assert_close(one, all_[..., : one.shape[-1]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("credit", METHODS)
def test_every_credit_of_scores_works(own_ids, credit):
    model, folder = own_ids
    batch = generated()
    with pooled(TinyPooling(folder), credit) as rewards:
        found = rewards.credited(batch)
    expected, _ = score_for_policy(
        model, TOKENIZERS["its own ids"], POLICY, batch, credit=credit, segments=CUT
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not bool(found[~batch.response_mask].any())


def test_the_methods_are_those_that_need_scores_alone():
    assert {"terminal", "uniform", "prefix-difference", "segment"} <= set(METHODS)
    assert len(METHODS) >= 11


@pytest.mark.parametrize("credit", ["attention", "integrated-gradients"])
def test_what_vllm_does_not_give_is_refused(own_ids, credit):
    with (
        pytest.raises(ModelError, match=f"{credit!r} needs"),
        pooled(TinyPooling(own_ids[1]), credit),
    ):
        pass


@pytest.mark.parametrize("tokenizer", ["its own ids", "unigram"])
def test_a_model_trained_at_ends_of_segments_is_read_so(tmp_path, tokenizer):
    tokenizer, batch = TOKENIZERS[tokenizer], encode_responses(POLICY, PROMPTS, RESPONSES).batch
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    ends = SegmentEndSettings("ngram", length=2)
    remember_score_positions(model.config, "segment-ends", ends)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = local_scorer(model, tokenizer, POLICY)(batch)
    with pooled(TinyPooling(tmp_path), prefixes="one-pass") as rewards:
        assert_same(rewards.sources[0].scorer(batch), expected)


def test_a_model_read_at_ends_of_segments_warns_of_other_tokens(tmp_path):
    tokenizer = TOKENIZERS["unigram"]
    model = tiny_model("llama", vocab_size=len(tokenizer))
    remember_score_positions(model.config, "segment-ends", SegmentEndSettings("ngram", length=2))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with (
        pytest.warns(TokenCreditWarning, match="reads other tokens"),
        pooled(TinyPooling(tmp_path), "prefix-difference"),
    ):
        pass


def test_completions_of_a_trainer_are_paid_by_it(own_ids):
    model, folder = own_ids
    batch = encode_responses(POLICY, PROMPTS, RESPONSES).batch
    ids, masks = (batch.prompt_ids, batch.response_ids), (batch.prompt_mask, batch.response_mask)
    completions = (ids[0], masks[0].long(), ids[1], masks[1].long())
    with listening(TinyPooling(folder)) as address:
        found = reward_model_token_rewards(f"vllm+{address}", POLICY)(*completions)
    expected = reward_model_token_rewards(model, POLICY)(*completions)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_no_weights_are_held_here(own_ids):
    with pooled(TinyPooling(own_ids[1])) as rewards:
        assert rewards.modules == []
        assert all(weight.is_meta for weight in rewards.sources[0].scorer.model.parameters())


def test_requests_are_parted_and_each_is_of_the_same_model(own_ids, monkeypatch):
    monkeypatch.setattr("tokencredit.server.vllm_scoring._MOST_TEXTS", 2)
    tiny = TinyPooling(own_ids[1])
    with pooled(tiny) as rewards:
        scorer, batch = rewards.sources[0].scorer, generated()
        tiny.asked.clear()
        found = scorer(batch)
        assert [len(body["input"]) for body in tiny.asked] == [3, 2]  # the probe is the first
        monkeypatch.setattr("tokencredit.server.vllm_scoring._MOST_TEXTS", 256)
        assert_same(scorer(batch), found)
        monkeypatch.setattr("tokencredit.server.vllm_scoring._MOST_TOKENS", 1)
        tiny.asked.clear()
        assert_same(scorer(batch), found)
        assert len(tiny.asked) == 3
        with torch.no_grad():
            tiny.model.score.weight.mul_(1.2)
        with pytest.raises(ServerError, match="scores a text otherwise than at first"):
            scorer(batch)


def test_a_server_that_is_down_for_a_while_is_asked_again(own_ids):
    tiny = TinyPooling(own_ids[1])
    with pooled(tiny) as rewards:
        tiny.replies = [(503, {}), failure(429, "too many", "TooManyRequests"), None]
        asked = len(tiny.asked)
        rewards.sources[0].scorer(generated())
        assert len(tiny.asked) == asked + 3
        tiny.replies = [(503, {})] * 3
        with pytest.raises(ServerError, match="was asked 3 times"):
            rewards.sources[0].scorer(generated())
        tiny.replies = [failure(500, "EngineCore encountered an issue.")]
        with pytest.raises(ServerError, match="answered 500, EngineCore encountered an issue"):
            rewards.sources[0].scorer(generated())


# What answers otherwise than a reward model at every token.


def test_one_score_per_text_is_an_error(own_ids):
    tiny = TinyPooling(own_ids[1])
    tiny.change = lambda data, _: [row[-1] for row in data]
    with (
        pytest.raises(ServerError, match=r"not one score for the text: start it with"),
        pooled(tiny),
    ):
        pass


@pytest.mark.parametrize("labels", [1, 2])
def test_probabilities_are_an_error(tmp_path, labels):
    tokenizer = TOKENIZERS["its own ids"]
    model = saved(tmp_path, tokenizer, num_labels=labels)
    tiny = TinyPooling(tmp_path)
    outputs = tiny.outputs
    tiny.outputs = lambda ids, shaped: outputs(ids, shaped=True)
    with pytest.raises(ConfigError, match=r"answers with probabilities although"), pooled(tiny):
        pass
    tiny.outputs = lambda ids, shaped: outputs(ids, shaped=False)  # a head without activation
    with pooled(tiny) as rewards:
        found = rewards.sources[0].scorer(generated())
    assert_same(found, local_scorer(model, tokenizer, POLICY)(generated()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_in_half_precision_is_an_error(own_ids, dtype):
    tiny = TinyPooling(own_ids[1])
    tiny.change = lambda data, _: [torch.tensor(row).to(dtype).tolist() for row in data]
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ConfigError, match=f"computes its head in {name}"), pooled(tiny):
        pass


def test_a_trunk_in_half_precision_is_none(own_ids):
    tiny = TinyPooling(own_ids[1])
    tiny.model.model.norm.register_forward_hook(lambda _m, _i, out: out.bfloat16().float())
    with pooled(tiny) as rewards:
        rewards.sources[0].scorer(generated())


def drop_last(data: Any, _: Any) -> Any:
    return [row[:-1] for row in data]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (drop_last, ServerError, "of 24 tokens with scores of 23; expected one for each"),
        (lambda data, _: data[:-1], ServerError, "answers 1 texts with"),
        (lambda data, _: [[[*v, 1.0] for v in row] for row in data], ServerError, r"\[2\] numbers"),
        (lambda data, _: [[["a"] for _ in row] for row in data], ServerError, "expected numbers"),
        (lambda data, _: [[[None] for _ in row] for row in data], NumericError, "NaN"),
        (lambda data, _: [[[float("nan")]] * len(row) for row in data], NumericError, "NaN"),
        (lambda data, _: [[] for _ in data], ServerError, "expected a list for each of its 24"),
        (lambda data, _: ["AAAA" for _ in data], ServerError, "expected a list for each of its 24"),
    ],
)
def test_other_shapes_are_errors(own_ids, change, error, message):
    tiny = TinyPooling(own_ids[1])
    tiny.change = change
    with pytest.raises(error, match=message), pooled(tiny):
        pass


def test_a_later_answer_of_another_shape_is_an_error(own_ids):
    tiny = TinyPooling(own_ids[1])
    with pooled(tiny) as rewards:
        tiny.change = lambda data, _: [data[0], *([[*v, 1.0] for v in row] for row in data[1:])]
        with pytest.raises(ServerError, match="expected 1 numbers"):
            rewards.sources[0].scorer(generated())


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (
            failure(400, "Try switching the task", "BadRequestError"),
            ServerError,
            "--runner pooling",
        ),
        (failure(400, "Token id 7 is out of vocabulary", "E"), DataError, "that tokenizer"),
        (failure(401, "Unauthorized", "E"), ConfigError, r"server\.token_variable"),
        ((404, {"detail": "Not Found"}), ServerError, "with a reward model: start it with"),
        ((200, [1]), ServerError, "answers 1 texts with"),
    ],
)
def test_refusals_say_what_to_do(own_ids, reply, error, message):
    tiny = TinyPooling(own_ids[1])
    tiny.replies = [reply]
    with pytest.raises(error, match=message), pooled(tiny):
        pass


@pytest.mark.parametrize("reply", [{"data": []}, [], {"data": [{"id": "a"}]}])
def test_a_server_without_a_model_is_an_error(reply):
    class Empty:
        def reply(self, path: str, body: Any) -> Any:
            return 200, reply

    with listening(Empty()) as address, pytest.raises(ServerError, match="names no model"):
        scoring_server(RewardServer(address))


def test_a_text_that_is_too_long_is_an_error(own_ids):
    with (
        pooled(TinyPooling(own_ids[1]), length=10) as rewards,
        pytest.raises(DataError, match="expected at most 10, what the vLLM server at"),
    ):
        rewards.sources[0].scorer(generated())


def test_a_prompt_without_tokens_is_an_error(own_ids):
    batch = generated()
    empty = dataclasses.replace(batch, prompt_mask=batch.prompt_mask & False)
    with (
        pooled(TinyPooling(own_ids[1])) as rewards,
        pytest.raises(DataError, match="a prompt is empty"),
    ):
        rewards.sources[0].scorer(empty)


def test_an_encoder_is_refused(tmp_path):
    tokenizer = TOKENIZERS["its own ids"]
    saved(tmp_path, tokenizer, "bert")
    with pytest.raises(ModelError, match="reads in both directions"), pooled(TinyPooling(tmp_path)):
        pass


def test_the_tokenizer_is_named_where_the_server_has_another_path(own_ids):
    folder = own_ids[1]
    tiny = TinyPooling(folder)
    tiny.folder = "/nowhere/else"
    with pytest.raises(ModelError, match="name it after the address, as in"), pooled(tiny):
        pass
    with pooled(tiny, named=folder) as rewards, warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards.sources[0].scorer(generated())


def test_the_key_goes_along(own_ids):
    tiny = TinyPooling(own_ids[1])
    with listening(tiny) as address:
        scoring = probed(scoring_server(RewardServer(address, "secret")), PROBE, outputs=1)
        (found,) = token_outputs(scoring, [[5, 6, 7]])
    assert len(found) == 3
    assert tiny.keys == {"Bearer secret"}
