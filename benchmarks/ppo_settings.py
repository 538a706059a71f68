"""What both sides of the PPO benchmark are told, and the form of what they answer.

Only the standard library: the peer's environment reads this file too.
"""

import json
import resource
import statistics
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any

# "collection" is Python's garbage collector where a side calls it itself; "rest" is loading,
# logging and whatever else lies between two iterations.
PHASES = ("rollout", "score", "update", "collection", "rest")


@dataclass(frozen=True)
class PPOSettings:
    """The settings of one measurement.

    Attributes:
        models: Folder with `policy/`, `reward_model/` and `prompts.jsonl`, from `ppo.make_models`.
        new_tokens: Tokens of every response; with `ended` at most so many.
        ended: An end of sequence ends a response; otherwise none is drawn, or it counts as a word.
        batch_size: Responses per iteration; one minibatch holds them all.
        ppo_epochs: Passes over the batch per iteration.
        learning_rate: Of AdamW.
        kl_coef: Weight of the KL penalty (k1) in the token rewards.
        gae_lambda: Of generalised advantage estimation; gamma is 1.
        credit: Our side alone, since TRL pays the last token: how the score is spread.
        critic: Our side alone: a value head on the policy's trunk, or a network of its own, which
            is what TRL always has.
        steps: Iterations measured.
        warmup: Iterations before them.
        threads: Of torch, on the CPU.
        device: "cpu" or "cuda".
        dtype: "float32", or "bfloat16" for autocast over float32 weights.
        seed: Of sampling.
        clock: "wall", or "cpu" for processor time of an iteration; phases have the wall.
    """

    models: str
    new_tokens: int
    ended: bool = False
    batch_size: int = 16
    ppo_epochs: int = 4
    learning_rate: float = 1e-5
    kl_coef: float = 0.05
    gae_lambda: float = 0.95
    credit: str = "attention"
    critic: str = "shared"
    steps: int = 20
    warmup: int = 3
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    clock: str = "wall"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def settings_from_command_line() -> PPOSettings:
    """Reads the one argument, a JSON object of the fields above."""
    if len(sys.argv) != 2:
        sys.exit(f'usage: {sys.argv[0]} \'{{"models": FOLDER, "new_tokens": 16}}\'')
    return PPOSettings(**json.loads(sys.argv[1]))


def answer(
    settings: PPOSettings,
    rows: list[dict[str, float]],
    *,
    packages: tuple[str, ...],
    peak_gpu_bytes: int,
    curve: list[dict[str, float]],
) -> dict[str, Any]:
    """One side's result: medians over the iterations after the warm-up, and what was learned.

    Args:
        settings: What was asked for.
        rows: Seconds per iteration: `total`, and each of `PHASES`.
        packages: Distributions whose version is reported.
        peak_gpu_bytes: Zero on the CPU.
        curve: For each iteration the mean `score` of its responses and their mean `kl`, and the
            `cpu_seconds` of the process up to there, of which `collection` are its garbage
            collector's.
    """
    measured = rows[settings.warmup :]
    seconds = {
        name: statistics.median(row[name] for row in measured) for name in ("total", *PHASES)
    }
    total = seconds.pop("total")
    if settings.clock == "cpu":
        total, seconds["collection"] = (
            statistics.median(
                after[name] - before[name]
                for before, after in pairwise(curve[settings.warmup - 1 :])
            )
            for name in ("cpu_seconds", "collection")
        )
    return {
        "seconds_per_step": total,
        "tokens_per_second": settings.batch_size * settings.new_tokens / total,
        "seconds": seconds,
        "steps": len(measured),
        "curve": curve,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_gpu_mib": peak_gpu_bytes / 2**20,
        "versions": {name: version(name) for name in packages},
    }
