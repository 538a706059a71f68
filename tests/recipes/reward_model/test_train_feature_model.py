"""Rewards of numbers that a function counts: trained by the command and named as rewards."""

import json

import pytest
from tiny_policy import tiny_config, write_models

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.reward_model.evaluate_reward_model import EvaluateRewardModelConfig
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


def test_it_is_evaluated_on_pairs_by_the_words_that_were_seen(folder):
    path, _ = folder
    trained(folder, held_out=0.0)
    rows = [
        {"prompt": "film:", "chosen": " a good plot with a cast", "rejected": " a plot"},
        {"prompt": "film:", "chosen": " a plot that is at last good", "rejected": " a plot"},
        {
            "prompt": [{"role": "user", "content": "film:"}],
            "chosen": " so good",
            "rejected": " and good",
        },
    ]
    (path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ["--reward_model", "rm", "--data", "judged.jsonl", "--output", "found"]
    assert main(["evaluate-reward-model", *told, "--progress", "false"]) == 0
    found = json.loads((path / "found/evaluation.json").read_text())
    assert (found["kind"], found["reference"]) == ("features", None)
    assert found["accuracy"]["accuracy"] == pytest.approx(2.5 / 3)
    # " a good" of six words is seen after 40 %, the last of seven words at the end alone.
    reward = feature_reward("rm")
    first, second, _ = read_jsonl(path / "found/pairs.jsonl")
    beginnings = [" a good", " a good plot", " a good plot with", " a good plot with a"]
    expected = reward(["film:"] * 5, [*beginnings, rows[0]["chosen"]])
    assert first["chosen_scores"] == pytest.approx(expected)
    assert second["chosen_scores"][-1] > max(second["chosen_scores"][:-1])
    bench = json.loads((path / "found/rewardbench/eval-set-scores/rm.json").read_text())
    assert bench["text_chosen"] == ["film:" + row["chosen"] for row in rows]
    assert bench["model_type"] == "Custom Classifier"
    near = ["--neighbours.data", "judged.jsonl", "--output", "near"]
    assert main(["evaluate-reward-model", *told[:4], *near, "--progress", "false"]) == 0
    with pytest.raises(ConfigError, match="expected none of them"):
        EvaluateRewardModelConfig("rm", "judged.jsonl", "out", kind="implicit")


def test_a_policy_is_compared_with_it_while_it_learns_from_another(folder):
    path, _ = folder
    trained(folder, held_out=0.0)
    models = write_models(path / "models")
    shown = {"record.sample_every": 1, "record.sample_count": 4}
    train_policy(tiny_config(models, path / "run", steps=1, held_out_reward_model="rm", **shown))
    (row,) = read_jsonl(path / "run" / "metrics.jsonl")
    samples = read_jsonl(path / "run" / "samples.jsonl")
    texts = [one["prompt"] for one in samples], [one["response"] for one in samples]
    assert row["held_out_score"] == pytest.approx(sum(feature_reward("rm")(*texts)) / 4, abs=1e-4)


@pytest.mark.parametrize("command", ["compare-credit", "generate", "fit-credit"])
def test_what_reads_tokens_refuses_it(folder, command, capsys):
    path, _ = folder
    trained(folder, held_out=0.0)
    models = write_models(path / "models")
    (path / "marked.jsonl").write_text('{"text": "a good film", "label": 1, "spans": [[2, 6]]}\n')
    told = {
        "compare-credit": ["--marked", "marked.jsonl", "--output", "out"],
        "generate": ["--policy", str(models / "policy"), "--prompts",
                     str(models / "prompts.jsonl"), "--output", "out.jsonl"],
        "fit-credit": ["--data", "answers.jsonl", "--output", "out"],
    }[command]  # fmt: skip
    (path / "answers.jsonl").write_text('{"prompt": "a", "response": " good"}\n')
    assert main([command, "--reward_model", "rm", *told]) == 1
    assert "'rm' is a folder of train-feature-model" in capsys.readouterr().err
