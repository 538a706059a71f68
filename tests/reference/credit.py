"""Credit methods as slow loops over Python floats, one row at a time, from the formulas."""


def terminal(score: float, mask: list[bool]) -> list[float]:
    scores = [0.0] * len(mask)
    for t in reversed(range(len(mask))):
        if mask[t]:
            scores[t] = score
            break
    return scores


def uniform(score: float, mask: list[bool]) -> list[float]:
    length = sum(mask)
    return [score / length if counts else 0.0 for counts in mask]


def attention(
    score: float, weights: list[float], mask: list[bool], credit_beta: float
) -> list[float]:
    total = 0.0
    for weight, counts in zip(weights, mask, strict=True):
        if counts:
            total += weight
    scores = terminal((1 - credit_beta) * score, mask)
    for t, counts in enumerate(mask):
        if counts:
            share = weights[t] / total if total > 0 else 1 / sum(mask)
            scores[t] += credit_beta * score * share
    return scores


def quoted(score: float, quoted: list[float], mask: list[bool], rest: str) -> list[float]:
    left = score
    for value, counts in zip(quoted, mask, strict=True):
        left -= value if counts else 0.0
    shared = uniform(left, mask) if rest == "even" else terminal(left, mask)
    return [
        value + share if counts else 0.0
        for value, share, counts in zip(quoted, shared, mask, strict=True)
    ]


def mean_attention_received(attention: list[list[float]], mask: list[bool]) -> list[float]:
    weights = []
    for key in range(len(mask)):
        received = [attention[q][key] for q in range(key, len(mask)) if mask[q] and mask[key]]
        weights.append(sum(received) / len(received) if received else 0.0)
    return weights


def last_attention_received(attention: list[list[float]], mask: list[bool]) -> list[float]:
    last = max((t for t, counts in enumerate(mask) if counts), default=None)
    return [
        attention[last][key] if counts and last is not None else 0.0
        for key, counts in enumerate(mask)
    ]


def prefix_differences(prefix_scores: list[float], mask: list[bool]) -> list[float]:
    scores, before = [], prefix_scores[0]
    for t, counts in enumerate(mask):
        if counts:
            scores.append(prefix_scores[t + 1] - before)
            before = prefix_scores[t + 1]
        else:
            scores.append(0.0)
    return scores
