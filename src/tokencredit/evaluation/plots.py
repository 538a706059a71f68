"""Figures: learning curves, frontiers, where credit falls, accuracy on partial responses.

Colours are told apart by readers with any kind of colour vision (Okabe and Ito 2008) and every line
is named where it ends. Figures need no display and leave pyplot's state alone.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from tokencredit.errors import DataError
from tokencredit.masking import left_packed

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#777777")
REFERENCE_COLOR = "#000000"
INK, FAINT = "#333333", "#DDDDDD"
_DASHES = ("-", "--", ":")

Named = TypeVar("Named")


def plot_learning_curves(
    runs: Mapping[str, Sequence[Sequence[float | int]]],
    path: str | Path,
    *,
    ylabel: str = "reward (nats)",
    xlabel: str = "step",
    title: str = "",
    steps_per_point: int = 1,
    window: int = 1,
) -> Path:
    """Write the mean over seeds of every method, with a band of one standard deviation.

    Args:
        runs: name of a method to its seeds, one number per point each. Where seeds differ in
            length (unfinished runs), the curve ends with the shortest.
        path: of the file to write; its ending names the format.
        ylabel: what the numbers are, with their unit.
        xlabel: what the points are.
        title: above the figure.
        steps_per_point: between two numbers of a seed.
        window: points of the running mean that smooths each seed; 1 leaves it as it is.

    Returns:
        The path.

    Raises:
        DataError: there are no runs, or one has no finite number to show.
    """
    figure, axes = _figure(title, xlabel, ylabel)
    lines = {}
    for index, (name, seeds) in enumerate(_present(runs, "runs").items()):
        length = min((len(seed) for seed in seeds), default=0)
        curves = torch.tensor([list(seed[:length]) for seed in seeds], dtype=torch.float64)
        curves = _running_mean(curves.reshape(len(seeds), length), window)
        mean = curves.mean(0)
        spread = curves.std(0) if len(seeds) > 1 else torch.zeros_like(mean)
        steps = [steps_per_point * (point + 1) for point in range(length)]
        color, dashes = _line_style(index)
        lines[name] = (steps, mean.tolist(), color, dashes)
        low, high = (mean - spread).tolist(), (mean + spread).tolist()
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _draw_named(axes, lines)
    return write_figure(figure, path)


def plot_credit_by_position(
    token_scores: Mapping[str, Float[Tensor, "batch time"]],
    mask: Bool[Tensor, "batch time"],
    path: str | Path,
    *,
    title: str = "",
    reference: str | None = None,
    points: int = 20,
) -> Path:
    """Write how much of the credit of a response is paid by the time that part of it is written.

    The mean over responses of the share of absolute credit,

        Σ_{t ≤ f T} |r_t| / Σ_t |r_t|

    A response without any credit is left out. Uniform credit is the diagonal, terminal credit a
    jump at the end.

    Args:
        token_scores: name of a method to its scores in any unit.
        mask: True on response tokens.
        path: of the file to write; its ending names the format.
        title: above the figure.
        reference: the method to draw dashed in black, true credit say.
        points: along a response.

    Returns:
        The path.

    Raises:
        DataError: there are no scores, or a method pays nothing anywhere.
    """
    figure, axes = _figure(title, "part of the response written", "part of the credit paid")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    fractions = torch.linspace(0, 1, points + 1)
    methods = [name for name in _present(token_scores, "scores") if name != reference]
    lines = {}
    for name, scores in token_scores.items():
        paid = _paid_shares(scores, mask, fractions)
        is_method = name in methods
        color, dashes = _line_style(methods.index(name)) if is_method else (REFERENCE_COLOR, "--")
        lines[name] = (fractions.tolist(), paid.tolist(), color, dashes)
    _show_percent(axes)
    axes.set_ylim(0, 1.02)
    # All lines meet at (1, 1), so they are named by where they are a little before.
    _draw_named(axes, lines, named_at=-2)
    return write_figure(figure, path)


def plot_prefix_accuracy(
    rows: Sequence[Mapping[str, float | int]] | Mapping[str, Sequence[Mapping[str, float | int]]],
    path: str | Path,
    *,
    title: str = "",
) -> Path:
    """Write the accuracy of reward models by the part of the response that they have seen.

    Bars are one binomial standard error where rows have a `count`; the grey line is chance.

    Args:
        rows: `fraction` and `accuracy` in [0, 1] each, and `count`, as
            `tokencredit.evaluation.prefix_accuracy` returns them; or names of models to such rows.
        path: of the file to write; its ending names the format.
        title: above the figure.

    Returns:
        The path.

    Raises:
        DataError: there are no rows.
    """
    models = _present(rows if isinstance(rows, Mapping) else {"": rows}, "rows")
    figure, axes = _figure(title, "part of the response seen", "accuracy on held-out data")
    axes.axhline(0.5, color="#888888", linewidth=1.2, zorder=1)
    lines = {}
    for index, (name, points) in enumerate(models.items()):
        fractions = [point["fraction"] for point in points]
        accuracy = [point["accuracy"] for point in points]
        errors = [_binomial_error(point) for point in points]
        color, dashes = _line_style(index)
        axes.errorbar(fractions, accuracy, errors, fmt="o", color=color, markersize=5)
        lines[name] = (fractions, accuracy, color, dashes)
    _show_percent(axes)
    _draw_named(axes, lines, margin=0.03)
    return write_figure(figure, path)


def plot_frontier(
    paths: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    xlabel: str = "KL to the reference (nats)",
    ylabel: str = "score (nats)",
    title: str = "",
) -> Path:
    """Write what each method reaches at which price: a line through its points, in their order.

    Args:
        paths: name of a method to the prices and what was reached at them.
        path: of the file to write; its ending names the format.
        xlabel: what the prices are, with their unit.
        ylabel: what was reached, with its unit.
        title: above the figure.

    Returns:
        The path.

    Raises:
        DataError: there are no paths, or one has no finite point.
    """
    figure, axes = _figure(title, xlabel, ylabel)
    lines = {}
    for index, (name, (prices, reached)) in enumerate(_present(paths, "paths").items()):
        color, dashes = _line_style(index)
        lines[name] = (prices, reached, color, dashes)
        axes.plot(prices[-1:], reached[-1:], "o", color=color, markersize=5)
    _draw_named(axes, lines)
    return write_figure(figure, path)


def plot_calibration(
    curves: Sequence[Mapping[str, float | int]] | Mapping[str, Sequence[Mapping[str, float | int]]],
    path: str | Path,
    *,
    title: str = "",
    xlabel: str = "predicted probability",
    ylabel: str = "observed share",
    percent: bool = True,
) -> Path:
    """Write what reward models predict against what was observed; the grey line is a perfect one.

    The area of a point is proportional to the judgements in its bin.

    Args:
        curves: rows of a reliability curve, as `tokencredit.evaluation.calibration` returns them;
            or names of models to such rows.
        path: of the file to write; its ending names the format.
        title: above the figure.
        xlabel: what is predicted.
        ylabel: what is observed.
        percent: show both as percentages; off for ratings.

    Returns:
        The path.

    Raises:
        DataError: there are no curves, or one of them is empty.
    """
    models = _present(curves if isinstance(curves, Mapping) else {"": curves}, "curves")
    figure, axes = _figure(title, xlabel, ylabel)
    lines = {}
    for index, (name, rows) in enumerate(models.items()):
        predicted, observed = ([row[key] for row in rows] for key in ("predicted", "observed"))
        largest = max((row["count"] for row in rows), default=1)
        color, dashes = _line_style(index)
        axes.scatter(
            predicted, observed, [90 * row["count"] / largest for row in rows], color=color
        )
        lines[name] = (predicted, observed, color, dashes)
    shown = [value for x, y, *_ in lines.values() for value in (*x, *y)]
    ends = [min(shown, default=0), max(shown, default=1)]
    axes.plot(ends, ends, color="#888888", linewidth=1.2, zorder=1)
    if percent:
        _show_percent(axes)
    _draw_named(axes, lines, margin=0.05)
    return write_figure(figure, path)


def write_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure at once or not at all, in the format that the ending of the path names."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format=path.suffix[1:] or "png", dpi=160, bbox_inches="tight")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _present(named: Mapping[str, Named], what: str) -> Mapping[str, Named]:
    if not named:
        raise DataError(f"no {what} to plot; expected at least one, under the name to show")
    return named


def _figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), facecolor="white")
    axes = titled_axes(figure, title, xlabel)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    return figure, axes


def titled_axes(figure: Figure, title: str, xlabel: str) -> Axes:
    """The one plot of a figure, in the style of all figures.

    Args:
        figure: to draw in.
        title: above it.
        xlabel: below it.
    """
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    return axes


def _line_style(index: int) -> tuple[str, str]:
    """Colour and dashes: all colours first, then the same ones in other dashes."""
    return COLORS[index % len(COLORS)], _DASHES[index // len(COLORS) % len(_DASHES)]


def _show_percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _draw_named(
    axes: Axes,
    lines: Mapping[str, tuple[Sequence[float | int], Sequence[float | int], str, str]],
    *,
    named_at: int = -1,
    margin: float = 0.0,
) -> None:
    """Draw the lines and write their names beside the right end, none upon another."""
    anchors = {}
    for name, (x, y, color, dashes) in lines.items():
        finite = [point for point in zip(x, y, strict=True) if isfinite(point[1])]
        if not finite:
            raise DataError(f"{name!r} has no finite number to plot; expected at least one")
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=2)
        anchors[name] = finite[max(named_at, -len(finite))]
    axes.margins(x=margin)
    low, high = axes.get_ylim()
    heights = _spread([(y - low) / (high - low) for _, y in anchors.values()], gap=0.065)
    for (name, anchor), height in zip(anchors.items(), heights, strict=True):
        color = lines[name][2]
        axes.annotate(
            name,
            anchor,
            xytext=(1.04, height),
            textcoords="axes fraction",
            color=color,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.7,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
        )


def _spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """The heights in their order, moved as little as keeps them a gap apart, in runs around means.

    >>> [round(height, 3) for height in _spread([0.5, 0.9, 0.5], gap=0.1)]
    [0.45, 0.9, 0.55]
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    runs: list[list[int]] = []
    for index in order:
        runs.append([index])
        while len(runs) > 1 and _bottom(runs[-1], heights, gap) < (
            _bottom(runs[-2], heights, gap) + gap * len(runs[-2])
        ):
            runs[-2:] = [runs[-2] + runs[-1]]
    placed = {
        index: _bottom(run, heights, gap) + gap * place
        for run in runs
        for place, index in enumerate(run)
    }
    return [placed[index] for index in range(len(heights))]


