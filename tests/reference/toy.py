"""Reward and Shapley values of the built-in task, written from its definition, slowly."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import factorial


def reward(
    words: Sequence[str],
    values: Mapping[str, float],
    negations: Mapping[str, float],
    intensifiers: Mapping[str, float],
    borders: frozenset[str],
) -> float:
    """Look back from every sentiment word to the border or sentiment word before it."""
    total = 0.0
    for position, word in enumerate(words):
        if word not in values:
            continue
        scope = []
        for before in reversed(words[:position]):
            if before in borders or before in values:
                break
            scope.append(before)
        paid = values[word]
        for modifier in scope:
            paid *= negations.get(modifier, 1.0)
        nearest = [modifier for modifier in scope if modifier in intensifiers][:1]
        for modifier in nearest:
            paid *= intensifiers[modifier]
        total += paid
    return total


def without_repeated(words: Sequence[str], values: Mapping[str, float]) -> list[str]:
    """Sentiment words that stood before become filler."""
    return [
        "filler" if word in values and word in words[:position] else word
        for position, word in enumerate(words)
    ]


def shapley(players: Sequence[int], worth: Callable[[frozenset[int]], float]) -> dict[int, float]:
    """Shapley 1953: the weighted sum over all coalitions without the player."""
    n = len(players)
    result = {}
    for player in players:
        others = [other for other in players if other != player]
        total = 0.0
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for coalition in combinations(others, size):
                present = frozenset(coalition)
                total += weight * (worth(present | {player}) - worth(present))
        result[player] = total
    return result
