"""The report of a comparison of learning: one table, the curves, what was reached at which KL."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokencredit.evaluation.learning import (
    WINDOW,
    first_step_at,
    mean_and_deviation,
    mean_curve,
    running_means,
    value_at,
)
from tokencredit.evaluation.plots import plot_frontier, plot_learning_curves
from tokencredit.evaluation.report import ReportFigure, ReportTable, report_html
from tokencredit.recipes.run.run_folder import write_atomically

Curve = dict[str, list[float]]
Point = tuple[float, float | None, tuple[tuple[str, Any], ...]]
"""Learning rate, gae_lambda where there is a critic, and the settings of the method's own grid."""
COLUMNS = (
    "method", "seeds", "learning rate", "gae_lambda", "mean", "last 20", "held-out, last 20",
    "KL, last 20", "terminal's best at step", "share of terminal's steps",
)  # fmt: skip
KL_LEVELS = (5.0, 10.0, 20.0, 40.0)
KL_COLUMNS = (
    "method", "own settings", *(f"at KL {level:g}" for level in KL_LEVELS), "highest",
    "fall after it", "KL, last 5",
)  # fmt: skip
TUNING_COLUMNS = ("method", "learning rate", "gae_lambda", "own settings", "mean score")
NOTE = (
    "`mean` is the mean over all steps, `last 20` that of the last 20, in nats; "
    "after ± one standard deviation over seeds. `terminal's best at step`: where the running mean "
    f"of {WINDOW} steps of the method's mean curve first reaches the best one of terminal reward; "
    "the last column divides it by the step at which terminal reward does so itself."
)


def averaged(seeds: Sequence[Curve], name: str) -> list[float]:
    """Mean over seeds of one of their curves."""
    return mean_curve([seed[name] for seed in seeds])


def learning_rows(
    curves: Mapping[str, Sequence[Curve]], best: Mapping[str, Point], judged_by: str
) -> list[list[str]]:
    """One row per method, in the order of `COLUMNS`."""
    level = terminal_step = None
    if "terminal" in curves:
        terminal = averaged(curves["terminal"], judged_by)
        level = max(running_means(terminal, WINDOW))
        terminal_step = first_step_at(terminal, level)
    rows = []
    for method, seeds in curves.items():
        step = None if level is None else first_step_at(averaged(seeds, judged_by), level)
        held_out = [
            statistics.mean(s["held_out_score"][-20:]) for s in seeds if "held_out_score" in s
        ]
        rows.append(
            [
                method,
                str(len(seeds)),
                f"{best[method][0]:g}",
                _shown(best[method][1]),
                mean_and_deviation([statistics.mean(seed[judged_by]) for seed in seeds]),
                mean_and_deviation([statistics.mean(seed[judged_by][-20:]) for seed in seeds]),
                mean_and_deviation(held_out) if held_out else "-",
                mean_and_deviation([statistics.mean(seed["kl"][-20:]) for seed in seeds]),
                "not reached" if step is None else str(step),
                "-" if step is None or not terminal_step else f"{step / terminal_step:.2f}",
            ]
        )
    return rows


def rows_at_equal_kl(
    curves: Mapping[str, Sequence[Curve]], best: Mapping[str, Point], judged_by: str
) -> list[list[str]]:
    """One row per method, in the order of `KL_COLUMNS`.

    A level that only some seeds reach is averaged over these, and the row says how many they are.
    `highest` is the largest running mean of each seed; `fall after it` is what the last running
    mean is below it.
    """
    rows = []
    for method, seeds in curves.items():
        at = []
        for level in KL_LEVELS:
            found = [value_at(seed["kl"], seed[judged_by], level) for seed in seeds]
            reached = [value for value in found if value is not None]
            some = "" if len(reached) == len(seeds) else f" ({len(reached)} of {len(seeds)})"
            at.append(mean_and_deviation(reached) + some if reached else "-")
        means = [running_means(seed[judged_by], WINDOW) for seed in seeds]
        rows.append(
            [
                method,
                _own(best[method]),
                *at,
                mean_and_deviation([max(curve) for curve in means]),
                mean_and_deviation([max(curve) - curve[-1] for curve in means]),
                mean_and_deviation([statistics.mean(seed["kl"][-WINDOW:]) for seed in seeds]),
            ]
        )
    return rows


