"""Ratings by several objectives: as they are learnt, and how well each of them is.

Each objective is learnt in standard deviations above its mean, so that they count alike whatever
their units; afterwards the rows of the head are scaled, so that a score is a rating above the mean.
Means and standard deviations stand in the configuration, lists in the order of the objectives.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError, DataError
from tokencredit.evaluation.plots import plot_calibration, plot_prefix_accuracy
from tokencredit.models.heads import objective_names
from tokencredit.models.hf_architecture import padding_id
from tokencredit.models.hf_loading import load_config
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.report import Rows, held_out_metrics, rating_rows
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.recipes.settings import LoadingSettings
from tokencredit.scorers.hf_fractions import fraction_scores


def head_of_objectives(
    start: str, names: Sequence[str], loading: LoadingSettings
) -> dict[str, Any]:
    """What the configuration says of a head with an output of each objective.

    Args:
        start: the model that training starts from.
        names: of the objectives.
        loading: of the run.

    Raises:
        ConfigError: the start has as many objectives, and others, or in another order.
        ModelError: there is no model.
    """
    config = load_config(start, trust_remote_code=loading.trust_remote_code)
    before = objective_names(config)
    if len(before) == len(names) and before != tuple(names):
        raise ConfigError(
            f"columns.ratings is {list(names)} and the model {start!r} has the objectives "
            f"{list(before)}; expected the same in the same order, so that each goes on with its "
            "own output: order or rename the columns"
        )
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: output for output, name in enumerate(names)},
        "problem_type": "regression",
    }


def standardised_objectives(
    model: PreTrainedModel, judged: Sequence[JudgedRow], names: Sequence[str]
) -> list[JudgedRow]:
    """Ratings as they are learnt; the model's configuration keeps what undoes it.

    Args:
        model: to train.
        judged: rows with a rating of each objective, NaN where one is missing.
        names: of the objectives.

    Raises:
        DataError: an objective is not rated in any row, or alike in all.
    """
    ratings = torch.tensor([one.targets for one in judged], dtype=torch.float64)
    means, spreads = [], []
    for name, column in zip(names, ratings.T, strict=True):
        rated = column[~column.isnan()]
        if not len(rated) or bool((rated == rated[0]).all()):
            said = (
                f"rated {rated[0]:g} in all of {len(rated)} rows" if len(rated) else "never rated"
            )
            raise DataError(
                f"the objective {name!r} is {said}; expected different ratings in the rows to "
                "train on: drop it from columns.ratings, or add rows"
            )
        means.append(float(rated.mean()))
        spreads.append(float(rated.std(correction=0)))
    model.config.rating_mean, model.config.rating_standard_deviation = means, spreads
    mean, spread = (torch.tensor(of, dtype=ratings.dtype) for of in (means, spreads))
    standard = (ratings - mean) / spread
    return [
        replace(one, targets=tuple(row)) for one, row in zip(judged, standard.tolist(), strict=True)
    ]


def require_orders(judged: Sequence[JudgedRow], names: Sequence[str]) -> None:
    """Held-out ratings, if there are any, differ in each objective.

    Raises:
        DataError: they do not.
    """
    for objective, name in enumerate(names if judged else ()):
        rated = {row.targets[objective] for row in judged if not _missing(row, objective)}
        if len(rated) < 2:
            raise DataError(
                f"{len(judged)} held-out responses, of which the objective {name!r} has "
                f"{len(rated)} different rating(s); expected at least two: hold more of them out, "
                "or none (evaluation.share=0)"
            )


def held_out_objectives(
    model: PreTrainedModel,
    rows: Sequence[JudgedRow],
    names: Sequence[str],
    *,
    learning: bool,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> dict[str, Rows]:
    """What the model says of held-out data when 20, 40, 60, 80 and 100 % have been seen.

    Args:
        model: the trained one, or one in training.
        rows: held-out rows, ratings in their own units.
        names: of the objectives.
        learning: whether scores are in standard deviations yet.
        batch_size: texts per forward pass.
        context: autocast, or none.

    Returns:
        For each objective what `held_out_rows_by_fraction` says of ratings, of the rows where it is
        rated.
    """
    scores = fraction_scores(
        model,
        [one.responses[0] for one in rows],
        pad_id=padding_id(model),
        batch_size=batch_size,
        context=context,
        every_output=True,
    )
    found = {}
    for objective, name in enumerate(names):
        unit = model.config.rating_standard_deviation[objective] if learning else 1.0
        rated = [at for at, row in enumerate(rows) if not _missing(row, objective)]
        ratings = torch.tensor([rows[at].targets[objective] for at in rated])
        mean = model.config.rating_mean[objective]
        found[name] = rating_rows(scores[rated, :, objective] * unit + mean, ratings)
    return found


def objective_metrics(of_objectives: Mapping[str, Rows]) -> dict[str, float]:
    """What `metrics.json` says of whole responses: of each objective, and means over them."""
    each = {name: held_out_metrics(rows) for name, rows in of_objectives.items()}
    means = {"held_out_accuracy": math.fsum(one["held_out_accuracy"] for one in each.values())}
    return {key: value / len(each) for key, value in means.items()} | {
        f"{key}/{name}": value for name, one in each.items() for key, value in one.items()
    }


def write_objective_report(of_objectives: Mapping[str, Rows], folder: Path) -> None:
    """Write `prefix_accuracy` and `calibration`, each `.json` and `.png`, and print a table."""
    accuracy = {
        name: [{key: row[key] for key in ("fraction", "accuracy", "count")} for row in rows]
        for name, rows in of_objectives.items()
    }
    calibration = {
        name: [
            {key: value for key, value in row.items() if key not in ("accuracy", "count")}
            for row in rows
        ]
        for name, rows in of_objectives.items()
    }
    for file, content in (("prefix_accuracy", accuracy), ("calibration", calibration)):
        write_atomically(folder / f"{file}.json", json.dumps(content, indent=2) + "\n")
    plot_prefix_accuracy(accuracy, folder / "prefix_accuracy.png")
    plot_calibration(
        {name: rows[-1]["curve"] for name, rows in of_objectives.items()},
        folder / "calibration.png",
        percent=False,
        xlabel="predicted rating",
        ylabel="mean rating",
    )
    table = Table("objective", "accuracy", "root mean squared error", "rows", title="held-out data")
    for name, rows in of_objectives.items():
        whole = rows[-1]
        numbers = (whole["accuracy"], whole["root_mean_squared_error"])
        table.add_row(name, *(f"{number:.3f}" for number in numbers), str(whole["count"]))
    Console().print(table)


def _missing(row: JudgedRow, objective: int) -> bool:
    return math.isnan(row.targets[objective])
