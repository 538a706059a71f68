"""Logistic regression on differences of features, by Newton steps over Python floats."""

import math


def logistic_weight(differences: list[float], ridge: float) -> float:
    """The weight of one feature: minimum of mean -log sigma(w d) + ridge / 2 w^2."""
    weight = 0.0
    for _ in range(100):
        slope, curvature = ridge * weight, ridge
        for difference in differences:
            wrong = 1 / (1 + math.exp(weight * difference))
            slope -= wrong * difference / len(differences)
            curvature += wrong * (1 - wrong) * difference**2 / len(differences)
        weight -= slope / curvature
    return weight


def loss(weights: list[float], differences: list[list[float]], ridge: float) -> float:
    total = 0.0
    for row in differences:
        lead = sum(w * d for w, d in zip(weights, row, strict=True))
        total += math.log1p(math.exp(-lead)) / len(differences)
    return total + ridge / 2 * sum(w * w for w in weights)
