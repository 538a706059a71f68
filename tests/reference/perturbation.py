"""Credit by perturbation of one response, from a score of sets of units, in Python floats."""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import factorial

Score = Callable[[frozenset[int]], float]


def leave_one_out(score: Score, units: int) -> list[float]:
    everything = frozenset(range(units))
    return [score(everything) - score(everything - {unit}) for unit in range(units)]


def shapley_by_coalitions(score: Score, units: int) -> list[float]:
    """Shapley 1953: every coalition without the unit, weighted by the orders that build it."""
    values = []
    for unit in range(units):
        others = [other for other in range(units) if other != unit]
        value = 0.0
        for size in range(units):
            weight = factorial(size) * factorial(units - size - 1) / factorial(units)
            for chosen in combinations(others, size):
                coalition = frozenset(chosen)
                value += weight * (score(coalition | {unit}) - score(coalition))
        values.append(value)
    return values


def shapley_by_orders(score: Score, orders: Sequence[Sequence[int]]) -> list[float]:
    """Castro et al. 2009: what each unit adds in these orders, on average."""
    values = [0.0] * len(orders[0])
    for order in orders:
        present: frozenset[int] = frozenset()
        for unit in order:
            values[unit] += (score(present | {unit}) - score(present)) / len(orders)
            present |= {unit}
    return values


def shapley_by_all_orders(score: Score, units: int) -> list[float]:
    return shapley_by_orders(score, list(permutations(range(units))))


def spread(values: Sequence[float], units: Sequence[int | None]) -> list[float]:
    """The value of each unit shared evenly by its tokens; None is a token of no unit."""
    return [0.0 if unit is None else values[unit] / units.count(unit) for unit in units]


def slope(
    score: Callable[[list[list[float]]], float], at: list[list[float]], token: int, entry: int
) -> float:
    """Partial derivative by central differences."""
    step = 1e-5
    moved = []
    for sign in (1.0, -1.0):
        copy = [list(row) for row in at]
        copy[token][entry] += sign * step
        moved.append(score(copy))
    return (moved[0] - moved[1]) / (2 * step)


def gradient_times_input(
    score: Callable[[list[list[float]]], float], inputs: list[list[float]]
) -> list[float]:
    return [
        sum(value * slope(score, inputs, token, entry) for entry, value in enumerate(row))
        for token, row in enumerate(inputs)
    ]


def integrated_gradients(
    score: Callable[[list[list[float]]], float],
    inputs: list[list[float]],
    baseline: list[list[float]],
    steps: int,
) -> list[float]:
    """Sundararajan et al. 2017, equation 1, by the midpoint rule."""
    credit = [0.0] * len(inputs)
    for step in range(steps):
        part = (step + 0.5) / steps
        point = [
            [b + part * (e - b) for e, b in zip(row, base, strict=True)]
            for row, base in zip(inputs, baseline, strict=True)
        ]
        for token, (row, base) in enumerate(zip(inputs, baseline, strict=True)):
            for entry, (e, b) in enumerate(zip(row, base, strict=True)):
                credit[token] += (e - b) * slope(score, point, token, entry) / steps
    return credit


def windows(score: Score, units: int, width: int) -> list[float]:
    """Every run of up to `width` units, on its own, told to each unit that it holds."""
    told: list[list[float]] = [[] for _ in range(units)]
    for first in range(units):
        for end in range(first + 1, min(first + width, units) + 1):
            for unit in range(first, end):
                told[unit].append(score(frozenset(range(first, end))) - score(frozenset()))
    return [sum(said) / len(said) for said in told]
