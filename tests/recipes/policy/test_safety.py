"""`tokencredit test-safety`: a verdict with its exit status, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
from tiny_policy import tiny_config, write_models

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError, RunFolderError, TokenCreditError
from tokencredit.recipes.policy import safety
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from

HELD_OUT = ("the film was", "a plot", "his comedy", "the cast was", "this music", "her first")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def costs(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "text_costs.py").write_text(
        "def length(prompts, responses):\n"
        "    return [float(len(one.split())) for one in responses]\n"
        "def silent(prompts, responses):\n    return []\n"
        "def alike(prompts, responses):\n    return [0.0] * len(responses)\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "text_costs", raising=False)
    with (folder / "held-out.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in HELD_OUT)


def config_of(models, output, **changes):
    settings = {
        "policy": str(models / "policy"),
        "cost": "text_costs:length",
        "prompts": "held-out.jsonl",
        "output": str(output),
        "threshold": 5.0,
        "sampling.max_new_tokens": 5,
        "batch_size": 4,
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return settings_from(safety.TestSafetyConfig, {**settings, **changed})


def command(models, output, *more):
    arguments = {
        "policy": models / "policy",
        "cost": "text_costs:length",
        "prompts": "held-out.jsonl",
        "output": output,
        "sampling.max_new_tokens": 5,
    }
    given = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    return main(["test-safety", *given, *more])


def test_a_verdict_is_that_of_the_costs_of_all_prompts(models, tmp_path):
    report = safety.test_safety(config_of(models, tmp_path / "test"))
    rows = read_jsonl(tmp_path / "test" / "responses.jsonl")
    assert [row["prompt"] for row in rows] == list(HELD_OUT)
    numbers = [row["cost"] for row in rows]
    assert numbers == [float(len(row["response"].split())) for row in rows]
    assert report.verdict.mean == pytest.approx(sum(numbers) / len(numbers))
    assert report.verdict.bound >= report.verdict.mean
    stands = json.loads((tmp_path / "test" / "safety.json").read_text())
    assert stands == vars(report.verdict)


def test_exit_status_0_for_a_safe_policy_and_3_for_no_solution(models, tmp_path, capsys):
    assert command(models, tmp_path / "safe", "--threshold", "50") == 0
    assert "safe: the mean cost of 6 responses" in capsys.readouterr().out
    assert command(models, tmp_path / "unsafe", "--threshold", "-1") == 3
    assert "no solution: the mean cost of 6 responses" in capsys.readouterr().out
    assert (tmp_path / "unsafe" / "safety.json").is_file()
    assert command(models, tmp_path / "none", "--failure_probability", "0") == 1
    assert not (tmp_path / "none").exists()


def test_a_test_is_made_once(models, tmp_path, monkeypatch):
    config = config_of(models, tmp_path)
    first = safety.test_safety(config)
    monkeypatch.setattr(safety, "_answers", None)  # nothing is drawn again
    assert safety.test_safety(config) == first
    with pytest.raises(RunFolderError, match="seed: 0 -> 1"):
        safety.test_safety(config_of(models, tmp_path, seed=1))


def test_prompts_of_the_training_are_refused(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "run", steps=1, batch_size=2))
    policy = str(tmp_path / "run" / "policy")
    seen = str(models / "prompts.jsonl")
    with pytest.raises(DataError, match="6 of 6 prompts are among those of"):
        safety.test_safety(config_of(models, tmp_path / "test", policy=policy, prompts=seen))
    with pytest.raises(DataError, match="which the policy was trained on"):
        safety.test_safety(config_of(models, tmp_path / "test", prompts=seen, trained_on=seen))
    assert not (tmp_path / "test").exists()
    found = safety.test_safety(config_of(models, tmp_path / "test", policy=policy))
    assert found.verdict.count == 6


def written_run(folder, **settings):
    """A run folder as far as a safety test reads it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("place", ["policy", "checkpoints/step-000002/policy"])
def test_prompts_of_the_training_are_found_around_a_policy(models, tmp_path, monkeypatch, place):
    monkeypatch.setattr(safety, "_answers", None)  # nothing is drawn
    policy = str(written_run(tmp_path / "run", prompts="held-out.jsonl") / place)
    with pytest.raises(DataError, match="6 of 6 prompts are among those of held-out"):
        safety.test_safety(config_of(models, tmp_path / "test", policy=policy))


def test_prompts_of_responses_of_others_were_trained_on_too(models, tmp_path, monkeypatch):
    monkeypatch.setattr(safety, "_answers", None)
    Path("others.jsonl").write_text(json.dumps({"question": HELD_OUT[1], "completion": "good"}))
    soft_q = {"data": "others.jsonl", "prompt": "question"}
    seen = str(models / "prompts.jsonl")
    policy = str(written_run(tmp_path / "run", prompts=seen, soft_q=soft_q) / "policy")
    with pytest.raises(DataError, match="1 of 6 prompts are among those of others"):
        safety.test_safety(config_of(models, tmp_path / "test", policy=policy))


def test_all_prompts_of_the_training_count_whatever_is_left_of_the_test(
    models, tmp_path, monkeypatch
):
    monkeypatch.setattr(safety, "_answers", None)
    rows = [{"prompt": prompt} for prompt in reversed(HELD_OUT)]
    Path("seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"trained_on": "seen.jsonl", "data.limit": 2}
    with pytest.raises(DataError, match="2 of 2 prompts are among those of seen"):
        safety.test_safety(config_of(models, tmp_path / "test", **settings))


def test_hoeffding_needs_no_deviation(models, tmp_path, capsys):
    settings = {"cost": "text_costs:alike", "threshold": 0.5}
    assert safety.test_safety(config_of(models, tmp_path / "student", **settings)).exit_status == 0
    assert "costs that are rare" in capsys.readouterr().out
    bound = {"bound": "hoeffding", "cost_range": (0.0, 1.0)}
    found = safety.test_safety(config_of(models, tmp_path / "hoeffding", **settings, **bound))
    assert found.verdict.bound == pytest.approx(0.4997, abs=1e-4)


def test_prompts_that_come_twice_count_once(models, tmp_path):
    with Path("held-out.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": HELD_OUT[0]}) + "\n")
    assert safety.test_safety(config_of(models, tmp_path)).verdict.count == 6


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"failure_probability": 1.0}, ConfigError, "failure_probability is 1.0; expected"),
        ({"bound": "hoeffding"}, ConfigError, "cost_range None; expected a range"),
        ({"cost_range": (0.0, 1.0)}, ConfigError, "none for 'student'"),
        ({"data.tokens": [1, 2]}, ConfigError, "expected whole prompts"),
        ({"sampling.truncated": "mask"}, ConfigError, "every response counts"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"data.limit": 1}, DataError, "there are 1 costs; expected at least 2"),
        ({"cost": "text_costs:silent"}, DataError, "gives 0 scores for 4 responses"),
        ({"cost": "text_costs:none"}, ConfigError, "there is no function text_costs:none"),
    ],
)
def test_what_cannot_be_leaves_nothing(models, tmp_path, changes, error, message):
    assert issubclass(error, TokenCreditError)
    with pytest.raises(error, match=message):
        safety.test_safety(config_of(models, tmp_path / "test", **changes))
    assert not (tmp_path / "test").exists()
