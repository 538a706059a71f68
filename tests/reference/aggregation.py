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


def mean_less_deviation(scores: list[float], coef: float) -> float:
    mean, variance = mean_and_variance(scores)
    return mean - coef * math.sqrt(variance)