def _bottom(run: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return sum(heights[index] for index in run) / len(run) - gap * (len(run) - 1) / 2


def _running_mean(curves: Tensor, window: int) -> Tensor:
    """Each point the mean of itself and the `window - 1` points before it, as far as there are."""
    totals = torch.nn.functional.pad(curves.cumsum(-1), (1, 0))
    ends = torch.arange(1, totals.shape[-1])
    starts = (ends - window).clamp(min=0)
    return (totals[:, ends] - totals[:, starts]) / (ends - starts)


def _paid_shares(scores: Tensor, mask: Tensor, fractions: Tensor) -> Tensor:
    """Mean over responses of the share of absolute credit in each leading fraction of them."""
    packed, packed_mask = left_packed(scores.detach().cpu().double().abs(), mask.cpu())
    paid = torch.nn.functional.pad(packed.cumsum(-1), (1, 0))
    paying = paid[:, -1] > 0
    if not bool(paying.any()):
        raise DataError("a method pays nothing anywhere; expected scores other than zero")
    paid, lengths = paid[paying] / paid[paying, -1:], packed_mask.sum(-1)[paying]
    tokens = lengths[:, None] * fractions.double()
    before = tokens.floor().long()
    after = torch.minimum(before + 1, lengths[:, None])
    between = paid.gather(-1, before).lerp(paid.gather(-1, after), tokens - before)
    return between.mean(0)


def _binomial_error(row: Mapping[str, float | int]) -> float:
    count = row.get("count", 0)
    return (row["accuracy"] * (1 - row["accuracy"]) / count) ** 0.5 if count else 0.0
