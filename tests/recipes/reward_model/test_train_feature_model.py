"""Rewards of numbers that a function counts: trained by the command and named as rewards."""

import json

import pytest
from tiny_policy import tiny_config, write_models

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.reward_model.train_feature_model import (
    TrainFeatureModelConfig,
    train_feature_model,
)
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.features import feature_reward
from tokencredit.scorers.named_texts import named_text_scorer
from tokencredit.scorers.source_settings import RewardSource

COUNTS = """
def counts(prompts, responses):
    return [[text.count("good"), len(text.split())] for text in responses]


def ragged(prompts, responses):
    return [[1.0] * (1 + at) for at, _ in enumerate(responses)]


def infinite(prompts, responses):
    return [[float("inf")] for _ in responses]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"counts_{tmp_path.name}"  # a module of its own for each test
    (tmp_path / f"{name}.py").write_text(COUNTS)
    rows = [
        {"prompt": "film:", "chosen": " a good plot" + " and" * (at % 3),
         "rejected": " a plot" + " so" * (at % 4)}
        for at in range(20)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, name


def trained(folder, **changes):
    name = folder[1]
    settings = {"features": f"{name}:counts", "output": "rm", "data": "pairs.jsonl"} | changes
    return train_feature_model(TrainFeatureModelConfig(**settings))


def test_the_command_trains_what_scores_like_its_function(folder):
    path, name = folder
    told = ["--data", "pairs.jsonl", "--features", f"{name}:counts", "--output", "rm"]
    assert main(["train-feature-model", *told]) == 0
    metrics = json.loads((path / "rm/metrics.json").read_text())
    assert (metrics["pairs"], metrics["held_out_pairs"]) == (16, 4)
    assert metrics["accuracy"]["accuracy"] == metrics["held_out_accuracy"]["accuracy"] == 1.0
    assert metrics["weights"][0] > 0
    good, bad = feature_reward("rm")(["q", "q"], [" good", " bad"])
    assert good > bad
    found = named_text_scorer("rm")(["q", "q"], [" good", " bad"], [True, True])
    assert found.tolist() == pytest.approx([good, bad])


def test_a_policy_learns_from_it(folder):
    path, _ = folder
    trained(folder, held_out=0.0)
    models = write_models(path / "models")
    assert not RewardSource("rm").is_reward_model
    shown = {"record.sample_every": 1, "record.sample_count": 2}
    settings = {"reward_model": "rm", "credit.method": "prefix-difference"}
    train_policy(tiny_config(models, path / "run", steps=1, **settings, **shown))
    for row in read_jsonl(path / "run" / "samples.jsonl"):
        (expected,) = feature_reward("rm")([row["prompt"]], [row["response"]])
        assert row["score"] == pytest.approx(expected, abs=1e-4)


def test_functions_and_settings_that_cannot_be(folder):
    _, name = folder
    with pytest.raises(DataError, match="same length"):
        trained(folder, features=f"{name}:ragged")
    with pytest.raises(DataError, match="finite numbers for each"):
        trained(folder, features=f"{name}:infinite")
    with pytest.raises(DataError, match="expected a folder of train-feature-model"):
        feature_reward("nothing")
    for wrong in ({"features": "my/model"}, {"held_out": 1.0}, {"ridge": 0.0}, {"hidden": -1}):
        with pytest.raises(ConfigError, match="expected"):
            trained(folder, **wrong)
