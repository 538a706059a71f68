"""Curves of a score of sets of tokens, and overlap of sets of tokens, in Python floats."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil, nan

Score = Callable[[frozenset[int]], float]


def highest(scores: Sequence[float], count: int) -> frozenset[int]:
    """Take the best that is left, the earlier of equals, again and again."""
    left = list(range(len(scores)))
    taken = []
    for _ in range(count):
        best = max(left, key=lambda token: (scores[token], -token))
        left.remove(best)
        taken.append(best)
    return frozenset(taken)


def highest_fraction(scores: Sequence[float], fraction: float) -> frozenset[int]:
    return highest(scores, ceil(Fraction(str(fraction)) * len(scores)))


def deletion(score: Score, scores: Sequence[float], fractions: Sequence[float]) -> list[float]:
    tokens = frozenset(range(len(scores)))
    return [score(tokens - highest_fraction(scores, fraction)) for fraction in fractions]


def insertion(score: Score, scores: Sequence[float], fractions: Sequence[float]) -> list[float]:
    return [score(highest_fraction(scores, fraction)) for fraction in fractions]


def area(curve: Sequence[float], fractions: Sequence[float]) -> float:
    return sum(
        (curve[i] + curve[i + 1]) / 2 * (fractions[i + 1] - fractions[i])
        for i in range(len(curve) - 1)
    )


def comprehensiveness(score: Score, scores: Sequence[float], fractions: Sequence[float]) -> float:
    """DeYoung et al. 2020: full score less the score without the rationale, over rationales."""
    whole = score(frozenset(range(len(scores))))
    without = deletion(score, scores, fractions)
    return sum(whole - rest for rest in without) / len(without)


def sufficiency(score: Score, scores: Sequence[float], fractions: Sequence[float]) -> float:
    whole = score(frozenset(range(len(scores))))
    alone = insertion(score, scores, fractions)
    return sum(whole - part for part in alone) / len(alone)


def iou(predicted: Sequence[bool], labels: Sequence[bool]) -> float:
    pairs = list(zip(predicted, labels, strict=True))
    either = sum(p or y for p, y in pairs)
    return sum(p and y for p, y in pairs) / either if either else nan


def f1(predicted: Sequence[bool], labels: Sequence[bool]) -> float:
    if not any(predicted) and not any(labels):
        return nan
    both = sum(p and y for p, y in zip(predicted, labels, strict=True))
    if not both:
        return 0.0
    precision, recall = both / sum(predicted), both / sum(labels)
    return 2 * precision * recall / (precision + recall)
