"""Own responses in rounds against collected pairs, and rounds in which a policy judges itself.

    python runs/preference_rounds.py

First part: three rounds of 500 prompts with eight responses each, judged by the quickstart's
reward model, against one round of all 1,500 prompts: the same number of judgements. Second part:
four rounds that begin with a policy by DPO on pairs of which 30 % are turned around, and in which
it judges itself, with labels as they are or as soft as its consistency says. Policies are judged
along all rounds.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from offline_study import (
    QUICKSTART,
    START,
    Row,
    folder_of,
    judged_along,
    judged_folder,
    pairs_of,
    policy_of,
    run_all,
    written,
)

from tokencredit.recipes.iteration.iterate_preferences import (
    IteratePreferencesConfig,
    iterate_preferences,
)
from tokencredit.recipes.settings import settings_from
from tokencredit.toy.reviews import sample_prompt

FACTORS, SEEDS = (1.0, 10.0), (0,)
RATE = "training.learning_rate"
PER_ROUND, ROUNDS, OWN_ROUNDS, OWN_PRICE = 500, 3, 4, 0.3

JUDGED: dict[str, Row] = {
    "one round": {"rounds": 1, "prompts_per_round": ROUNDS * PER_ROUND},
    "moving reference": {"reference": "previous"},
    "fixed reference": {"reference": "first"},
    "moving reference, weights by prefix differences": {
        "reference": "previous",
        "token_weights.kind": "credit",
        "credit.method": "prefix-difference",
    },
    "INPO": {"setup": "inpo"},
    "rejection sampling": {"setup": "rejection-sampling"},
}
PRICES = {"INPO": ("options.dpo_beta", 0.0075), "rejection sampling": (RATE, 1e-4)}
OWN: dict[str, Row] = {
    "its own labels": {"setup": "custom", "judged_by": "log-ratio", "loss": "dpo", "samples": 5},
    "CREAM, mean consistency": {"setup": "cream", "consistency": "average"},
    "CREAM, consistency of each prompt": {"setup": "cream", "consistency": "per-prompt"},
}


def prompts_of(folder: Path) -> Path:
    """Prompts of the grammar, as many as all rounds ask."""
    rng = random.Random(5)
    rows = [{"prompt": sample_prompt(rng)} for _ in range(ROUNDS * PER_ROUND)]
    return written(folder / "prompts.jsonl", rows)


def curve(output: Path, *, prompts: Path, model: Path, own: Row) -> list[Row]:
    """What the policy is worth along all rounds."""
    shutil.rmtree(output, ignore_errors=True)
    shared = {
        "prompts": str(prompts),
        "model": str(model),
        "output": str(output),
        "prompts_per_round": PER_ROUND,
        "prompts_at_once": 50,
        "sampling.max_new_tokens": 40,
        "sampling.min_new_tokens": 40,
        "max_length": 96,
        "evaluation.share": 0.0,
        "training.batch_size": 16,
        "training.learning_rate": 3e-4,
        "training.checkpoint_every": 10,
        "device": "cpu",
        "progress": False,
    }
    points = [{"step": 0, **judged_folder(model)}]
    with judged_along(points, START):
        iterate_preferences(settings_from(IteratePreferencesConfig, shared | own))
    last = output / f"round-{own['rounds'] - 1:03d}"
    return [*points, {"step": "end", **judged_folder(last)}]


def judged_rounds(folder: Path) -> Iterator[tuple[Row, Callable[[], list[Row]]]]:
    prompts = prompts_of(folder)
    for seed, method, factor in product(SEEDS, JUDGED, FACTORS):
        option, default = PRICES.get(method, ("options.dpo_beta", 0.1))
        own: Row = {
            "reward_model": str(QUICKSTART / "reward-model"),
            "rounds": ROUNDS,
            "seed": seed,
            **JUDGED[method],
            option: float(f"{default * factor:.2g}"),
        }
        key = {"part": "judged", "method": method, "option": option, "price": own[option],
               "seed": seed}  # fmt: skip
        settings: dict[str, Any] = {"prompts": prompts, "model": START, "own": own}
        yield key, partial(curve, folder / "judged", **settings)


def own_rounds(folder: Path) -> Iterator[tuple[Row, Callable[[], list[Row]]]]:
    data, prompts = pairs_of(folder)["30 % turned around"], prompts_of(folder)
    for seed, method in product(SEEDS, OWN):
        own: Row = {
            "base": str(START),
            "seed": seed,
            "rounds": OWN_ROUNDS,
            "options.dpo_beta": OWN_PRICE,
            **OWN[method],
        }

        def points(own: Row = own) -> list[Row]:
            price = {"options.dpo_beta": OWN_PRICE}
            first = policy_of(data, folder / "first", seed=100, **price)
            return curve(folder / "own", prompts=prompts, model=first, own=own)

        yield {"part": "own", "method": method, "price": OWN_PRICE, "seed": seed}, points


if __name__ == "__main__":
    out = folder_of("rounds")
    run_all("rounds", [*own_rounds(out), *judged_rounds(out)])
