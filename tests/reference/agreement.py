"""Agreement of token scores with labels, over all pairs of tokens or all thresholds."""

from math import nan, sqrt


def auroc(scores: list[float], labels: list[bool]) -> float:
    won, pairs = 0.0, 0
    for score, marked in zip(scores, labels, strict=True):
        for other, other_marked in zip(scores, labels, strict=True):
            if marked and not other_marked:
                pairs += 1
                won += 1.0 if score > other else 0.5 if score == other else 0.0
    return won / pairs if pairs else nan


def average_precision(scores: list[float], labels: list[bool]) -> float:
    total, recall_before = 0.0, 0.0
    if not any(labels):
        return nan
    for threshold in sorted(set(scores), reverse=True):
        found = [marked for score, marked in zip(scores, labels, strict=True) if score >= threshold]
        recall = sum(found) / sum(labels)
        total += (recall - recall_before) * sum(found) / len(found)
        recall_before = recall
    return total


def pearson(first: list[float], second: list[float]) -> float:
    if len(set(first)) < 2 or len(set(second)) < 2:
        return nan
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    covariance = sum(
        (a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True)
    )
    spread_first = sum((a - mean_first) ** 2 for a in first)
    spread_second = sum((b - mean_second) ** 2 for b in second)
    return covariance / sqrt(spread_first * spread_second)


def ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(first: list[float], second: list[float]) -> float:
    return pearson(ranks(first), ranks(second))
