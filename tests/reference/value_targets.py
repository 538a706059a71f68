"""What each prefix should predict, for one response, as slow loops over Python floats."""

import math


def bootstrapped(values: list[float], outcome: float, share: float) -> list[float]:
    """The mean of k-step looks ahead, each of weight (1 - share) share^(k - 1), the last the rest.

    A look k tokens ahead sees the value there, one beyond the end the outcome.
    """
    targets = []
    for t in range(len(values)):
        later = values[t + 1 :]
        target, left = 0.0, 1.0
        for value in later:
            target += left * (1 - share) * value
            left *= share
        targets.append(target + left * outcome)
    return targets


def squared_error(values: list[float], targets: list[float]) -> float:
    pairs = list(zip(values, targets, strict=True))
    return sum((value - target) ** 2 for value, target in pairs) / len(pairs)


def cross_entropy(scores: list[float], targets: list[float]) -> float:
    total = 0.0
    for score, target in zip(scores, targets, strict=True):
        probability = 1 / (1 + math.exp(-score))
        total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / len(scores)


def probabilities(scores: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-score)) for score in scores]
