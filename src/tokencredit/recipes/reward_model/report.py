"""How good a reward model is on held-out data: accuracy and calibration by the part seen."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.evaluation.calibration import (
    expected_calibration_error,
    label_reliability_curve,
    pair_reliability_curve,
    rating_reliability_curve,
)
from tokencredit.evaluation.plots import plot_calibration, plot_prefix_accuracy
from tokencredit.evaluation.prefix_accuracy import (
    FRACTIONS,
    label_accuracy_by_fraction,
    pair_accuracy_by_fraction,
    rating_accuracy_by_fraction,
)
from tokencredit.models.heads import objective_names
from tokencredit.models.hf_architecture import padding_id
from tokencredit.recipes.reward_model.evaluation_report import fraction_table
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.lessons import mean_of_outputs
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.reward_model.objectives import RowKind
from tokencredit.scorers.hf_fractions import fraction_scores
from tokencredit.scorers.hf_segment_ends import SegmentEnds

Rows = list[dict[str, Any]]
DRAWN = (0.4, 1.0)


def held_out_rows_by_fraction(
    model: PreTrainedModel,
    rows: Sequence[JudgedRow],
    *,
    kind: RowKind,
    rating_mean: float,
    score_unit: float = 1.0,
    batch_size: int,
    context: AbstractContextManager[Any],
    segment_ends: SegmentEnds | None,
    joined: Callable[[Tensor, Sequence[JudgedRow]], Tensor] = mean_of_outputs,
) -> Rows:
    """What the model says of held-out data when 20, 40, 60, 80 and 100 % have been seen.

    Args:
        model: the trained one.
        rows: held-out rows, ratings in their own unit.
        kind: of the rows.
        rating_mean: what a score of 0 stands for.
        score_unit: what a score of 1 stands for, in the unit of the ratings or in nats.
        batch_size: texts per forward pass.
        context: autocast, or none.
        segment_ends: as in `fraction_scores`.
        joined: one score of all outputs, as of `Lesson`.

    Returns:
        A row per fraction: `fraction`, `accuracy` (of ratings the share of pairs in their order),
        `count`, `expected_calibration_error` (of ratings in their unit), `curve`; for ratings also
        `root_mean_squared_error`.
    """
    texts = [row for side in zip(*(one.responses for one in rows), strict=True) for row in side]
    scores = fraction_scores(
        model,
        texts,
        pad_id=padding_id(model),
        batch_size=batch_size,
        context=context,
        segment_ends=segment_ends,
        every_output=bool(objective_names(model.config)),
    )
    if objective_names(model.config):
        scores = joined(scores, rows)
    scores = scores * score_unit
    targets = torch.tensor([one.target for one in rows])
    if kind == "pairs":
        return _with_curves(
            pair_accuracy_by_fraction(*scores.chunk(2)),
            [pair_reliability_curve(*column.chunk(2)) for column in scores.T],
        )
    if kind == "labels":
        return _with_curves(
            label_accuracy_by_fraction(scores, targets),
            [label_reliability_curve(column, targets) for column in scores.T],
        )
    return rating_rows(scores + rating_mean, targets)


def rating_rows(predicted: Float[Tensor, "rows fractions"], ratings: Float[Tensor, "rows"]) -> Rows:
    """Accuracy, calibration and error of predicted ratings, a row per fraction.

    Args:
        predicted: when so much of a response has been seen, in the unit of the ratings.
        ratings: of each response.
    """
    rows = _with_curves(
        rating_accuracy_by_fraction(predicted, ratings),
        [rating_reliability_curve(column, ratings) for column in predicted.T],
    )
    errors = (predicted - ratings[:, None]).double().square().mean(0).sqrt()
    for row, error in zip(rows, errors, strict=True):
        row["root_mean_squared_error"] = float(error)
    return rows


def _with_curves(
    accuracies: Sequence[dict[str, float | int]], curves: Sequence[list[dict[str, float | int]]]
) -> Rows:
    return [
        {**row, "expected_calibration_error": expected_calibration_error(curve), "curve": curve}
        for row, curve in zip(accuracies, curves, strict=True)
    ]


def held_out_metrics(rows: Rows) -> dict[str, float]:
    """What `metrics.json` says of whole responses."""
    named = {
        "held_out_accuracy": "accuracy",
        "expected_calibration_error": "expected_calibration_error",
        "root_mean_squared_error": "root_mean_squared_error",
    }
    return {name: rows[-1][key] for name, key in named.items() if key in rows[-1]}


def write_prefix_accuracy(rows: Rows, folder: Path) -> None:
    """Write accuracies by the part seen to `prefix_accuracy.json` and `.png`, and print them."""
    write_atomically(folder / "prefix_accuracy.json", json.dumps(rows, indent=2) + "\n")
    plot_prefix_accuracy(rows, folder / "prefix_accuracy.png")
    Console().print(fraction_table(rows, title="held-out accuracy"))


def write_report(rows: Rows, folder: Path, *, kind: RowKind) -> None:
    """Write `prefix_accuracy` and `calibration`, each `.json` and `.png`, and print a table."""
    accuracy = [{key: row[key] for key in ("fraction", "accuracy", "count")} for row in rows]
    calibration = [
        {key: value for key, value in row.items() if key not in ("accuracy", "count")}
        for row in rows
    ]
    for name, content in (("prefix_accuracy", accuracy), ("calibration", calibration)):
        write_atomically(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    plot_prefix_accuracy(accuracy, folder / "prefix_accuracy.png")
    rated = kind == "ratings"
    labels = {"xlabel": "predicted rating", "ylabel": "mean rating"} if rated else {}
    plot_calibration(
        {f"{rows[i]['fraction']:.0%} seen": rows[i]["curve"] for i in map(FRACTIONS.index, DRAWN)},
        folder / "calibration.png",
        percent=not rated,
        **labels,
    )
    Console().print(_table(rows, title="held-out data"))


def _table(rows: Rows, *, title: str) -> Table:
    table = Table("response seen", "accuracy", "calibration error", "rows", title=title)
    for row in rows:
        numbers = (row["accuracy"], row["expected_calibration_error"])
        shown = (f"{number:.3f}" for number in numbers)
        table.add_row(f"{row['fraction']:.0%}", *shown, str(row["count"]))
    return table
