"""Edits of token lists and what is learnt from them, over Python lists, from the definitions."""

import math


def edit_distance(one: list[int], other: list[int]) -> int:
    """Fewest insertions, deletions and substitutions that make `other` of `one`."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) + 1):
        for j in range(len(other) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
            else:
                changed = 0 if one[i - 1] == other[j - 1] else 1
                table[i][j] = min(
                    table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + changed
                )
    return table[-1][-1]


def cost_of_labels(rejected_labels: list[int], edited_labels: list[int]) -> int:
    """Edits that labels stand for: between two kept tokens, the longer of the two gaps."""

    def gaps(labels: list[int]) -> list[int]:
        lengths = [0]
        for label in labels:
            if label == 0:
                lengths.append(0)
            else:
                lengths[-1] += 1
        return lengths

    return sum(map(max, gaps(rejected_labels), gaps(edited_labels)))


def discriminator(logits: list[list[float]], mask: list[bool]) -> list[float]:
    scores = []
    for (negative, positive), counts in zip(logits, mask, strict=True):
        top = max(negative, positive) if counts else 0.0
        if not counts:
            scores.append(0.0)
            continue
        total = math.exp(negative - top) + math.exp(positive - top)
        scores.append(2 * math.exp(positive - top) / total - 1)
    return scores


def token_cross_entropy(
    logits: list[list[list[float]]],
    targets: list[list[list[float]]],
    mask: list[list[bool]],
    weights: list[float],
) -> float:
    """Mean over tokens, then over responses that have any."""
    means = []
    for row_logits, row_targets, row_mask in zip(logits, targets, mask, strict=True):
        losses = []
        for z, q, counts in zip(row_logits, row_targets, row_mask, strict=True):
            if counts:
                norm = math.log(sum(math.exp(one) for one in z))
                losses.append(
                    -sum(w * p * (one - norm) for w, p, one in zip(weights, q, z, strict=True))
                )
        if losses:
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means)
