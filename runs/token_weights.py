"""Do weights of tokens help an offline loss? DPO on the built-in task with ten kinds of them.

    python runs/token_weights.py

Trains a policy for every kind of weight, beta, seed and data set: pairs as a noisy judge labelled
them, and with 30 % of the labels turned around. The grid is the same for all. A learning rate of
0.0001 was tried first, on the pairs of the noisy judge: in one epoch it learns less.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from offline_study import Row, folder_of, pairs_of, policy_of, reward_model_of, run_all

RATE, BETAS, SEEDS = 3e-4, (0.1, 1.0), (0, 1)


def weights_of(data: Path) -> dict[str, dict[str, Any]]:
    """Settings of every kind of weight."""
    truth = {"credit.method": "prefix-difference", "reward_model": "runs.token_truth:true"}
    noise = {**truth, "reward_model": "runs.token_truth:random_walk"}
    learnt = {**truth, "reward_model": str(data.parent / "reward-model")}
    attention = {**learnt, "credit.method": "attention"}
    ratio = {"credit.method": "log-ratio", "credit.model": str(data.parent / "dpo")}
    by_credit, by_share = {"token_weights.kind": "credit"}, {"token_weights.kind": "select"}
    return {
        "none": {},
        "true causal credit": by_credit | truth,
        "random credit": by_credit | noise,
        "prefix differences": by_credit | learnt,
        "attention": by_credit | attention,
        "log-ratio": by_credit | ratio,
        "edits": {"token_weights.kind": "edits"},
        "best 30 % by true credit": by_share | truth,
        "best 30 % by random credit": by_share | noise,
        "best 30 % by prefix differences": by_share | learnt,
    }


def curve(data: Path, output: Path, *, weights: str, seed: int, own: Row) -> list[Row]:
    """The curve of weighted DPO, after the models that weights are made of."""
    reward_model_of(data)
    policy_of(data, data.parent / "dpo", seed=100)
    shutil.rmtree(output, ignore_errors=True)
    points: list[Row] = []
    policy_of(data, output, seed=seed, points=points, **weights_of(data)[weights], **own)
    return points


def runs_of(folder: Path) -> Iterator[tuple[Row, Callable[[], list[Row]]]]:
    pairs = pairs_of(folder)
    for seed, (name, data), beta in product(SEEDS, pairs.items(), BETAS):
        for weights in weights_of(data):
            key = {"pairs": name, "weights": weights, "rate": RATE, "beta": beta, "seed": seed}
            own = {"training.learning_rate": RATE, "options.dpo_beta": beta}
            yield key, partial(curve, data, folder / "policy", weights=weights, seed=seed, own=own)


if __name__ == "__main__":
    run_all("token-weights", runs_of(folder_of("token-weights")))
