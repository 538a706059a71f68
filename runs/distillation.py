"""Small students that learn from an aligned teacher at every token, against DPO on the same pairs.

    python runs/distillation.py

The student has one layer of 64, the teacher is the quickstart's model of two layers of 128 after
DPO. Each method has two values of its price. The KL is that to the student before training.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from offline_study import (
    Row,
    folder_of,
    language_model_of,
    pairs_of,
    policy_of,
    run_all,
    teachers_of,
)

FACTORS, SEEDS = (1.0, 10.0), (0, 1)
RATE = "training.learning_rate"
METHODS: dict[str, tuple[Row, str, float]] = {
    "DPO": ({"loss": "dpo"}, "options.dpo_beta", 0.1),
    "likelihood of the chosen": ({"loss": "likelihood"}, RATE, 1e-4),
    "DCKD": ({"loss": "dckd"}, "options.strength", 0.2),
    "ADPA": ({"loss": "adpa"}, "options.strength", 1.5),
    "ADPA, advantages within 0 and 1": (
        {"loss": "adpa", "options.advantage_clip": [0.0, 1.0]},
        "options.strength",
        1.5,
    ),
    "AlignDistil": ({"loss": "aligndistil"}, "options.extrapolation", 10.0),
}


def student_of(folder: Path) -> Path:
    """A language model of one layer."""
    return language_model_of(
        folder / "student",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


def curve(folder: Path, data: Path, *, method: str, price: float, seed: int) -> list[Row]:
    output = folder / "policy"
    shutil.rmtree(output, ignore_errors=True)
    own, option, _ = METHODS[method]
    settings = {**own, **teachers_of(own["loss"], folder, data), option: price}
    points: list[Row] = []
    known = folder / "known" / method
    student = student_of(folder)
    policy_of(data, output, seed=seed, points=points, start=student, known=known, **settings)
    return points


def runs_of(folder: Path) -> Iterator[tuple[Row, Callable[[], list[Row]]]]:
    data = pairs_of(folder)["noisy judge"]
    for seed, method, factor in product(SEEDS, METHODS, FACTORS):
        _, option, default = METHODS[method]
        price = float(f"{default * factor:.2g}")
        key = {"method": method, "option": option, "price": price, "seed": seed}
        settings: dict[str, Any] = {"method": method, "price": price, "seed": seed}
        yield key, partial(curve, folder, data, **settings)


if __name__ == "__main__":
    run_all("distillation", runs_of(folder_of("distillation")))
