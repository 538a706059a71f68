"""Scores of several models combined, as slow loops over Python floats."""

import math


def weighted_sum(scores: list[float], weights: list[float]) -> float:
    total = 0.0
    for score, weight in zip(scores, weights, strict=True):
        total += weight * score
    return total


def worst_case(scores: list[float]) -> float:
    least = scores[0]
    for score in scores[1:]:
        least = score if score < least else least
    return least


def mean_and_variance(scores: list[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    squares = 0.0
    for score in scores:
        squares += (score - mean) ** 2
    return mean, squares / len(scores)


def mean_less_variance(scores: list[float], coef: float) -> float:
    mean, variance = mean_and_variance(scores)
    return mean - coef * variance


def nominal_and_worst(scores: list[float], share: float) -> float:
    return share * scores[0] + (1 - share) * worst_case(scores)


def log_sigmoid_sum(scores: list[float]) -> float:
    total = 0.0
    for score in scores:
        total += math.log(1 / (1 + math.exp(-score)))
    return total


def mean_less_deviation(scores: list[float], coef: float) -> float:
    mean, variance = mean_and_variance(scores)
    return mean - coef * math.sqrt(variance)


def win_probability(score: float, references: list[float], slope: float) -> float:
    total, known = 0.0, 0
    for other in references:
        if not math.isnan(other):
            total += 1 / (1 + math.exp(-slope * (score - other)))
            known += 1
    return total / known


def reference_quantile(references: list[float], above: float) -> float:
    """`above` deviations above the mean."""
    mean, variance = mean_and_variance([one for one in references if not math.isnan(one)])
    return mean + above * math.sqrt(variance)


def log_win_probability(score: float, quantile: float) -> float:
    return -math.log(1 + math.exp(quantile - score))


def fused(
    score: float, others: list[float], similarities: list[float], least: float, most: int
) -> float:
    """The text itself weighs 1, each of its likest neighbours what it is like."""
    ranked = sorted(range(len(others)), key=lambda at: -similarities[at])[:most]
    total, weights = score, 1.0
    for at in ranked:
        if similarities[at] >= least:
            total += similarities[at] * others[at]
            weights += similarities[at]
    return total / weights
