"""Several objectives, constraints and judges, as slow loops over Python floats."""

import math
import statistics

Row, Mask = list[float], list[bool]


def _kept(row: Row, mask: Mask) -> Row:
    return [value for value, counts in zip(row, mask, strict=True) if counts]


def pama(objectives: list[list[Row]], masks: list[Mask]) -> list[Row]:
    """arXiv 2508.07768: the projection of 0 on what lies between clipped advantages."""
    found = []
    for b, mask in enumerate(masks):
        row = []
        for t, counts in enumerate(mask):
            values = [max(one[b][t], 0.0) for one in objectives]
            row.append(min(values) if counts else 0.0)
        found.append(row)
    return found


def normalised(rows: list[Row], masks: list[Mask], groups: list[int], epsilon: float) -> list[Row]:
    """Every response once: its mean and its mean square, whatever its length."""
    found = [[0.0] * len(row) for row in rows]
    for group in set(groups):
        members = [b for b in range(len(rows)) if groups[b] == group and any(masks[b])]
        if not members:
            continue
        mean = statistics.fmean(statistics.fmean(_kept(rows[b], masks[b])) for b in members)
        squares = [
            statistics.fmean([(value - mean) ** 2 for value in _kept(rows[b], masks[b])])
            for b in members
        ]
        deviation = math.sqrt(sum(squares) / max(len(members) - 1, 1))
        for b in members:
            for t, counts in enumerate(masks[b]):
                found[b][t] = (rows[b][t] - mean) / (deviation + epsilon) if counts else 0.0
    return found


def summed(objectives: list[list[Row]], weights: Row) -> list[Row]:
    first = objectives[0]
    return [
        [
            sum(w * one[b][t] for w, one in zip(weights, objectives, strict=True))
            for t in range(len(first[b]))
        ]
        for b in range(len(first))
    ]


def worst(returns: list[Row], groups: list[int]) -> list[int]:
    """arXiv 2402.08925: argmin over objectives of the mean return of a group."""
    found = []
    for b in range(len(groups)):
        members = [i for i in range(len(groups)) if groups[i] == groups[b]]
        means = [statistics.fmean(one[i] for i in members) for one in returns]
        found.append(means.index(min(means)))
    return found


def mixed(kl: list[Row], objectives: list[list[Row]], multipliers: Row) -> list[Row]:
    """arXiv 2310.04373: (N − Σ μ) A_KL + Σ μ_i A_i."""
    left = len(objectives) - sum(multipliers)
    return [
        [
            left * kl[b][t]
            + sum(m * one[b][t] for m, one in zip(multipliers, objectives, strict=True))
            for t in range(len(kl[b]))
        ]
        for b in range(len(kl))
    ]


def pessimistic_costs(costs: Row, mean: float, deviation: float, k: float) -> Row:
    """arXiv 2506.08266: c + k (c² − 2 c mean) / (2 s)."""
    return [c + k * (c * c - 2 * c * mean) / (2 * deviation) for c in costs]


def pair_signs(scores: Row, passed: Mask, groups: list[int]) -> Row:
    """arXiv 2409.20370: the best that passes, against the worst that fails or the worst of all."""
    signs = [0.0] * len(scores)
    for group in set(groups):
        rows = [b for b in range(len(scores)) if groups[b] == group]
        good = [b for b in rows if passed[b]]
        bad = [b for b in rows if not passed[b]] or good
        if not good:
            continue
        chosen = max(good, key=lambda b: scores[b])
        rejected = min(bad, key=lambda b: scores[b])
        if chosen != rejected:
            signs[chosen], signs[rejected] = 1.0, -1.0
    return signs


def pair_loss(
    policy: list[Row], reference: list[Row], masks: list[Mask], beta: float, coef: float
) -> float:
    """Equation 14 of arXiv 2409.20370, the chosen row first."""
    sums = [
        sum(_kept([p - r for p, r in zip(own, other, strict=True)], mask))
        for own, other, mask in zip(policy, reference, masks, strict=True)
    ]
    margin = beta * (sums[0] - sums[1])
    chosen = _kept(policy[0], masks[0])
    return math.log1p(math.exp(-margin)) - coef * sum(chosen) / len(chosen)
