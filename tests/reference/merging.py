"""Merged weights as slow loops over Python floats."""

import math


def merged(base: list[float], tuned: list[float], share: float) -> list[float]:
    return [(1 - share) * b + share * t for b, t in zip(base, tuned, strict=True)]


def lines_share(block: int, blocks: int, alpha: float, beta: float) -> float:
    return alpha + beta * block / (blocks - 1)


def adaptive_base_shares(logits: list[float], mean: float, floor: float) -> list[float]:
    raised = [1 / (1 + math.exp(-one)) + floor for one in logits]
    return [mean * one * len(raised) / sum(raised) for one in raised]
