"""PPO with adapters in bfloat16: what a step costs, with one thing after the other that saves time.

    python benchmarks/lora_ppo.py --policy FOLDER --reward-model FOLDER --prompts FILE.jsonl

Runs of `train-policy` in one process, a step each in turn, in processor time, so that other work
on the machine hits all alike; medians over the steps after the first. Each run has what the ones
before it have, and one thing more. Rounding weights once must not change a loss at all; the other
things change the rounding of every number, and so which tokens are drawn.
"""

import argparse
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from accelerate import Accelerator

from tokencredit.models import hf_shared_beginnings, hf_short_attention
from tokencredit.recipes.policy import experience
from tokencredit.recipes.policy import models as policy_models
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.setting_groups import (
    AlgorithmSettings,
    MachineSettings,
    RecordSettings,
    SamplingSettings,
)
from tokencredit.recipes.settings import LoadingSettings, LoraSettings

WAYS = (
    "autocast alone",
    "frozen weights rounded once",
    "plain attention of short rows",
    "shared beginnings read once",
    "scoring pass is the first update's",
)
PHASES = ("rollout", "score", "update")


def config_of(options: argparse.Namespace, output: Path) -> recipe.TrainPolicyConfig:
    """The settings of both runs."""
    return recipe.TrainPolicyConfig(
        policy=options.policy,
        reward_model=options.reward_model,
        prompts=options.prompts,
        output=str(output),
        steps=options.steps,
        batch_size=options.batch_size,
        sampling=SamplingSettings(
            min_new_tokens=options.new_tokens, max_new_tokens=options.new_tokens
        ),
        algorithm=AlgorithmSettings(epochs=2),
        lora=LoraSettings(rank=16),
        loading=LoadingSettings(dtype=options.reward_dtype),
        machine=MachineSettings(mixed_precision="bf16", device="cpu"),
        record=RecordSettings(progress=False),
    )


@contextmanager
def as_in(way: int) -> Iterator[None]:
    """The library with the first `way` things that save time."""
    with ExitStack() as stack:
        without = (
            (policy_models, "_is_called_under_autocast_alone", lambda *_, **__: False),
            (hf_short_attention, "LONGEST", 0),
            (hf_shared_beginnings, "LEAST", math.inf),
            (experience, "_begins_update", lambda *_: False),
        )
        for module, name, other in without[way:]:
            stack.enter_context(patch.object(module, name, other))
        yield


def opened(config: recipe.TrainPolicyConfig, way: int) -> tuple[Any, Any]:
    """A run that is ready for its first step, with the random numbers that it begins with."""
    with as_in(way):
        return recipe.open_run(config, Accelerator(mixed_precision="bf16", cpu=True), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward-model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--reward-dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    seconds: list[list[float]] = [[] for _ in WAYS]
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            opened(config_of(options, Path(folder) / str(way)), way) for way in range(len(WAYS))
        ]
        for step in range(options.steps):
            losses = []
            for way, (run, state) in enumerate(runs):
                begin = time.process_time()
                with as_in(way):
                    row, _ = recipe._train_step(run, state)
                state.step += 1
                seconds[way].append(time.process_time() - begin)
                losses.append([row[name] for name in ("policy_loss", "value_loss", "kl")])
                phases = ", ".join(f"{name} {row[f'seconds_{name}']:.1f}" for name in PHASES)
                shown = ", ".join(f"{loss:.4f}" for loss in losses[-1])
                print(
                    f"step {step}, {WAYS[way]}: {seconds[way][-1]:.2f} CPU s ({phases} s); {shown}"
                )
            assert losses[0] == losses[1], f"rounding once changed the losses: {losses}"
    tokens = options.batch_size * options.new_tokens
    medians = [statistics.median(found[1:]) for found in seconds]
    print("\n| with | CPU s per step | tokens per CPU s | ratio | ratios of turns |")
    print("|---|---:|---:|---:|---|")
    for way, median, found in zip(WAYS, medians, seconds, strict=True):
        turns = sorted(a / b for a, b in zip(seconds[0][1:], found[1:], strict=True))
        print(
            f"| {way} | {median:.2f} | {tokens / median:.1f} | {medians[0] / median:.2f} "
            f"| {turns[0]:.2f} to {turns[-1]:.2f} |"
        )


if __name__ == "__main__":
    main()
