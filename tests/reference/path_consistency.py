"""Path consistency as slow loops over Python floats, and the soft optimum of an enumerated tree."""

import math
from collections.abc import Callable

Row = list[float]


def losses(
    ratios: Row, values: Row, target_ratios: Row, target_values: Row, rewards: Row, share: float
) -> dict[str, Row]:
    """arXiv 2106.07704: v2, v3 and their reversed counterparts for one response."""

    def squares(k: Row, v: Row) -> tuple[Row, Row]:
        single, several = [], []
        for t in range(len(k)):
            after = v[t + 1] if t + 1 < len(k) else 0.0
            single.append((k[t] - (rewards[t] + after - v[t])) ** 2)
            several.append((sum(k[t:]) - (sum(rewards[t:]) - v[t])) ** 2)
        return single, several

    forward, backward = squares(ratios, target_values), squares(target_ratios, values)
    mixed = [
        [(1 - share) * a + share * b for a, b in zip(one, other, strict=True)]
        for one, other in zip(forward, backward, strict=True)
    ]
    both = [(a + b) / 2 for a, b in zip(*mixed, strict=True)]
    return {"single-step": mixed[0], "multi-step": mixed[1], "both": both}


def soft_value(
    prefix: tuple[int, ...],
    depth: int,
    reference: Callable[[tuple[int, ...]], Row],
    reward: Callable[[tuple[int, ...]], float],
) -> float:
    """log Σ_a π_ref(a | s) exp(r(s, a) + V(s')), 0 below the leaves."""
    if len(prefix) == depth:
        return 0.0
    weights = reference(prefix)
    return math.log(
        sum(
            weights[a]
            * math.exp(reward((*prefix, a)) + soft_value((*prefix, a), depth, reference, reward))
            for a in range(len(weights))
        )
    )
