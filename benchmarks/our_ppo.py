"""Time `train-policy` on given models, and print the figures as one JSON object.

Our side of `benchmarks/ppo.py`, which starts it in a process of its own; by hand:

    python benchmarks/our_ppo.py '{"models": FOLDER, "new_tokens": 16}'

An iteration is timed from one row of metrics to the next, so that what lies between the phases
counts too. Checkpoints, samples and the progress bar are off, as their like is on the other side.
"""

import contextlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from ppo_settings import PPOSettings, answer, settings_from_command_line

from tokencredit.credit.settings import CreditSettings
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.setting_groups import (
    AlgorithmSettings,
    KLSettings,
    MachineSettings,
    OptimizerSettings,
    RecordSettings,
    SamplingSettings,
)


def our_config(settings: PPOSettings, output: str) -> recipe.TrainPolicyConfig:
    """The recipe's settings that equal those of benchmarks/trl_ppo_peer.py."""
    models, steps = Path(settings.models), settings.warmup + settings.steps
    return recipe.TrainPolicyConfig(
        policy=str(models / "policy"),
        reward_model=str(models / "reward_model"),
        prompts=str(models / "prompts.jsonl"),
        output=output,
        steps=steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        credit=CreditSettings(method=settings.credit),
        sampling=SamplingSettings(
            min_new_tokens=0 if settings.ended else settings.new_tokens,
            max_new_tokens=settings.new_tokens,
            response_lengths="eos" if settings.ended else "uniform",
            temperature=1.0,
        ),
        algorithm=AlgorithmSettings(
            epochs=settings.ppo_epochs,
            clip_eps=0.2,
            value_clip_eps=0.2,
            value_coef=0.1,
            gamma=1.0,
            gae_lambda=settings.gae_lambda,
            critic=settings.critic,
        ),
        optimizer=OptimizerSettings(learning_rate=settings.learning_rate, lr_schedule="linear"),
        kl=KLSettings(coef=settings.kl_coef, estimator="k1"),
        machine=MachineSettings(
            mixed_precision="bf16" if settings.dtype == "bfloat16" else "no",
            device="cpu" if settings.device == "cpu" else None,
        ),
        record=RecordSettings(checkpoint_every=steps, sample_every=steps, progress=False),
    )


def timed_rows(
    config: recipe.TrainPolicyConfig,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Runs the recipe; seconds of each phase and in total, iteration by iteration, and the curve.

    The first row is part of the warm-up: its total counts loading the models too.
    """
    rows: list[dict[str, float]] = []
    curve: list[dict[str, float]] = []
    written = recipe.append_jsonl
    last = time.perf_counter()

    def append_and_time(path: Path, row: dict[str, Any]) -> None:
        nonlocal last
        written(path, row)
        if path.name != "metrics.jsonl":
            return
        now = time.perf_counter()
        phases = {name: row[f"seconds_{name}"] for name in ("rollout", "score", "update")}
        total = now - last
        rest = total - sum(phases.values())
        rows.append({**phases, "collection": 0.0, "rest": rest, "total": total})
        last = now
        point = {name: row[name] for name in ("score", "kl")}
        curve.append({**point, "cpu_seconds": time.process_time(), "collection": 0.0})

    recipe.append_jsonl = append_and_time
    recipe.train_policy(config)
    return rows, curve


def measure(settings: PPOSettings) -> dict[str, Any]:
    """Trains for a few steps and returns the median seconds of each phase after the warm-up."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        rows, curve = timed_rows(our_config(settings, str(Path(folder) / "run")))
    return answer(
        settings,
        rows,
        packages=("tokencredit", "transformers", "torch"),
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if settings.device == "cuda" else 0,
        curve=curve,
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    asked = settings_from_command_line()
    torch.set_num_threads(asked.threads)
    print(json.dumps(measure(asked)))
