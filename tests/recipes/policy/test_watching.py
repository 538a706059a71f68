"""What is watched of a run: when it stops, which checkpoint is best, its figure, its judge."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from several_processes import CERTAIN, finished
from tiny_policy import by_command, tiny_config, write_models

from tokencredit.errors import ConfigError
from tokencredit.recipes.policy import opened_run
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.policy.watch_groups import StopSettings
from tokencredit.recipes.policy.watching import (
    held_out_now,
    plot_run,
    reason_to_stop,
    running_means,
)
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.run.stop_signals import StopRequest


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def history(held_out=(), kl=()) -> list[dict[str, float]]:
    steps = max(len(held_out), len(kl))
    held_out, kl = held_out or [0.0] * steps, kl or [0.0] * steps
    return [{"kl": k, "score": 1.0, "held_out_score": h} for k, h in zip(kl, held_out, strict=True)]


def weights(folder, name="policy"):
    return load_file(folder / name / "model.safetensors")


def same(first, second) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_means_are_those_of_the_last_steps():
    assert running_means([1.0, 3.0, 8.0, 0.0], 2) == [1.0, 2.0, 5.5, 4.0]
    assert running_means([], 3) == []
    assert held_out_now(history([1.0, 2.0, 6.0]), 2) == 4.0
    assert held_out_now([{"kl": 0.0, "score": 1.0}], 2) is None


@pytest.mark.parametrize(
    ("held_out", "falls", "stops"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1, False),
        ([1.0, 4.0, 3.0], 1, True),
        ([1.0, 4.0, 3.0], 2, False),
        ([1.0, 4.0, 3.0, 3.5], 2, True),
        ([1.0, 4.0, 3.0, 5.0], 2, False),
        ([4.0, 1.0, 1.0, 5.0, 2.0], 2, False),
    ],
)
def test_a_run_stops_where_the_held_out_score_has_fallen_for_some_steps(held_out, falls, stops):
    settings = StopSettings(held_out_falls=falls, window=1)
    reason = reason_to_stop(history(held_out), settings)
    assert (reason is not None) == stops
    if stops:
        assert "the held-out score is 3" in reason
        assert "was 4" in reason


def test_means_over_the_window_decide():
    noisy = [1.0, 2.0, 1.5, 2.5, 2.0, 3.0]
    assert reason_to_stop(history(noisy), StopSettings(held_out_falls=1, window=2)) is None
    assert reason_to_stop(history(noisy[:5]), StopSettings(held_out_falls=1, window=1)) is not None
    falling = [5.0, 5.0, 1.0]
    assert reason_to_stop(history(falling), StopSettings(held_out_falls=1, window=3)) is None


def test_a_run_stops_where_its_kl_is_too_high():
    settings = StopSettings(kl_above=3.0, window=2)
    assert reason_to_stop(history(kl=[9.0]), settings) is None  # one step says little
    assert reason_to_stop(history(kl=[1.0, 5.0]), settings) is None
    reason = reason_to_stop(history(kl=[1.0, 5.5]), settings)
    assert reason == "the KL is 3.25 nats and stop_when.kl_above 3"


def test_nothing_asked_stops_nothing():
    assert reason_to_stop(history([5.0] + [0.0] * 50, [90.0] * 51), StopSettings()) is None
    assert reason_to_stop([], StopSettings(held_out_falls=1, kl_above=1.0)) is None


def test_a_run_that_stops_has_its_policy_and_stays_stopped(models, tmp_path, capsys):
    settings = {"stop_when.kl_above": 1e-3, "stop_when.window": 1, "kl.estimator": "k3"}
    for _ in range(2):  # the second time nothing is left to do
        policy = train_policy(tiny_config(models, tmp_path, steps=6, **settings))
        assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1]
        assert "stopped after 2 of 6 steps: the KL is" in capsys.readouterr().err
    last = tmp_path / "checkpoints" / "step-000002" / "policy" / "model.safetensors"
    assert same(load_file(last), load_file(policy / "model.safetensors"))


def test_with_a_higher_bound_it_goes_on_as_if_it_had_never_stopped(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "whole", steps=4, kl__estimator="k3"))
    settings = {"kl.estimator": "k3", "stop_when.window": 1}
    train_policy(tiny_config(models, tmp_path / "halves", stop_when__kl_above=1e-3, **settings))
    train_policy(
        tiny_config(models, tmp_path / "halves", steps=4, stop_when__kl_above=1e9, **settings)
    )
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "halves"))


def test_the_best_checkpoint_stays_and_its_policy_is_written(models, tmp_path, monkeypatch):
    judged = iter([1.0, 5.0, 2.0, 1.0, 0.0])
    real = recipe.step_metrics

    def falling(*args, **options):
        return {**real(*args, **options), "held_out_score": next(judged)}

    monkeypatch.setattr(recipe, "step_metrics", falling)
    settings = {"held_out_reward_model": str(models / "held-out"), "stop_when.window": 1}
    settings |= {"record.keep_checkpoints": 1, "stop_when.held_out_falls": 2}
    train_policy(tiny_config(models, tmp_path, steps=5, **settings))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000004"]
    best = tmp_path / "checkpoints" / "step-000002" / "policy" / "model.safetensors"
    assert same(load_file(best), weights(tmp_path, "policy-best"))
    assert not same(load_file(best), weights(tmp_path))
    state = json.loads((tmp_path / "checkpoints/step-000004/state.json").read_text())
    assert (state["best_step"], state["best_held_out_score"]) == (2, 5.0)


def test_resumed_it_knows_the_best(models, tmp_path):
    settings = {"held_out_reward_model": str(models / "held-out"), "record.keep_checkpoints": 1}
    train_policy(tiny_config(models, tmp_path / "whole", steps=4, **settings))
    train_policy(tiny_config(models, tmp_path / "halves", steps=2, **settings))
    train_policy(tiny_config(models, tmp_path / "halves", steps=4, **settings))
    whole, halves = (
        json.loads((tmp_path / name / "checkpoints/step-000004/state.json").read_text())
        for name in ("whole", "halves")
    )
    assert whole == halves
    assert whole["best_step"] is not None
    assert same(
        weights(tmp_path / "whole", "policy-best"), weights(tmp_path / "halves", "policy-best")
    )


def test_a_best_checkpoint_that_was_deleted_costs_nothing_but_itself(models, tmp_path):
    config = tiny_config(models, tmp_path, steps=2, held_out_reward_model=str(models / "held-out"))
    run, state = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    recipe._train(run, state, StopRequest())
    shutil.rmtree(tmp_path / "checkpoints" / "step-000001")
    state.best_step = 1
    recipe._conclude(run, state, ended=True)
    assert (tmp_path / "policy").is_dir()
    assert not (tmp_path / "policy-best").exists()


def test_without_a_judge_nothing_is_best(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1))
    assert not (tmp_path / "policy-best").exists()


def test_the_figure_shows_both_scores_against_the_kl(models, tmp_path, monkeypatch):
    drawn = {}

    def kept(lines, path, *, title):
        drawn.update(lines)
        path.write_text(title)
        return path

    monkeypatch.setattr("tokencredit.evaluation.plots.plot_frontier", kept)
    plot_run(history([1.0, 3.0], [2.0, 4.0]), 2, tmp_path)
    assert drawn == {
        "score": ([2.0, 3.0], [1.0, 1.0]),
        "held out score": ([2.0, 3.0], [1.0, 2.0]),
    }
    train_policy(tiny_config(models, tmp_path / "run", steps=1, record__figure=True))
    assert (tmp_path / "run" / "frontier.png").exists()


def test_every_run_has_its_figure(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1, record__figure=True))
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_function_judges_from_the_command_line(models, tmp_path, monkeypatch):
    (tmp_path / "judges.py").write_text(
        "def brevity(prompts, responses):\n    return [-float(len(r)) for r in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = {
        "held_out_reward_model": "judges:brevity",
        "steps": 2,
        "sampling.max_new_tokens": 5,
        "stop_when.kl_above": 1e9,
        "stop_when.held_out_falls": 2,
        "record.sample_every": 1,
    }
    row, _ = by_command(models, tmp_path / "run", **arguments)
    samples = [s for s in read_jsonl(tmp_path / "run" / "samples.jsonl") if s["step"] == 0]
    mean = sum(-len(sample["response"]) for sample in samples) / 4
    assert row["held_out_score"] == pytest.approx(mean, abs=1e-6)
    assert {"frontier.png", "policy", "policy-best"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }


def test_two_processes_stop_together(models, tmp_path):
    settings = {**CERTAIN, "stop_when.window": 1, "stop_when.kl_above": 1e-6, "kl.estimator": "k3"}
    settings["held_out_reward_model"] = str(models / "held-out")
    job = {"models": str(models), "environment": {}, "steps": 5, **settings}
    finished(tmp_path, [{**job, "output": str(tmp_path / "two")}])
    assert len(read_jsonl(tmp_path / "two" / "metrics.jsonl")) == 2
    assert (tmp_path / "two" / "policy-best").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_when.held_out_falls": 3}, r"held_out_falls is 3 and there is no held_out_reward"),
        ({"stop_when.held_out_falls": 0}, r"stop_when\.held_out_falls is 0"),
        ({"stop_when.window": 0}, r"stop_when\.window is 0"),
        ({"stop_when.kl_above": 0.0}, r"stop_when\.kl_above is 0"),
        ({"held_out_reward_model": "http://x"}, "expected a Hub id, a folder or module:function"),
    ],
)
def test_what_cannot_be_watched_is_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)
