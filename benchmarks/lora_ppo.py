"""PPO with adapters in bfloat16: frozen weights rounded once, against rounding at every call.

    python benchmarks/lora_ppo.py --policy FOLDER --reward-model FOLDER --prompts FILE.jsonl

Two runs of `train-policy` in one process, a step each in turn, in processor time, so that other
work on the machine hits both alike; medians over the steps after the first. Both draw the same
responses and make the same updates, bit for bit: the losses of every step are compared.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from tokencredit.recipes.policy import models as policy_models
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.setting_groups import (
    AlgorithmSettings,
    MachineSettings,
    RecordSettings,
    SamplingSettings,
)
from tokencredit.recipes.settings import LoadingSettings, LoraSettings

WAYS = {"at every call": False, "once": True}
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


def opened(config: recipe.TrainPolicyConfig, rounds: bool) -> tuple[Any, Any]:
    """A run that is ready for its first step, with the random numbers that it begins with."""
    asked = policy_models._is_called_under_autocast_alone
    policy_models._is_called_under_autocast_alone = lambda *_, **__: rounds
    try:
        run = recipe.open_run(config, Accelerator(mixed_precision="bf16", cpu=True), None)
    finally:
        policy_models._is_called_under_autocast_alone = asked
    return run


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
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            way: opened(config_of(options, Path(folder) / str(rounds)), rounds)
            for way, rounds in WAYS.items()
        }
        for step in range(options.steps):
            losses = []
            for way, (run, state) in runs.items():
                begin = time.process_time()
                row, _ = recipe._train_step(run, state)
                state.step += 1
                seconds[way].append(time.process_time() - begin)
                losses.append((row["policy_loss"], row["value_loss"], row["kl"]))
                phases = ", ".join(f"{name} {row[f'seconds_{name}']:.1f}" for name in PHASES)
                print(f"step {step}, {way}: {seconds[way][-1]:.2f} CPU s ({phases} s)", flush=True)
            assert losses[0] == losses[1], f"the two runs differ: {losses}"
    tokens = options.batch_size * options.new_tokens
    medians = {way: statistics.median(found[1:]) for way, found in seconds.items()}
    slow = medians["at every call"]
    print("\n| frozen weights rounded | CPU s per step | tokens per CPU s | ratio |")
    print("|---|---:|---:|---:|")
    for way, median in medians.items():
        print(f"| {way} | {median:.2f} | {tokens / median:.1f} | {slow / median:.2f} |")
    turns = sorted(a / b for a, b in zip(*(found[1:] for found in seconds.values()), strict=True))
    print(f"\nratios of turns: {turns[0]:.2f} to {turns[-1]:.2f}")


if __name__ == "__main__":
    main()
