"""Learning curves: smoothed, averaged over seeds, and when one reaches what another had at best."""

import statistics
from collections.abc import Sequence

WINDOW = 5


def running_means(curve: Sequence[float], window: int) -> list[float]:
    """Means of every `window` neighbours of a curve, or of all of a shorter one.

    >>> running_means([0.0, 1.0, 2.0], 2)
    [0.5, 1.5]
    """
    window = min(window, len(curve))
    return [sum(curve[i : i + window]) / window for i in range(len(curve) - window + 1)]


def first_step_at(curve: Sequence[float], level: float, *, window: int = WINDOW) -> int | None:
    """First step whose running mean reaches a level; None if none does.

    >>> first_step_at([0.0, 1.0, 2.0, 3.0], 2.0, window=2)
    4
    """
    means = running_means(curve, window)
    offset = len(curve) - len(means) + 1
    return next((i + offset for i, mean in enumerate(means) if mean >= level), None)


def mean_curve(seeds: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds, step by step; as long as the shortest of them.

    >>> mean_curve([[1.0, 2.0], [3.0, 4.0, 9.0]])
    [2.0, 3.0]
    """
    return [statistics.mean(points) for points in zip(*seeds, strict=False)]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and, of several values, their standard deviation, as a cell of a table.

    >>> mean_and_deviation([1.0, 2.0])
    '1.50 ± 0.71'
    """
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"
