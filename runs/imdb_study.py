"""The runs of the headline experiment, two at a time, each finished curve kept as small JSON.

    python runs/imdb_study.py --models output/imdb --curves docs/results/imdb --stages rates lambdas

Stages, each skipping the runs whose curve is already there:
  rates  8-16 tokens, 2 seeds, every method at three learning rates, gae_lambda 0.95
  lambdas  the same, every method at its best learning rate and three other gae_lambda
  short  8-16 tokens, 5 seeds, every method at its best point
  target  the same, every method at its best point of those whose KL stays near the target
  middle, long  40-60 and 140-160 tokens, 3 seeds, at the points of target, without ABC-D, ABC-D2
  protocol  40-60 tokens, log-probs without the suppressed end of sequence, as published
  beta   8-16 tokens, credit_beta from 0 to 1
  full   20-30 and 90-110 tokens and 5 seeds everywhere: the rest of the published sweep
`--seeds 1` keeps to the first seed of each stage, so that a short study covers all of them.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

METHODS = {
    "terminal": {"credit": "terminal"},
    "uniform": {"credit": "uniform"},
    "abc": {"credit": "attention"},
    "abc-d": {"credit": "generator-attention"},
    "abc-d2": {"credit": "last-generator-attention"},
    "prefix-difference": {"credit": "prefix-difference"},
    "terminal+critic": {"credit": "terminal", "critic": "reward-model"},
}
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
LAMBDAS = (0.8, 1.0, 0.5)
FIRST_LAMBDA = 0.95
KL_TARGET = 6.0
NEAR_TARGET = 1.25 * KL_TARGET
STAGES = ["rates", "lambdas", "short", "target", "middle", "protocol", "long"]
LONG_METHODS = ("terminal", "prefix-difference", "abc", "uniform", "terminal+critic")


@dataclass(frozen=True)
class Run:
    """One policy; its name says everything that differs between runs."""

    method: str
    learning_rate: float
    gae_lambda: float
    seed: int
    lengths: tuple[int, int] = (8, 16)
    steps: int = 100
    credit_beta: float = 0.8
    logprobs_of: str = "sampled"

    @property
    def name(self) -> str:
        least, most = self.lengths
        return (
            f"{self.method}_len{least}-{most}_lr{self.learning_rate:g}_lam{self.gae_lambda:g}"
            f"_beta{self.credit_beta:g}_{self.logprobs_of}_seed{self.seed}"
        )


def rate_runs() -> list[Run]:
    return [
        Run(method, rate, FIRST_LAMBDA, seed)
        for seed in (0, 1)
        for rate in LEARNING_RATES
        for method in METHODS
    ]


def tuning_runs(curves: Path) -> list[Run]:
    """Both tuning stages; the second stands on what the first has found so far."""
    rates = best_points(rate_runs(), curves)
    lambdas = [
        Run(method, rate, lam, seed)
        for seed in (0, 1)
        for lam in LAMBDAS
        for method, (rate, _) in rates.items()
    ]
    return rate_runs() + lambdas


def tuning_scores(
    runs: list[Run], curves: Path, *, most_kl: float = math.inf
) -> dict[str, dict[tuple[float, float], float]]:
    """Mean score over all steps by method and point, over the seeds that every point has.

    Runs whose KL over the last 20 steps is above `most_kl` do not count.
    """
    found: dict[str, dict[tuple[float, float], dict[int, float]]] = {}
    for run in runs:
        file = curves / f"{run.name}.json"
        curve = json.loads(file.read_text()) if file.exists() else None
        if curve is not None and statistics.mean(curve["kl"][-20:]) <= most_kl:
            score = statistics.mean(curve["score"])
            points = found.setdefault(run.method, {})
            points.setdefault((run.learning_rate, run.gae_lambda), {})[run.seed] = score
    means: dict[str, dict[tuple[float, float], float]] = {}
    for method, points in found.items():
        seeds = set.intersection(*(set(scores) for scores in points.values())) or {0}
        means[method] = {
            point: statistics.mean(scores[seed] for seed in seeds)
            for point, scores in points.items()
            if seeds <= set(scores)
        }
    return means


def best_points(
    runs: list[Run], curves: Path, *, most_kl: float = math.inf
) -> dict[str, tuple[float, float]]:
    """Learning rate and gae_lambda of each method with the best mean score over tuning."""
    return {
        method: max(points, key=lambda point, of=points: of[point])
        for method, points in tuning_scores(runs, curves, most_kl=most_kl).items()
    }


def stage_runs(stage: str, curves: Path) -> list[Run]:
    if stage == "rates":
        return rate_runs()
    if stage == "lambdas":
        return [run for run in tuning_runs(curves) if run.gae_lambda != FIRST_LAMBDA]
    best = best_points(tuning_runs(curves), curves)
    near = best_points(tuning_runs(curves), curves, most_kl=NEAR_TARGET)
    at_best = [(method, *best[method]) for method in METHODS if method in best]
    long = [(method, *near[method]) for method in LONG_METHODS if method in near]
    if stage == "short":
        return [Run(*point, seed) for seed in range(5) for point in at_best]
    if stage == "target":
        return [Run(m, *near[m], seed) for seed in range(5) for m in METHODS if m in near]
    if stage in ("middle", "long"):
        lengths = (40, 60) if stage == "middle" else (140, 160)
        return [Run(*point, seed, lengths) for seed in range(3) for point in long]
    if stage == "protocol":
        return [
            Run(*point, seed, (40, 60), logprobs_of="unmasked")
            for seed in range(3)
            for point in long
        ]
    if stage == "beta":
        rate, lam = best["abc"]
        return [
            Run("abc", rate, lam, seed, credit_beta=beta)
            for seed in range(3)
            for beta in (0.0, 0.2, 0.4, 0.6, 1.0)
        ]
    assert stage == "full", stage
    sweep = ((8, 16), (20, 30), (40, 60), (90, 110), (140, 160))
    return [
        Run(*point, seed, span)
        for span in sweep
        for seed in range(5)
        for point in (at_best if span == (8, 16) else long)
    ]


def trained(job: tuple[Run, dict[str, str], Path, str]) -> str:
    """Train one policy and keep its curve."""
    run, models, curves, commit = job
    import torch

    from tokencredit.credit.settings import CreditSettings
    from tokencredit.recipes.policy.setting_groups import (
        AlgorithmSettings,
        KLSettings,
        MachineSettings,
        OptimizerSettings,
        PromptSettings,
        RecordSettings,
        SamplingSettings,
    )
    from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
    from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically

    torch.set_num_threads(1)
    output = tempfile.mkdtemp(prefix="imdb-")
    config = TrainPolicyConfig(
        **models,
        output=output,
        steps=run.steps,
        batch_size=16,
        seed=run.seed,
        data=PromptSettings(tokens=[2, 8]),
        credit=CreditSettings(method=METHODS[run.method]["credit"], beta=run.credit_beta),
        sampling=SamplingSettings(
            response_lengths="uniform",
            min_new_tokens=run.lengths[0],
            max_new_tokens=run.lengths[1],
            logprobs_of=run.logprobs_of,
        ),
        algorithm=AlgorithmSettings(
            gae_lambda=run.gae_lambda, critic=METHODS[run.method].get("critic", "shared")
        ),
        optimizer=OptimizerSettings(learning_rate=run.learning_rate),
        kl=KLSettings(coef=0.2, target=KL_TARGET),
        machine=MachineSettings(device="cpu"),
        record=RecordSettings(checkpoint_every=run.steps, sample_every=run.steps, progress=False),
    )
    try:
        train_policy(config)
        rows = read_jsonl(Path(output) / "metrics.jsonl")
    finally:
        shutil.rmtree(output)
    curve = {"commit": commit, **asdict(run)}
    for name in ("score", "held_out_score", "kl"):
        curve[name] = [round(row[name], 3) for row in rows]
    write_atomically(curves / f"{run.name}.json", json.dumps(curve) + "\n")
    return f"{run.name}: mean {statistics.mean(curve['score']):.2f}, last {curve['score'][-1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--seeds", type=int, default=5, help="at most so many seeds of a stage")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--policy", help="another policy, lvwerra/gpt2-imdb for example")
    parser.add_argument("--reward-model", help="XanderJC/gpt2-rm-imdb for example")
    parser.add_argument("--pad-token", help="for a policy whose tokenizer has none")
    arguments = parser.parse_args()
    folder = arguments.models
    models = {
        "policy": arguments.policy or str(folder / "language-model"),
        "reward_model": arguments.reward_model or str(folder / "reward-model"),
        "held_out_reward_model": str(folder / "held-out-reward-model"),
        "prompts": str(folder / "prompts.jsonl"),
        **({"pad_token": arguments.pad_token} if arguments.pad_token else {}),
    }
    arguments.curves.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    spawn = multiprocessing.get_context("spawn")
    for stage in arguments.stages:
        runs = [r for r in stage_runs(stage, arguments.curves) if r.seed < arguments.seeds]
        left = [run for run in runs if not (arguments.curves / f"{run.name}.json").exists()]
        print(f"{stage}: {len(left)} of {len(runs)} runs to do", flush=True)
        jobs = [(run, models, arguments.curves, commit) for run in left]
        with spawn.Pool(arguments.processes) as pool:
            for done, line in enumerate(pool.imap_unordered(trained, jobs), start=1):
                print(f"  {done}/{len(left)} {line}", flush=True)


if __name__ == "__main__":
    main()
