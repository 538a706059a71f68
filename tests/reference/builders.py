"""Pairs made of what is known of answers, one after another, over Python floats."""

import math


def ranked_preference(first: list[float], second: list[float], thresholds: list[float]) -> int:
    for one, other, threshold in zip(first, second, thresholds, strict=True):
        if one > other + threshold:
            return 1
        if other > one + threshold:
            return -1
    return 0


def rated_pairs(ratings: list[float], errors: list[float], z: float) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i in range(len(ratings))
        for j in range(len(ratings))
        if ratings[i] - ratings[j] > z * math.sqrt(errors[i] ** 2 + errors[j] ** 2)
    ]
