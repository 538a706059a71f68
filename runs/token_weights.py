"""Do weights of tokens help an offline loss? DPO on the built-in task with twelve kinds of them.

    python runs/token_weights.py

Trains a policy for every kind of weight, beta, seed and data set: pairs as a noisy judge labelled
them, and with 30 % of the labels turned around. The grid is the same for all.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from offline_study import Row, folder_of, pairs_of, policy_of, reward_model_of, run_all
from torch import Tensor

from tokencredit.recipes.preferences import known
from tokencredit.toy.truth import true_token_scores

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
        "true Shapley credit": by_credit | truth,
        "true causal credit, shuffled": by_credit | truth,
        "random credit": by_credit | noise,
        "prefix differences": by_credit | learnt,
        "attention": by_credit | attention,
        "log-ratio": by_credit | ratio,
        "edits": {"token_weights.kind": "edits"},
        "best 30 % by true credit": by_share | truth,
        "best 30 % by random credit": by_share | noise,
        "best 30 % by prefix differences": by_share | learnt,
    }


def from_words(weights: str) -> AbstractContextManager[object]:
    """Credit that is known from the words of a whole response, where weights are of such credit.

    Rewards of the settings read a response up to a token, and so cannot say it.
    """
    if weights == "true Shapley credit":
        return patch.object(known, "token_credit_of", partial(credit_of_words, truth="shapley"))
    if weights == "true causal credit, shuffled":
        shuffled = partial(credit_of_words, truth="causal", shuffled=True)
        return patch.object(known, "token_credit_of", shuffled)
    return nullcontext()


def credit_of_words(
    config: object,  # noqa: ARG001
    model: object,  # noqa: ARG001
    tokenizer: Any,
    *,
    pad_id: int,  # noqa: ARG001
    truth: Literal["causal", "shapley"],
    shuffled: bool = False,
) -> Callable[[list[Any]], list[Tensor]]:
    """A true credit of every response token, in place or shuffled within its response."""

    def credit_of(ids: list[int]) -> Tensor:
        words = [tokenizer.decode([one]) for one in ids]
        (credit,) = true_token_scores([words], torch.ones(1, len(ids)).bool(), truth=truth)
        order = torch.Generator().manual_seed(sum((at + 1) * one for at, one in enumerate(ids)))
        return credit[torch.randperm(len(ids), generator=order)] if shuffled else credit

    return lambda rows: [credit_of(one.input_ids[one.start :]) for row in rows for one in row.texts]


def curve(data: Path, output: Path, *, weights: str, seed: int, own: Row) -> list[Row]:
    """The curve of weighted DPO, after the models that weights are made of."""
    reward_model_of(data)
    policy_of(data, data.parent / "dpo", seed=100)
    shutil.rmtree(output, ignore_errors=True)
    points: list[Row] = []
    settings = {"seed": seed, "points": points, "known": data.parent / "known" / weights}
    with from_words(weights):
        policy_of(data, output, **settings, **weights_of(data)[weights], **own)
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
