"""Selection of responses as slow loops."""

import math


def kept(scores: list[float], groups: list[int], keep: str, count: int) -> list[int]:
    """Rows that stay, without those that are drawn."""
    chosen = []
    for group in sorted(set(groups)):
        rows = [row for row, one in enumerate(groups) if one == group]
        left = [row for row in rows if not math.isnan(scores[row])]
        for _ in range(count if keep == "best" else 1):
            best = left[0]
            for row in left:
                best = row if scores[row] > scores[best] else best
            left.remove(best)
            chosen.append(best)
        if keep == "best-worst":
            worst = left[-1]
            for row in reversed(left):
                worst = row if scores[row] < scores[worst] else worst
            chosen.append(worst)
    return sorted(chosen)


def determination(x: list[float], y: list[float]) -> float:
    """1 less the share of the variance of y that the best line through x leaves."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )
    left = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return 1 - left / sum((b - mean_y) ** 2 for b in y)
