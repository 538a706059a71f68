"""`generate`: every method writes its responses, and says what they cost."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_policy import PROMPTS, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.errors import ConfigError
from tokencredit.recipes.decoding.generate import GenerateConfig, Method, generate
from tokencredit.recipes.decoding.methods import SEARCH_METHODS
from tokencredit.recipes.run_folder import read_jsonl
from tokencredit.scorers.vocabulary import VOCABULARY_METHODS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("guided"))


def config(models: Path, output: Path, **changes: Any) -> GenerateConfig:
    settings: dict[str, Any] = {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "held_out_reward_model": str(models / "held-out"),
        "prompts": str(models / "prompts.jsonl"),
        "output": str(output),
        "max_new_tokens": 6,
        "batch_size": 4,
        "n": 3,
        "progress": False,
    }
    return GenerateConfig(**{**settings, **changes})


def found(models: Path, output: Path, **changes: Any) -> tuple[list[dict], dict[str, float]]:
    rows = read_jsonl(generate(config(models, output, **changes)))
    return rows, json.loads((output / "metrics.json").read_text())


def needed(models: Path, method: str) -> dict[str, Any]:
    """Settings without which the method does not run."""
    settings: dict[str, Any] = {"method": method}
    if method in VOCABULARY_METHODS:
        settings["reward_model"] = str(models / "policy")
    if method == "cards":
        settings |= {"target_reward": 1.0, "max_proposals": 3}
    if method in ("tree-bon", "implicit-beam"):
        settings |= {"implicit_model": str(models / "policy"), "children": 3}
    return settings


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_answers_every_prompt(models, tmp_path, method):
    rows, metrics = found(models, tmp_path / "out", **needed(models, method))
    assert len(rows) == len(PROMPTS)
    assert all(1 <= len(row["token_ids"]) <= 6 for row in rows)
    assert {"score", "held_out_score", "diversity", "length", "tokens_per_second"} <= set(metrics)
    assert metrics["score"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    guided = method not in ("unguided", "best-of-n", *SEARCH_METHODS)
    assert all(("steps" in row) == guided for row in rows)
    assert all(("lm_positions" in row) != guided for row in rows)
    assert ("lm_positions_per_token" in metrics) != guided


def test_steps_hold_candidates_and_the_score_of_the_whole_text_at_the_end(models, tmp_path):
    rows, _ = found(models, tmp_path / "out", method="pargs", top_k=5)
    for row in rows:
        assert len(row["steps"]) == len(row["token_ids"])
        assert all(len(step["candidates"]) == 5 for step in row["steps"])
        assert row["steps"][-1]["score"] == pytest.approx(row["score"], abs=1e-3)
        assert row["steps"][1]["prefix_score"] == row["steps"][0]["score"]


def test_more_guidance_scores_higher_and_costs_more(models, tmp_path):
    _, weak = found(models, tmp_path / "weak", method="args-greedy", guidance_beta=0.0)
    _, strong = found(models, tmp_path / "strong", method="args-greedy", guidance_beta=50.0)
    assert strong["score"] > weak["score"]
    assert strong["kl"] > weak["kl"]


def test_without_guidance_greedy_is_that_of_the_model(models, tmp_path):
    rows, _ = found(models, tmp_path / "out", method="args-greedy", guidance_beta=0.0)
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = torch.tensor(
            [[t for t in tokenizer(prompt)["input_ids"] if t != model.config.eos_token_id]]
        )
        alone = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert alone.tolist() == row["token_ids"]


def test_best_of_n_is_no_worse_than_one(models, tmp_path):
    _, one = found(models, tmp_path / "one", method="best-of-n", n=1)
    _, best = found(models, tmp_path / "best", method="best-of-n", n=16)
    assert best["score"] > one["score"]
    assert best["kl_at_most"] == pytest.approx(math.log(16) - 15 / 16)
    assert one["kl_at_most"] == 0.0


def test_the_same_seed_gives_the_same_responses(models, tmp_path):
    first, _ = found(models, tmp_path / "a", seed=3)
    again, _ = found(models, tmp_path / "b", seed=3)
    other, _ = found(models, tmp_path / "c", seed=4)
    assert [row["token_ids"] for row in first] == [row["token_ids"] for row in again]
    assert [row["token_ids"] for row in first] != [row["token_ids"] for row in other]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"method": "unguided", "guidance_beta": 1.0}, "expected a method that is guided"),
    ],
)
def test_settings_that_do_not_fit(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(models, tmp_path, **changes)
