"""`generate` with methods that search: settings, models, and what was read."""

import math

import pytest
import torch
from generate_settings import SMALL_SEARCHES, method_config, written
from saved_models import save_reward_model
from tiny_policy import PROMPTS, write_models
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.cli import _parsed
from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.recipes.decoding.generate import GenerateConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("searched"))
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    with torch.no_grad():
        policy.lm_head.weight *= 1.5
    policy.save_pretrained(folder / "dpo")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "dpo")
    return folder


@pytest.mark.parametrize("method", [name for name in SMALL_SEARCHES if name != "best-of-n"])
def test_what_was_read_is_reported(models, tmp_path, method):
    rows, metrics = written(models, tmp_path / "out", method)
    tokens = sum(len(row["token_ids"]) for row in rows)
    for name in ("lm_positions", "reward_positions"):
        assert all(row[name] > len(row["token_ids"]) for row in rows)
        per_token = sum(row[name] for row in rows) / tokens
        assert metrics[f"{name}_per_token"] == pytest.approx(per_token)
    assert "kl" not in metrics


def test_what_sampling_reads(models, tmp_path):
    rows, plain = written(models, tmp_path / "one", "unguided")
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    for prompt, row in zip(PROMPTS, rows, strict=True):
        length = len([t for t in tokenizer(prompt)["input_ids"] if t != tokenizer.eos_token_id])
        assert row["lm_positions"] == length + len(row["token_ids"]) - 1
        assert row["reward_positions"] == 0
    _, best = written(models, tmp_path / "best", "best-of-n", n=4)
    assert best["lm_positions_per_token"] > 2 * plain["lm_positions_per_token"]
    assert best["reward_positions_per_token"] > best["lm_positions_per_token"]


@pytest.mark.parametrize("method", ["cards", "chunk-beam", "tree-bon", "speculative-rejection"])
def test_searching_finds_better_than_sampling(models, tmp_path, method):
    _, plain = written(models, tmp_path / "plain", "unguided")
    rows, metrics = written(models, tmp_path / "out", method)
    assert metrics["score"] > plain["score"]
    again, _ = written(models, tmp_path / "again", method)
    assert [row["token_ids"] for row in again] == [row["token_ids"] for row in rows]


def test_a_reward_model_with_another_tokenizer(models, tmp_path):
    save_reward_model(tmp_path / "other", byte_level(bos=True))
    other = str(tmp_path / "other")
    for method in ("cards", "chunk-beam"):
        rows, metrics = written(models, tmp_path / method, method, reward_model=other)
        assert len(rows) == len(PROMPTS)
        assert math.isfinite(metrics["score"])


def test_the_command_line_knows_the_settings():
    words = (
        "--policy p --reward_model r --prompts q --output o --method cards --cards.target_reward 2"
    )
    parsed = _parsed("generate", GenerateConfig, words.split())
    assert (parsed.method, parsed.cards.target_reward, parsed.cards.max_proposals) == (
        "cards",
        2.0,
        20,
    )


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("cards", {"cards.target_reward": None}, "target_reward is not given"),
        ("cards", {"guidance.beta": 1.0}, "expected a method that is guided"),
        ("cards", {"cards.max_proposals": 0}, "max_proposals is 0"),
        ("chunk-beam", {"chunk_beam.tokens": 0}, "tokens is 0"),
        ("chunk-beam", {"chunk_beam.beams": 0}, "beams is 0"),
        ("tree-bon", {"implicit.model": None}, "implicit.model is None"),
        ("tree-bon", {"n": 5}, "n is 5 and tree_bon.children 2"),
        ("tree-bon", {"tree_bon.children": 0}, "children is 0"),
        ("tree-bon", {"tree_bon.layers": 7}, "layers is 7"),
        ("pargs", {"implicit.model": "dpo"}, "implicit.model is 'dpo'"),
        ("implicit-beam", {"implicit_beam.beams": 0}, "beams is 0"),
        ("implicit-beam", {"implicit_beam.top_k": -1}, "top_k is -1"),
        ("cards", {"cards.acceptance_beta": -1.0}, "acceptance_beta is -1.0"),
        ("cards", {"cards.threshold_start": 2.0}, "threshold_start is 2.0"),
        ("cards", {"cards.target_reward": math.inf}, "target_reward is inf"),
        ("cards", {"cards.min_segment_tokens": 0}, "min_segment_tokens 0"),
        ("speculative-rejection", {"rejection.share": 1.0}, "rejection.share is 1.0"),
        ("speculative-rejection", {"rejection.check_every": 0}, "check_every is 0"),
        ("pargs", {"implicit.reference": "sft"}, "without implicit.model"),
    ],
)
def test_settings_that_do_not_fit(models, tmp_path, method, changes, message):
    with pytest.raises(ConfigError, match=message):
        method_config(models, tmp_path, method, **changes)


def test_an_implicit_model_that_reads_other_ids(models, tmp_path):
    save_reward_model(tmp_path / "other", byte_level())
    with pytest.raises(ModelError, match=r"implicit.model .* has another vocabulary"):
        written(
            models, tmp_path / "out", "implicit-beam", **{"implicit.model": str(tmp_path / "other")}
        )


def test_responses_that_do_not_fit(models, tmp_path):
    with pytest.raises(DataError, match="reads at most 64"):
        written(models, tmp_path / "out", "chunk-beam", **{"sampling.max_new_tokens": 64})
