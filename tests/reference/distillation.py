"""Distillation at one token, over Python floats: distributions are lists of probabilities.

With `kept` ids the others are one event, after them.
"""

import math


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [w / sum(weights) for w in weights]


def likeliest(logits: list[float], count: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda a: -logits[a])[:count]


def events(logits: list[float], kept: list[int]) -> list[float]:
    p = softmax(logits)
    found = [p[a] for a in kept]
    others = [p[a] for a in range(len(p)) if a not in kept]
    return [*found, sum(others)] if others else found


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def aligndistil(pi, t, u, *, beta, extrapolation, adaptive, size, anchor, scaling):
    if adaptive == "none":
        w = extrapolation
    elif adaptive == "credit":
        w = extrapolation * size + 0.001
    else:
        w = extrapolation * sum(abs(a - b) for a, b in zip(t, u, strict=True)) + 0.001
    start = t if anchor == "teacher" else u
    target = softmax(
        [math.log(s) + w * math.log(a / b) for s, a, b in zip(start, t, u, strict=True)]
    )
    return kl(pi, target) * (beta / w if scaling == "inverse" else 1.0)


def adpa(pi, t, u, *, kept, clip):
    total = 0.0
    for p, a, b in list(zip(pi, t, u, strict=True))[:kept]:
        advantage = math.log(a / b)
        if clip is not None:
            advantage = min(max(advantage, clip[0]), clip[1])
        total += p * advantage
    return total
