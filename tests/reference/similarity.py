"""Best matches of token embeddings as slow loops over Python floats."""

import math


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.hypot(*one) / math.hypot(*other)


def best_match(response: list[list[float]], reference: list[list[float]]) -> list[float]:
    """What each token of the response has in the similarity; together they are it."""
    paid = [0.0] * len(response)
    for at, own in enumerate(response):
        paid[at] += max(cosine(own, other) for other in reference) / len(response) / 2
    for other in reference:
        likest = max(range(len(response)), key=lambda at: cosine(response[at], other))
        paid[likest] += cosine(response[likest], other) / len(reference) / 2
    return paid
