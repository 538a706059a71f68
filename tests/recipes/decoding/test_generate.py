"""`generate`: every method writes its responses, and says what they cost."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from generate_settings import generate_config
from tiny_policy import PROMPTS, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tokencredit.cli import _parsed, main
from tokencredit.decoding.rules import GUIDANCE_METHODS, GuidanceMethod
from tokencredit.decoding.search.hf_methods import SEARCHES, Search, _best_of_n
from tokencredit.errors import ConfigError
from tokencredit.recipes.decoding.generate import GenerateConfig, generate
from tokencredit.recipes.run.run_folder import read_jsonl


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
        "sampling.max_new_tokens": 6,
        "batch_size": 4,
        "n": 3,
        "progress": False,
    }
    return generate_config(**{**settings, **changes})


def found(models: Path, output: Path, **changes: Any) -> tuple[list[dict], dict[str, float]]:
    rows = read_jsonl(generate(config(models, output, **changes)))
    return rows, json.loads((output / "metrics.json").read_text())


def prompt_ids(models: Path) -> list[torch.Tensor]:
    """The ids that each prompt is read as."""
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    texts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    return [torch.tensor([[t for t in ids if t != tokenizer.eos_token_id]]) for ids in texts]


def needed(models: Path, method: str) -> dict[str, Any]:
    """Settings without which the method does not run."""
    settings: dict[str, Any] = {"method": method}
    if method in GUIDANCE_METHODS and GUIDANCE_METHODS[method].needs == "vocabulary":
        settings["reward_model"] = str(models / "policy")
    if method in SEARCHES and "implicit model" in SEARCHES[method].needs:
        settings["implicit.model"] = str(models / "policy")
    if method == "cards":
        settings |= {"cards.target_reward": 1.0, "cards.max_proposals": 3}
    if method == "tree-bon":
        settings["tree_bon.children"] = 3
    return settings


@pytest.mark.parametrize("method", [*GUIDANCE_METHODS, *SEARCHES])
def test_every_method_answers_every_prompt(models, tmp_path, method):
    rows, metrics = found(models, tmp_path / "out", **needed(models, method))
    assert len(rows) == len(PROMPTS)
    assert all(1 <= len(row["token_ids"]) <= 6 for row in rows)
    assert {"score", "held_out_score", "diversity", "length", "tokens_per_second"} <= set(metrics)
    assert metrics["score"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    guided = method in GUIDANCE_METHODS
    assert all(("steps" in row) == guided for row in rows)
    assert all(("lm_positions" in row) != guided for row in rows)
    assert ("lm_positions_per_token" in metrics) != guided


def test_steps_hold_candidates_and_the_score_of_the_whole_text_at_the_end(models, tmp_path):
    rows, _ = found(models, tmp_path / "out", method="pargs", **{"guidance.top_k": 5})
    for row in rows:
        assert len(row["steps"]) == len(row["token_ids"])
        assert all(len(step["candidates"]) == 5 for step in row["steps"])
        assert row["steps"][-1]["score"] == pytest.approx(row["score"], abs=1e-3)
        assert row["steps"][1]["prefix_score"] == row["steps"][0]["score"]


def test_more_guidance_scores_higher_and_costs_more(models, tmp_path):
    _, weak = found(models, tmp_path / "weak", method="args-greedy", **{"guidance.beta": 0.0})
    _, strong = found(models, tmp_path / "strong", method="args-greedy", **{"guidance.beta": 50.0})
    assert strong["score"] > weak["score"]
    assert strong["kl"] > weak["kl"]


def test_without_guidance_greedy_is_that_of_the_model(models, tmp_path):
    rows, _ = found(models, tmp_path / "out", method="args-greedy", **{"guidance.beta": 0.0})
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    for row, ids in zip(rows, prompt_ids(models), strict=True):
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


@pytest.mark.parametrize("method", ["unguided", "best-of-n", "pargs", "chunk-beam"])
def test_sampling_tells_wherever_tokens_are_drawn(models, tmp_path, method):
    """The temperature there is, and a top-k that no method leaves out."""
    n = 1 if method == "best-of-n" else 3

    def tokens(name, **sampling):
        changes = {f"sampling.{key}": value for key, value in sampling.items()}
        rows, _ = found(models, tmp_path / name, method=method, n=n, **changes)
        return [row["token_ids"] for row in rows]

    plain, first = tokens("plain"), tokens("one", top_k=1)
    assert tokens("hot", temperature=5.0) != plain != first
    assert first == tokens("cold", temperature=0.0) == tokens("few", top_p=1e-6)


def test_the_published_temperature_gives_way(models, tmp_path):
    changes = {"method": "args-stochastic", "sampling.temperature": 1.0}
    rows, _ = found(models, tmp_path / "warm", **changes)
    own, _ = found(models, tmp_path / "own", method="args-stochastic")
    same, _ = found(models, tmp_path / "same", **changes | {"sampling.temperature": 0.7})
    assert [row["token_ids"] for row in own] == [row["token_ids"] for row in same]
    assert [row["token_ids"] for row in own] != [row["token_ids"] for row in rows]


def test_a_row_in_a_table_is_a_method_of_the_command_line(models, tmp_path, monkeypatch):
    wanted = ["--policy", str(models / "policy"), "--prompts", str(models / "prompts.jsonl")]
    wanted += ["--sampling.max_new_tokens", "4", "--progress", "false"]

    def best_of_twice(task, settings):
        drawn = _best_of_n(dataclasses.replace(task, n=task.n * settings.beams), None)
        asked.append((task.n, settings.beams))
        return drawn

    asked: list[tuple[int, int]] = []
    twice = Search("n and n responses", "2 n responses", best_of_twice, settings="chunk_beam")
    monkeypatch.setitem(SEARCHES, "best-of-twice", twice)
    monkeypatch.setitem(
        GUIDANCE_METHODS,
        "against",
        GuidanceMethod(
            "away from a model",
            "",
            {"guidance_beta": -2.0, "top_k": 0},
            {"do_sample": False},
            needs="vocabulary",
            vocabulary_scores="logprobs",
        ),
    )
    scores = ["--reward_model", str(models / "reward"), "--output", str(tmp_path / "search")]
    search = ["--method", "best-of-twice", "--n", "3", "--chunk_beam.beams", "2"]
    assert main(["generate", *wanted, *scores, *search]) == 0
    assert asked == [(3, 2)]
    assert len(read_jsonl(tmp_path / "search" / "responses.jsonl")) == len(PROMPTS)

    guide = ["--reward_model", str(models / "policy"), "--output", str(tmp_path / "guided")]
    assert main(["generate", *wanted, *guide, "--method", "against"]) == 0
    # Less itself twice, the policy writes what it would write last.
    rows = read_jsonl(tmp_path / "guided" / "responses.jsonl")
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    for row, ids in zip(rows, prompt_ids(models), strict=True):
        assert row["token_ids"][0] == int(model(ids).logits[0, -1].argmin())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"n": 0}, "n is 0"),
        ({"method": "pargz"}, r"method is 'pargz'.*did you mean 'pargs'"),
        ({"method": "best-of-m"}, r"method is 'best-of-m'.*did you mean 'best-of-n'"),
        ({"method": "unguided", "guidance.beta": 1.0}, "expected a method that is guided"),
        ({"method": "best-of-n", "guidance.top_k": 5}, "guidance.top_k is 5.*sampling.top_k"),
        ({"method": "chunk-beam", "rejection.share": 0.1}, "reads the settings of chunk_beam"),
        ({"method": "pargs", "cards.target_reward": 1.0}, "expected method 'cards'"),
        ({"method": "pargs-greedy", "sampling.temperature": 2.0}, "a method that draws tokens"),
        ({"method": "best-of-n", "sampling.temperature": 0.0}, "n is 3 and temperature 0.0"),
        ({"sampling.temperature": -1.0}, "temperature is -1.0"),
        ({"sampling.top_p": 0.0}, "top_p 0.0"),
        ({"guidance.top_p": 0.0}, "top_p 0.0"),
        ({"guidance.top_k": -1}, "top_k is -1"),
        ({"guidance.beta": math.nan}, "beta is nan"),
        ({"data.limit": 0}, "limit is 0"),
        ({"data.tokens": 0}, "tokens is 0"),
    ],
)
def test_settings_that_do_not_fit(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(models, tmp_path, **changes)


@pytest.mark.parametrize(
    ("old", "new"),
    {
        "guidance_beta": "guidance.beta",
        "top_k": "guidance.top_k",
        "top_p": "guidance.top_p",
        "scorer": "guidance.scorer",
        "target_reward": "cards.target_reward",
        "acceptance_beta": "cards.acceptance_beta",
        "threshold_start": "cards.threshold_start",
        "entropy_threshold": "cards.entropy_threshold",
        "max_proposals": "cards.max_proposals",
        "chunk_tokens": "chunk_beam.tokens",
        "beams": "chunk_beam.beams",
        "rejection_share": "rejection.share",
        "layers": "tree_bon.layers",
        "children": "tree_bon.children",
        "implicit_model": "implicit.model",
        "implicit_reference": "implicit.reference",
        "prompt_column": "data.column",
        "max_prompts": "data.limit",
        "prompt_tokens": "data.tokens",
        "min_new_tokens": "sampling.min_new_tokens",
        "max_new_tokens": "sampling.max_new_tokens",
        "pad_token": "loading.pad_token",
        "dtype": "loading.dtype",
        "trust_remote_code": "loading.trust_remote_code",
    }.items(),
)
def test_names_of_the_flat_layout_are_told_the_new_one(tmp_path, old, new):
    needed = ["--policy", "p", "--reward_model", "r", "--prompts", "q", "--output", "o"]
    file = tmp_path / "old.yaml"
    file.write_text(f"{old}: 1\n")
    for words in ([f"--{old}", "1"], ["--config", str(file)]):
        with pytest.raises(ConfigError, match=f"'{old}' is now '{new}'"):
            _parsed("generate", GenerateConfig, [*needed, *words])


def test_generation_defaults_of_the_policy_do_not_tell(models, tmp_path):
    changed = shutil.copytree(models, tmp_path / "models")
    defaults = GenerationConfig(do_sample=True, temperature=9.0, top_k=2, top_p=0.5)
    defaults.save_pretrained(changed / "policy")
    for method in ("unguided", "best-of-n"):
        plain, _ = found(models, tmp_path / "plain" / method, method=method)
        rows, _ = found(changed, tmp_path / "changed" / method, method=method)
        assert [row["token_ids"] for row in rows] == [row["token_ids"] for row in plain]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_reads_a_group_that_no_other_search_reads(name):
    own = SEARCHES[name].settings
    readers = [other for other, search in SEARCHES.items() if search.settings == own]
    assert own is None or readers == [name]
    kinds = get_type_hints(GenerateConfig)
    assert own is None or len(dataclasses.fields(kinds[own])) <= 15
