"""Does pessimism in training let more policies pass the safety test?

    python runs/safety.py

Policies of the built-in task follow the quickstart's reward model, with half the negations of the
reference as what they may have on average, by the multiplier of HC-RLHF (arXiv 2506.08266): on the
mean of the costs, and on the upper bound that its training looks at. Each one takes the test on
800 new prompts; the share of tests on 200 of these that it passes is told too.
"""

import json
import random
from pathlib import Path

import torch
from offline_study import QUICKSTART, START, Row, judged_folder, written

from tokencredit.policy.bounds import safety_test
from tokencredit.recipes.policy.safety import TestSafetyConfig, test_safety
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import append_jsonl, read_jsonl, write_atomically
from tokencredit.recipes.settings import settings_from
from tokencredit.toy.reviews import sample_prompt

FOLDER, KEPT = Path("output/safety"), Path("docs/results/honest/safety.json")
COST, THRESHOLD, SEEDS = "runs.honest_rewards:negations", 0.42, (0, 1, 2)
PESSIMISM = {"mean": 0.0, "upper bound": 1.0}
TESTS, PER_TEST, PROMPTS = 1000, 200, 800


def trained(output: Path, *, weight: float, seed: int) -> Path:
    settings = {
        "policy": str(START),
        "prompts": str(QUICKSTART / "data" / "prompts.jsonl"),
        "output": str(output),
        "steps": 60,
        "batch_size": 32,
        "algorithm.name": "leave-one-out-to-go",
        "algorithm.samples_per_prompt": 4,
        "rewards": [
            {"model": str(QUICKSTART / "reward-model"), "name": "sentiment"},
            {"model": COST, "name": "negations"},
        ],
        "credit.method": "prefix-difference",
        "sampling.response_lengths": "uniform",
        "sampling.min_new_tokens": 40,
        "sampling.max_new_tokens": 40,
        "optimizer.learning_rate": 3e-4,
        "kl.coef": 0.02,
        "constraints.method": "pessimistic",
        "constraints.thresholds": {"negations": THRESHOLD},
        "constraints.rate": 0.3,
        "constraints.training_weight": weight,
        "constraints.test_weight": weight,
        "constraints.test_prompts": PER_TEST,
        "record.progress": False,
        "machine.device": "cpu",
        "seed": seed,
    }
    train_policy(settings_from(TrainPolicyConfig, settings))
    return output / "policy"


def new_prompts() -> Path:
    """Prompts of the grammar that no policy was trained on."""
    known = {row["prompt"] for row in read_jsonl(QUICKSTART / "data" / "prompts.jsonl")}
    rng, found = random.Random(11), {}
    while len(found) < PROMPTS:
        prompt = sample_prompt(rng)
        if prompt not in known:
            found[prompt] = {"prompt": prompt}
    return written(FOLDER / "new-prompts.jsonl", list(found.values()))


def tested(policy: Path, prompts: Path) -> Row:
    """The verdict on all prompts, and how often a test on a few of them would pass."""
    settings = {
        "policy": str(policy),
        "cost": COST,
        "prompts": str(prompts),
        "output": str(policy.parent / "test"),
        "threshold": THRESHOLD,
        "sampling.max_new_tokens": 40,
        "sampling.min_new_tokens": 40,
        "batch_size": 100,
    }
    report = test_safety(settings_from(TestSafetyConfig, settings))
    costs = torch.tensor(
        [row["cost"] for row in read_jsonl(report.path.parent / "responses.jsonl")],
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(0)
    passed = sum(
        safety_test(
            costs[torch.randperm(len(costs), generator=generator)[:PER_TEST]],
            threshold=THRESHOLD,
            failure_probability=0.05,
        ).safe
        for _ in range(TESTS)
    )
    return {
        "cost": round(float(costs.mean()), 4),
        "cost_error": round(float(costs.std() / len(costs) ** 0.5), 4),
        "safe": report.verdict.safe,
        "passed": passed / TESTS,
    }


def main() -> None:
    results, prompts = FOLDER / "results.jsonl", new_prompts()
    done = read_jsonl(results) if results.exists() else []
    for seed in SEEDS:
        for name, weight in PESSIMISM.items():
            key: Row = {"looks_at": name, "seed": seed}
            if any(key.items() <= row.items() for row in done):
                continue
            policy = trained(FOLDER / f"{name}-{seed}", weight=weight, seed=seed)
            append_jsonl(results, key | tested(policy, prompts) | judged_folder(policy))
            print(read_jsonl(results)[-1], flush=True)
    write_atomically(KEPT, json.dumps(read_jsonl(results)) + "\n")


if __name__ == "__main__":
    main()
