"""The report of a comparison of learning: one table, the curves, what was reached at which KL."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tokencredit.evaluation.learning import (
    WINDOW,
    first_step_at,
    mean_and_deviation,
    mean_curve,
    running_means,
)
from tokencredit.evaluation.plots import plot_frontier, plot_learning_curves
from tokencredit.evaluation.report import ReportFigure, ReportTable, report_html
from tokencredit.recipes.run_folder import write_atomically

Curve = dict[str, list[float]]
Point = tuple[float, float | None]
"""Learning rate, and gae_lambda where there is a critic."""
COLUMNS = (
    "method", "seeds", "learning rate", "gae_lambda", "mean", "last 20", "held-out, last 20",
    "KL, last 20", "terminal's best at step", "share of terminal's steps",
)  # fmt: skip
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
        folder: to write `learning.html`, `.md`, `.json` and the figures into.
        curves: name of a method to its seeds at its best point.
        best: learning rate and gae_lambda of each method.
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
    watched = (
        "held_out_score" if all("held_out_score" in s[0] for s in curves.values()) else judged_by
    )
    frontier = plot_frontier(
        {
            name: (
                running_means(averaged(seeds, "kl"), 2 * WINDOW),
                running_means(averaged(seeds, watched), 2 * WINDOW),
            )
            for name, seeds in curves.items()
        },
        folder / "frontier.png",
        ylabel=watched.replace("_", " ") + " (nats)",
        title="What was reached at which KL",
    )
    grid = [
        [method, f"{rate:g}", _shown(lam), f"{score:.3f}"]
        for method, points in tuning.items()
        for (rate, lam), score in points.items()
    ]
    page = report_html(
        "Which method learns fastest",
        notes=[NOTE],
        tables=[
            ReportTable("Learning", COLUMNS, rows),
            ReportTable("Tuning", ("method", "learning rate", "gae_lambda", "mean score"), grid),
        ],
        figures=[
            ReportFigure("Learning curves", learning, f"Running mean of {WINDOW} steps."),
            ReportFigure("Frontier", frontier, "Along training; the dot is its end."),
        ],
    )
    lines = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    write_atomically(folder / "learning.md", "\n".join(lines) + "\n")
    as_rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    write_atomically(folder / "learning.json", json.dumps(as_rows, indent=1) + "\n")
    write_atomically(folder / "learning.html", page)
    return folder / "learning.html"
