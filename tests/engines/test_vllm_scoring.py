"""A reward model that vLLM itself serves: a pooling server on the CPU, tiny models."""

import json
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is installed by make test-engines alone")

from readings import local_scorer
from tiny_policy import PROMPTS, tiny_config, write_models
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from vllm_servers import SCORING, serving

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, ServerError
from tokencredit.recipes.credit.score_tokens import ScoreTokensConfig, score_tokens
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from
from tokencredit.scorers.hf_token_scores import score_for_policy
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.server.asking import RewardServer, json_answer
from tokencredit.server.vllm_scoring import _VLLM, probed, scoring_server
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.segments import SegmentSettings

pytestmark = pytest.mark.timeout(2400)  # a server takes up to a minute to start
SHAPE = {"hidden_size": 64, "head_dim": 32}
CUT = SegmentSettings(kind="ngram", length=2)
GIVEN = {"sequence_scores", "prefix_scores", "position_scores", "kept_tokens", "segments"}
METHODS = [name for name, row in CREDIT_METHODS.items() if set(row.needs) <= GIVEN]
RESPONSES = [" good and moving", " bad", " dull , slow and bad", " a masterpiece"]
PROBE = list(range(3, 51, 2))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), **SHAPE)


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(models / "reward", log, *SCORING, "--max-model-len", "64") as address:
        yield address


@pytest.fixture(scope="module")
def two_outputs(models, tmp_path_factory):
    """A head with two outputs, in a trunk of bfloat16, and an activation unless asked for none."""
    log = tmp_path_factory.mktemp("server") / "log"
    task = ("--runner", "pooling", "--pooler-config", '{"task":"token_classify"}')
    with serving(models / "held-out", log, *task, "--dtype", "bfloat16") as address:
        yield address


def rewards_at(address: str, models: Any, credit: str = "prefix-difference") -> Any:
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    return loaded_rewards(
        [RewardSource(f"vllm+{address}", name="reward")],
        CreditSettings(credit),
        CUT,
        CombinationSettings(),
        written_by(tokenizer),
    )


def local_model(models: Any, name: str = "reward") -> tuple[Any, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(models / name).eval()
    return model, AutoTokenizer.from_pretrained(models / name)


@pytest.mark.parametrize("credit", METHODS)
def test_every_credit_of_scores_works(models, address, credit):
    model, tokenizer = local_model(models)
    batch = encode_responses(
        tokenizer, PROMPTS[:4], RESPONSES, append_eos=[True, False, True, False]
    ).batch
    found = rewards_at(address, models, credit).credited(batch)
    expected, _ = score_for_policy(model, tokenizer, tokenizer, batch, credit=credit, segments=CUT)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.abs().max() > 0.1


def test_many_texts_in_several_requests(models, address, monkeypatch):
    monkeypatch.setattr("tokencredit.server.vllm_scoring._MOST_TEXTS", 7)
    model, tokenizer = local_model(models)
    prompts = [prompt for prompt in PROMPTS for _ in range(10)]
    words = ["good", "bad", "slow"]
    responses = [" " + " ".join(words[: 1 + i % 3] * (1 + i % 5)) for i in range(60)]
    batch = encode_responses(tokenizer, prompts, responses).batch
    scorer = rewards_at(address, models).sources[0].scorer
    found, expected = scorer(batch), local_scorer(model, tokenizer, tokenizer)(batch)
    for name in ("sequence_scores", "prefix_scores"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4
        )


def test_two_outputs_of_a_trunk_in_bfloat16(models, two_outputs):
    model, tokenizer = local_model(models, "held-out")
    batch = encode_responses(tokenizer, PROMPTS[:4], RESPONSES).batch
    scorer = rewards_at(two_outputs, models).sources[0].scorer
    found, expected = scorer(batch), local_scorer(model, tokenizer, tokenizer)(batch)
    scale = expected.sequence_scores.std()
    difference = (found.sequence_scores - expected.sequence_scores).abs().max()
    assert 0 < difference < 0.2 * scale
    assert not torch.equal(found.sequence_scores, found.sequence_scores.bfloat16().float())


def test_a_training_is_paid_by_it(models, address, tmp_path):
    settings = {
        "sampling.top_k": 1,
        "sampling.logprobs_of": "unmasked",
        "credit.method": "prefix-difference",
    }
    train_policy(tiny_config(models, tmp_path / "own", **settings))
    train_policy(
        tiny_config(models, tmp_path / "served", reward_model=f"vllm+{address}", **settings)
    )
    pairs = zip(
        *(read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("own", "served")), strict=True
    )
    for own, served in pairs:
        assert served["score"] == pytest.approx(own["score"], abs=1e-4)
        assert served["policy_loss"] == pytest.approx(own["policy_loss"], abs=1e-4)


def test_tokens_of_a_file_are_scored_by_it(models, address, tmp_path):
    data = tmp_path / "answers.jsonl"
    rows = zip(PROMPTS, RESPONSES, strict=False)
    data.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in rows))
    found = []
    for name in (str(models / "reward"), f"vllm+{address}"):
        settings = {
            "data": str(data),
            "reward_model": name,
            "output": str(tmp_path / f"{len(found)}.jsonl"),
            "credit.method": "prefix-difference",
            "progress": False,
        }
        score_tokens(settings_from(ScoreTokensConfig, settings))
        found.append(read_jsonl(tmp_path / f"{len(found)}.jsonl"))
    assert len(found[1]) == 4
    for own, served in zip(*found, strict=True):
        assert own["tokens"] == served["tokens"]
        assert served["token_scores"] == pytest.approx(own["token_scores"], abs=1e-4)


def test_probabilities_are_what_they_look_like(models, address):
    """The stand-in says the same, and a server that says them only is refused."""
    scoring = scoring_server(RewardServer(address))
    asked = {"model": scoring.model, "task": "token_classify", "input": [PROBE]}
    said = {
        shaped: json_answer(
            scoring.server, _VLLM, "POST", "/pooling", {**asked, "use_activation": shaped}
        )["data"][0]["data"]
        for shaped in (False, True)
    }
    raw, shaped = (torch.tensor(said[key]) for key in (False, True))
    torch.testing.assert_close(raw.sigmoid(), shaped, atol=1e-5, rtol=0)


def test_texts_that_it_cannot_read_are_errors(models, address):
    scorer = rewards_at(address, models).sources[0].scorer
    _, tokenizer = local_model(models)
    long = encode_responses(tokenizer, ["a"], [" good" * 70]).batch
    with pytest.raises(DataError, match="expected at most 64"):
        scorer(long)
    with pytest.raises(DataError, match="out of vocabulary"):
        probed(scoring_server(RewardServer(address)), [1, 5000], outputs=1)


def test_a_server_that_scores_does_not_write(models, address, tmp_path):
    with pytest.raises(ServerError, match="is it a vLLM server with a model that writes"):
        train_policy(tiny_config(models, tmp_path, machine__vllm_server=address))


def test_one_score_per_text_and_a_head_in_half_precision(models, tmp_path):
    task = ("--runner", "pooling", "--pooler-config", '{"task":"classify"}')
    with (
        serving(models / "reward", tmp_path / "log", *task, "--max-model-len", "64") as address,
        pytest.raises(ServerError, match="start it with --runner pooling"),
    ):
        rewards_at(address, models)
    half = ("--dtype", "bfloat16", "--hf-overrides", '{"head_dtype":"bfloat16"}')
    with (
        serving(models / "reward", tmp_path / "log", *SCORING, *half) as address,
        pytest.raises(ConfigError, match="computes its head in bfloat16"),
    ):
        rewards_at(address, models)
