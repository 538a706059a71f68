"""Supervised training that is stopped and started again ends as if it had not been."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import ForkedCommand
from named_settings import configured
from safetensors.torch import load_file
from tiny_reward_training import config, lines, write_inputs

from tokencredit.cli import recipe_of
from tokencredit.errors import RunFolderError, TokenCreditWarning
from tokencredit.recipes.policy.checkpoints import checkpoints_in
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.training import trainer

TINY = {
    "batch_size": 4,
    "held_out": 0.2,
    "max_length": 64,
    "learning_rate": 1e-2,
    "progress": False,
    "epochs": 2.0,
    "log_every": 3,
    "checkpoint_every": 5,
    "device": "cpu",
}
LORA = {"lora_rank": 2, "dropout": 0.2}
RUNS = {
    "train-reward-model": {"gradient_accumulation": 2, "batch_size": 2, "evaluate_every": 2},
    "train-reward-model groups": {"groups.count": 2, "columns.user": "user"},
    "train-reward-model mixture": {"mixture.heads": 2},
    "train-reward-model latent": {"latent.size": 2, "columns.user": "user"},
    "train-token-classifier": {"labels": "edits", **LORA},
    "train-vocabulary-reward": {"objective": "farma", "first_token": 1, "evaluate_every": 2},
    "train-rewriter": {"epochs": 1.0, "evaluate_every": 3},
    "train-implicit-reward": {**LORA, "evaluate_every": 3, "learning_rate": 1e-3},
    "train-language-model": {"max_length": 8, "epochs": 1.0},
    "train-preferences": {
        "loss": "dft",
        "token_weights_kind": "decay",
        "evaluate_every": 3,
        "learning_rate": 1e-3,
        **LORA,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    pairs = read_jsonl(folder / "bradley-terry.jsonl")
    lines(
        folder / "edits.jsonl",
        [{"prompt": p["prompt"], "rejected": p["rejected"], "edited": p["chosen"]} for p in pairs],
    )
    lines(folder / "users.jsonl", [p | {"user": f"u{at % 3}"} for at, p in enumerate(pairs)])
    lines(folder / "texts.jsonl", [{"text": p["prompt"] + p["chosen"]} for p in pairs])
    return folder


def settings(folder: Path, command: str, output: Path, **changes):
    data = {
        "train-token-classifier": "edits",
        "train-language-model": "texts",
        "train-reward-model groups": "users",
        "train-reward-model latent": "users",
    }
    named = {
        "data": str(folder / f"{data.get(command, 'bradley-terry')}.jsonl"),
        "model": str(folder / "lm"),
        "output": str(output),
    }
    return configured(recipe_of(command.split()[0])[1], **(named | TINY | RUNS[command] | changes))


class Killed(BaseException):
    """What no code expects, as a process expects no SIGKILL."""


def killed_in(monkeypatch, recipe, config, *, passes: int) -> None:
    """Run a recipe that ends at once in the pass of this number."""
    real = trainer.SupervisedTrainer.training_step
    seen = []

    def step(self, *arguments, **keywords):
        seen.append(1)
        if len(seen) == passes:
            raise Killed
        return real(self, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.SupervisedTrainer, "training_step", step)
        with pytest.raises(Killed):
            recipe(config)


def outcome(folder: Path) -> tuple[dict, list, dict]:
    """Weights, rows of metrics, and the numbers that are not about time."""
    numbers = json.loads((folder / "metrics.json").read_text())
    rows = read_jsonl(folder / "metrics.jsonl")
    timeless = {n: v for n, v in numbers.items() if n not in ("seconds", "tokens_per_second")}
    return load_file(folder / "model.safetensors"), rows, timeless


def assert_same(one: Path, other: Path) -> None:
    (weights, rows, numbers), (others, other_rows, other_numbers) = outcome(one), outcome(other)
    assert other_rows == rows
    assert other_numbers == numbers
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("command", RUNS)
def test_a_killed_run_ends_as_if_nobody_had_killed_it(folder, tmp_path, monkeypatch, command):
    if command == "train-implicit-reward":
        pytest.importorskip("trl", reason="TRL is an extra")
    if "lora_rank" in RUNS[command]:
        pytest.importorskip("peft", reason="PEFT is an extra")
    recipe, _ = recipe_of(command.split()[0])
    whole = recipe(settings(folder, command, tmp_path / "whole"))
    steps = json.loads((whole / "metrics.json").read_text())["train_steps"]
    assert steps > 6
    killed = settings(folder, command, tmp_path / "killed")
    last = int(steps) * killed.training.gradient_accumulation
    killed_in(monkeypatch, recipe, killed, passes=last)
    (at,) = list(checkpoints_in(tmp_path / "killed"))[-1:]
    assert 0 < at < steps
    assert_same(whole, recipe(killed))
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, tmp_path, monkeypatch):
    changes = {"epochs": 4.0, "checkpoint_every": 2, "gradient_accumulation": 1, "batch_size": 4}
    whole = train_reward_model(
        settings(folder, "train-reward-model", tmp_path / "whole", **changes)
    )
    killed = settings(folder, "train-reward-model", tmp_path / "killed", **changes, keep=3)
    killed_in(monkeypatch, train_reward_model, killed, passes=12)
    found = checkpoints_in(tmp_path / "killed")
    assert list(found) == [6, 8, 10]
    spoilt = bytearray((found[10] / "trained.safetensors").read_bytes())
    spoilt[-1] ^= 1
    (found[10] / "trained.safetensors").write_bytes(spoilt)
    with pytest.warns(TokenCreditWarning, match="is damaged.*goes on from step-000008"):
        train_reward_model(killed)
    assert_same(whole, tmp_path / "killed")


def test_what_does_not_change_the_result_may_change(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    first = settings(folder, "train-reward-model", run)
    killed_in(monkeypatch, train_reward_model, first, passes=12)
    free = {"checkpoint_every": 1, "keep": 1, "evaluate_every": None, "log_every": 1}
    second = settings(folder, "train-reward-model", run, **free)
    killed_in(monkeypatch, train_reward_model, second, passes=3)
    assert list(checkpoints_in(run)) == [6]  # the new intervals hold
    with pytest.raises(RunFolderError, match=r"training\.learning_rate: 0\.01 -> 0\.1"):
        train_reward_model(settings(folder, "train-reward-model", run, learning_rate=0.1))
    done = settings(folder, "train-reward-model", run, gradient_checkpointing=True)
    assert (train_reward_model(done) / "config.json").exists()


def test_sigterm_writes_a_checkpoint_and_the_same_command_ends_the_run(folder, tmp_path):
    """The exit status is that of a program that SIGTERM ended; nothing that was done is lost."""
    run = tmp_path / "run"
    words = ["train-reward-model"]
    words += ["--data", str(folder / "bradley-terry.jsonl"), "--model", str(folder / "lm")]
    words += ["--output", str(run), "--device", "cpu", "--training.epochs", "4000"]
    words += ["--training.batch_size", "4", "--max_length", "64", "--training.log_every", "1"]
    words += ["--progress", "false"]
    process = ForkedCommand(*words)
    limit = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143, process.stderr
    assert "SIGTERM: the run stops after this step" in process.stderr
    steps = [row["step"] for row in read_jsonl(run / "metrics.jsonl")]
    assert list(checkpoints_in(run))[-1] == steps[-1]


def test_max_steps_take_the_place_of_epochs(folder, tmp_path):
    changes = {"max_steps": 3, "log_every": 1, "batch_size": 4, "objective": "bradley-terry"}
    run = train_reward_model(config(folder, tmp_path / "rm", **changes))
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["learning_rate"] < rows[1]["learning_rate"]  # the cosine ends where it does
    numbers = json.loads((run / "metrics.json").read_text())
    assert numbers["train_steps"] == 3
    assert numbers["train_loss"] == pytest.approx(sum(row["loss"] for row in rows) / 3)


def test_a_tracker_is_told_what_metrics_are_told(folder, tmp_path):
    pytest.importorskip("tensorboard", reason="trackers are no dependencies")
    changes = {"report_to": ("tensorboard",), "max_steps": 2}
    run = train_reward_model(config(folder, tmp_path / "rm", **changes))
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))


def test_recomputed_activations_change_no_number(folder, tmp_path):
    runs = [
        train_reward_model(
            config(folder, tmp_path / str(again), max_steps=3, gradient_checkpointing=again)
        )
        for again in (False, True)
    ]
    assert_same(*runs)
