"""Calibration and the order of ratings as slow loops over Python floats."""

import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def expected_error(predicted: list[float], observed: list[float], bins: int, low: float) -> float:
    """Bins of equal width from `low` to 1, each closed below, the last one closed above too."""
    total = 0.0
    width = (1 - low) / bins
    for index in range(bins):
        start, stop = low + index * width, low + (index + 1) * width
        inside = [
            i
            for i, value in enumerate(predicted)
            if start <= value and (value < stop or index == bins - 1)
        ]
        if inside:
            mean = sum(predicted[i] for i in inside) / len(inside)
            share = sum(observed[i] for i in inside) / len(inside)
            total += len(inside) * abs(mean - share)
    return total / len(predicted)


def concordance(scores: list[float], ratings: list[float]) -> float:
    right, pairs = 0.0, 0
    for i in range(len(scores)):
        for j in range(i):
            if ratings[i] != ratings[j]:
                agrees = (scores[i] - scores[j]) * (ratings[i] - ratings[j])
                right += 1.0 if agrees > 0 else 0.5 if agrees == 0 else 0.0
                pairs += 1
    return right / pairs
