"""Labels and rewards of spans, character by character and token by token, from the definitions."""


def token_labels(
    text: str,
    labelled: list[tuple[int, int, str]],
    token_spans: list[tuple[int, int]],
    severities: list[str],
) -> list[int]:
    """The worst label of the characters of each token, its leading spaces left out."""
    worst = [0] * len(text)
    for start, end, label in labelled:
        for at in range(start, end):
            worst[at] = max(worst[at], severities.index(label) + 1)
    labels = []
    for start, end in token_spans:
        while start < end and text[start].isspace() and not text[start:end].isspace():
            start += 1
        labels.append(max(worst[start:end], default=0))
    return labels


def fine_grained(
    span_scores: list[list[float]],
    span_ends: list[list[int]],
    weights: list[float],
    length: int,
) -> list[float]:
    """One response: scores and ends of the spans of each model."""
    rewards = [0.0] * length
    for scores, ends, weight in zip(span_scores, span_ends, weights, strict=True):
        for score, end in zip(scores, ends, strict=True):
            rewards[end] += weight * score
    return rewards


def severity(ids: list[int], mask: list[bool], table: list[float]) -> list[float]:
    return [table[number] if counts else 0.0 for number, counts in zip(ids, mask, strict=True)]
