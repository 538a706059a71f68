"""Shaping as slow loops over Python floats."""

import math


def kl_estimate(policy_logprob: float, ref_logprob: float, estimator: str) -> float:
    ratio = math.exp(ref_logprob) / math.exp(policy_logprob)
    return {
        "k1": -math.log(ratio),
        "k2": math.log(ratio) ** 2 / 2,
        "k3": ratio - 1 - math.log(ratio),
    }[estimator]


def potential_shaping(potentials: list[float], length: int, time: int, gamma: float) -> list[float]:
    rewards = [0.0] * time
    for t in range(length):
        after = potentials[t + 1] if t + 1 < length else 0.0
        rewards[t] = gamma * after - potentials[t]
    return rewards


def moments(scores: list[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    return mean, math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
