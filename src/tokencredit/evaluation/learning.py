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


def value_at(
    paid: Sequence[float], gained: Sequence[float], level: float, *, window: int = WINDOW
) -> float | None:
    """What was gained where the price of it first reached a level; None if it never did.

    Both curves are smoothed first; between two steps the straight line counts.

    Args:
        paid: one value a step, the KL for example.
        gained: one value a step, the score for example.
        level: of `paid`.
        window: steps that are averaged.

    >>> value_at([0.0, 4.0, 8.0], [1.0, 2.0, 6.0], 5.0, window=1)
    3.0
    """
    prices, gains = running_means(paid, window), running_means(gained, window)
    at = next((i for i, price in enumerate(prices) if price >= level), None)
    if at is None:
        return None
    if at == 0:
        return gains[0]
    share = (level - prices[at - 1]) / (prices[at] - prices[at - 1])
    return gains[at - 1] + share * (gains[at] - gains[at - 1])


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