def _own(point: Point) -> str:
    return ", ".join(f"{name} {value}" for name, value in point[2]) or "-"


def _shown(gae_lambda: float | None) -> str:
    return "-" if gae_lambda is None else f"{gae_lambda:g}"


def write_learning_report(
    folder: Path,
    curves: Mapping[str, Sequence[Curve]],
    best: Mapping[str, Point],
    tuning: Mapping[str, Mapping[Point, float]],
    judged_by: str,
) -> Path:
    """Print the table and write it with its figures.

    Args:
        folder: to write `learning.html`, `.md`, `.json` and the figures into: `learning.png`,
            `frontier.png`, and `held-out-frontier.png` where another curve is compared.
        curves: name of a method to its seeds at its best point.
        best: the point of the grid that each method was run at.
        tuning: mean score of each method at each point of the grid.
        judged_by: name of the curve to compare.

    Returns:
        The page.
    """
    rows = learning_rows(curves, best, judged_by)
    table = Table(title="Learning")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    label = judged_by.replace("_", " ") + " (nats)"
    learning = plot_learning_curves(
        {name: [seed[judged_by] for seed in seeds] for name, seeds in curves.items()},
        folder / "learning.png",
        ylabel=label,
        title="Learning curves",
        window=WINDOW,
    )
    held_out = all("held_out_score" in seeds[0] for seeds in curves.values())
    frontiers = [_frontier(folder / "frontier.png", curves, judged_by)]
    if held_out and judged_by != "held_out_score":
        path = folder / "held-out-frontier.png"
        frontiers.append(_frontier(path, curves, "held_out_score"))
    grid = [
        [method, f"{point[0]:g}", _shown(point[1]), _own(point), f"{score:.3f}"]
        for method, points in tuning.items()
        for point, score in points.items()
    ]
    at_equal_kl = rows_at_equal_kl(curves, best, judged_by)
    page = report_html(
        "Which method learns fastest",
        notes=[NOTE],
        tables=[
            ReportTable("Learning", COLUMNS, rows),
            ReportTable("At equal KL", KL_COLUMNS, at_equal_kl),
            ReportTable("Tuning", TUNING_COLUMNS, grid),
        ],
        figures=[
            ReportFigure("Learning curves", learning, f"Running mean of {WINDOW} steps."),
            *(
                ReportFigure("Frontier", frontier, "Along training; the dot is its end.")
                for frontier in frontiers
            ),
        ],
    )
    _write_table(folder / "learning", COLUMNS, rows)
    _write_table(folder / "at-equal-kl", KL_COLUMNS, at_equal_kl)
    write_atomically(folder / "learning.html", page)
    return folder / "learning.html"


def _frontier(path: Path, curves: Mapping[str, Sequence[Curve]], name: str) -> Path:
    """What each method reached at which KL, as the mean of its seeds."""
    return plot_frontier(
        {
            method: (
                running_means(averaged(seeds, "kl"), 2 * WINDOW),
                running_means(averaged(seeds, name), 2 * WINDOW),
            )
            for method, seeds in curves.items()
        },
        path,
        ylabel=name.replace("_", " ") + " (nats)",
        title="What was reached at which KL",
    )


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as Markdown and as JSON, one object a row."""
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    write_atomically(path.with_suffix(".md"), "\n".join(lines) + "\n")
    as_rows = [dict(zip(columns, row, strict=True)) for row in rows]
    write_atomically(path.with_suffix(".json"), json.dumps(as_rows, indent=1) + "\n")
