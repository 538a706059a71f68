"""What a defence against overoptimisation adds to a step of `train-policy`.

    python benchmarks/safeguards.py
    python benchmarks/safeguards.py --clock cpu --threads 1    # where other work is running

Each defence against the same run without it: random Llamas of `ppo.py`, one process, a step of each
run in turn; medians over the steps after the first, and the ratios of turns. All steps have the
same prompts, so that what is computed once per prompt (responses of the reference and their scores,
for PAR and LSC) falls into the first step, whose cost is told apart. A selection leaves out
responses, so that its updates are shorter: its line tells what is left of a step.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from ppo import make_models

from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.settings import settings_from

NO_CRITIC = {"algorithm.name": "leave-one-out-to-go", "algorithm.samples_per_prompt": 4}
GROUPS = {"algorithm.samples_per_prompt": 4}
COMPARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PAR, eight references": ({}, {"score.transform": "par", "references.per_prompt": 8}),
    "LSC": ({}, {"score.transform": "lsc", "references.per_prompt": 8}),
    "running moments": ({}, {"score.normalization": "running"}),
    "best and random of four": (GROUPS, {**GROUPS, "selection.keep": "best-random"}),
    "two rewards, thresholds": (
        NO_CRITIC,
        {
            **NO_CRITIC,
            "constraints.method": "at-least",
            "constraints.thresholds": {"one": 0.0, "other": 0.0},
        },
    ),
}


def opened(models: Path, folder: Path, changes: dict[str, Any], options: argparse.Namespace) -> Any:
    """A run that is ready for its first step, and its state."""
    reward = str(models / "reward_model")
    settings = {
        "policy": str(models / "policy"),
        "prompts": str(models / "prompts.jsonl"),
        "data.limit": options.batch_size,
        "output": str(folder),
        "steps": options.steps,
        "batch_size": options.batch_size,
        "credit.method": "prefix-difference",
        "sampling.response_lengths": "uniform",
        "sampling.min_new_tokens": options.new_tokens,
        "sampling.max_new_tokens": options.new_tokens,
        "machine.device": "cpu",
        "record.progress": False,
        **changes,
    }
    if "algorithm.name" in changes:
        settings["rewards"] = [{"model": reward, "name": name} for name in ("one", "other")]
    else:
        settings["reward_model"] = reward
    config = settings_from(recipe.TrainPolicyConfig, settings)
    return recipe.open_run(config, Accelerator(cpu=True), None)


def compared(name: str, models: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of steps without and with a defence, in turn."""
    pairs = [
        opened(models, folder / f"{name}-{side}", changes, options)
        for side, changes in enumerate(COMPARED[name])
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(options.steps):
        for (run, state), found in zip(pairs, seconds, strict=True):
            begin = options.now()
            recipe._train_step(run, state)
            state.step += 1
            found.append(options.now() - begin)
    without, with_it = (found[1:] for found in seconds)
    ratios = sorted(b / a for a, b in zip(without, with_it, strict=True))
    return {
        "name": name,
        "without": statistics.median(without),
        "with": statistics.median(with_it),
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
        "more in the first step": seconds[1][0] - seconds[0][0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(COMPARED), default=list(COMPARED))
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    options = parser.parse_args()
    options.now = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        make_models(models, size=options.size, prompt_tokens=8)
        rows = [compared(name, models, Path(folder), options) for name in options.only]
    print("| with | s per step without | with | time / without | quartiles | s more in the first |")
    print("|---|---:|---:|---:|---|---:|")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"| {row['name']} | {row['without']:.2f} | {row['with']:.2f} | {row['ratio']:.3f} | "
            f"{low:.3f} to {high:.3f} | {row['more in the first step']:.1f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
