"""Every offline loss of the table on the same pairs: true reward over KL.

    python runs/preference_losses.py

Six losses have four values of the one option that says how far a policy goes, from a tenth of the
default to a hundred times it, and two seeds. The others have their default and one seed: a run to
see, and no comparison. Losses that want scores get those of a reward model of the same pairs, soft
labels are the sigmoid of their difference, and teachers are a policy by DPO and one by DPO on the
pairs turned around.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from offline_study import (
    Row,
    folder_of,
    pairs_of,
    policy_of,
    reward_model_of,
    run_all,
    teachers_of,
    written,
)

from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.hf_responses import loaded_scorer, scored_responses

FACTORS, MORE = (1.0, 10.0), (0.1, 100.0)
FRONTIER = ("dpo", "ipo", "simpo", "cpl", "cpl-kl", "discopop")
RATE = "training.learning_rate"
OPTION = {
    **dict.fromkeys(("brain", "dft", "dft2"), "list_temperature"),
    **dict.fromkeys(("pro", "rrhf"), "sft_coef"),
    **dict.fromkeys(("superhf", "dckd", "adpa"), "strength"),
    **dict.fromkeys(("likelihood", "weighted-likelihood", "a-lol"), RATE),
    "aligndistil": "extrapolation",
}


def scored_pairs(data: Path, output: Path) -> Path:
    """The pairs with scores of both sides and a soft label."""
    if output.exists():
        return output
    rows = read_jsonl(data)
    scorer = loaded_scorer(str(reward_model_of(data)), device="cpu")
    sides = {}
    for side in ("chosen", "rejected"):
        texts = scorer.reading.rows([row["prompt"] for row in rows], [row[side] for row in rows])
        sides[side] = [float(found[-1]) for found in scored_responses(scorer, texts, batch_size=32)]
    better = torch.sigmoid(torch.tensor(sides["chosen"]) - torch.tensor(sides["rejected"]))
    return written(
        output,
        [
            row | {"chosen_score": one, "rejected_score": other, "soft_label": float(label)}
            for row, one, other, label in zip(
                rows, sides["chosen"], sides["rejected"], better, strict=True
            )
        ],
    )


def needed(loss: str, folder: Path, data: Path) -> Row:
    """Settings of what a loss needs beside pairs: teachers, or a selection of tokens."""
    if loss == "sepo":
        return {
            "token_weights.kind": "select",
            "credit.method": "prefix-difference",
            "reward_model": str(reward_model_of(data)),
        }
    return teachers_of(loss, folder, data)


def curve(folder: Path, data: Path, *, loss: str, price: float, seed: int) -> list[Row]:
    output, points = folder / "policy", []
    shutil.rmtree(output, ignore_errors=True)
    option = OPTION.get(loss, "dpo_beta")
    settings = {
        "loss": loss,
        option if option == RATE else f"options.{option}": price,
        **needed(loss, folder, data),
    }
    scored = scored_pairs(data, folder / "scored.jsonl")
    known = folder / "known" / loss
    policy_of(scored, output, seed=seed, points=points, known=known, **settings)
    return points


def runs_of(folder: Path) -> Iterator[tuple[Row, Callable[[], list[Row]]]]:
    data = pairs_of(folder)["noisy judge"]
    planned = [(0, loss, (*FACTORS, *MORE)) for loss in FRONTIER]
    planned += [(0, loss, (1.0,)) for loss in PREFERENCE_LOSSES if loss not in FRONTIER]
    planned += [(1, loss, (*FACTORS, *MORE)) for loss in FRONTIER]
    for seed, loss, factors in planned:
        option = OPTION.get(loss, "dpo_beta")
        default = 1e-4 if option == RATE else PREFERENCE_LOSSES[loss].options[option]
        for factor in factors:
            price = float(f"{default * factor:.2g}")
            key = {"loss": loss, "option": option, "price": price, "seed": seed}
            settings: dict[str, Any] = {"loss": loss, "price": price, "seed": seed}
            yield key, partial(curve, folder, data, **settings)


if __name__ == "__main__":
    run_all("losses", runs_of(folder_of("losses")))
