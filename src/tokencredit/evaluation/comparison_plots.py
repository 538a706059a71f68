"""Figures of a comparison of methods: means with their intervals, scores along deletion."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tokencredit.errors import DataError
from tokencredit.evaluation.plots import (
    COLORS,
    FAINT,
    INK,
    REFERENCE_COLOR,
    titled_axes,
    write_figure,
)

_DASHES = ("-", "--", ":")


def plot_intervals(
    rows: Sequence[tuple[str, str, float, float, float]],
    path: str | Path,
    *,
    xlabel: str,
    title: str = "",
    reference: float | None = None,
) -> Path:
    """Write a dot with a bar per method, the highest at the top, kinds of methods in colours.

    Args:
        rows: name, kind, mean, low and high end of its interval; one whose mean is NaN is left
            out.
        path: of the file to write; its ending names the format.
        xlabel: what the numbers are, with their unit.
        title: above the figure.
        reference: where to draw a grey line, for example at chance.

    Returns:
        The path.

    Raises:
        DataError: there is no row with a number.
    """
    shown = sorted((row for row in rows if isfinite(row[2])), key=lambda row: row[2])
    if not shown:
        raise DataError("no numbers to plot; expected at least one method with a mean")
    kinds = list(dict.fromkeys(row[1] for row in rows))
    figure = Figure(figsize=(7, 1.2 + 0.27 * len(shown)), facecolor="white")
    axes = titled_axes(figure, title, xlabel)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    if reference is not None:
        axes.axvline(reference, color="#888888", linewidth=1.2, zorder=1)
    for at, (_, kind, mean, low, high) in enumerate(shown):
        color = COLORS[kinds.index(kind) % len(COLORS)]
        axes.plot([low, high], [at, at], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot([mean], [at], "o", color=color, markersize=6)
    axes.set_yticks(range(len(shown)), [row[0] for row in shown])
    for label, row in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(COLORS[kinds.index(row[1]) % len(COLORS)])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return write_figure(figure, path)


def plot_fraction_curves(
    curves: Mapping[str, Sequence[float]],
    fractions: Sequence[float],
    path: str | Path,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    reference: str | None = None,
) -> Path:
    """Write a line per method over fractions of a text.

    Args:
        curves: name of a method to one number per fraction.
        fractions: in [0, 1].
        path: of the file to write; its ending names the format.
        xlabel: what the fractions are of.
        ylabel: what the numbers are, with their unit.
        title: above the figure.
        reference: the method to draw dashed in black.

    Returns:
        The path.

    Raises:
        DataError: there are no curves.
    """
    if not curves:
        raise DataError("no curves to plot; expected at least one, under the name to show")
    figure = Figure(figsize=(7, 4), facecolor="white")
    axes = titled_axes(figure, title, xlabel)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.axhline(0, color="#888888", linewidth=1, zorder=1)
    methods = [name for name in curves if name != reference]
    for name, curve in curves.items():
        index = methods.index(name) if name in methods else 0
        style = _DASHES[index // len(COLORS) % len(_DASHES)] if name in methods else "--"
        color = COLORS[index % len(COLORS)] if name in methods else REFERENCE_COLOR
        axes.plot(fractions, curve, color=color, linestyle=style, linewidth=1.8, label=name)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return write_figure(figure, path)
