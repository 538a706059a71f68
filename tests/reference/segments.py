"""Segments, and scores by segment, as slow loops over Python numbers, one row at a time."""

import math


def spread_over(kept: list, mask: list[bool], filler) -> list:
    values = iter(kept)
    return [next(values) if counts else filler for counts in mask]


def ngrams(mask: list[bool], n: int) -> list[int]:
    ids, segment, length = [], 0, 0
    for _ in range(sum(mask)):
        if length == n:
            segment, length = segment + 1, 0
        ids.append(segment)
        length += 1
    return spread_over(ids, mask, -1)


def of_lengths(mask: list[bool], lengths: list[int]) -> list[int]:
    ids = [segment for segment, length in enumerate(lengths) for _ in range(length)]
    ids += [len(lengths)] * len(mask)
    return spread_over(ids[: sum(mask)], mask, -1)


def perplexity(logprobs: list[float], mask: list[bool]) -> list[int]:
    surprise = [math.exp(-value) for value, counts in zip(logprobs, mask, strict=True) if counts]
    ids = []
    for place, own in enumerate(surprise):
        rises = place > 0 and own > surprise[place - 1]
        ids.append(ids[-1] + rises if ids else 0)
    return spread_over(ids, mask, -1)


def entropy(
    entropies: list[float], mask: list[bool], threshold: float, is_eos: list[bool]
) -> list[int]:
    """Ends first, as the paper says it: a segment ends at a token if what follows is unsure."""
    columns = [t for t, counts in enumerate(mask) if counts]
    ends = []
    for after in [*columns[1:], None] if columns else []:
        ends.append(after is None or (entropies[after] > threshold and not is_eos[after]))
    ids, segment = [], 0
    for is_end in ends:
        ids.append(segment)
        segment += is_end
    return spread_over(ids, mask, -1)


def members(ids: list[int]) -> list[list[int]]:
    """Columns of each segment, in order."""
    return [[t for t, own in enumerate(ids) if own == k] for k in range(max(ids, default=-1) + 1)]


def pooled(values: list[float], ids: list[int], how: str) -> list[float]:
    results = []
    for columns in members(ids):
        own = [values[t] for t in columns]
        decay = [1 / i for i in range(1, len(own) + 1)]
        results.append(
            {
                "sum": sum(own),
                "mean": sum(own) / len(own),
                "first": own[0],
                "last": own[-1],
                "position": sum(w * v for w, v in zip(decay, own, strict=True)) / sum(decay),
            }[how]
        )
    return results


def spread(segment_values: list[float], ids: list[int], how: str) -> list[float]:
    results = [0.0] * len(ids)
    for value, columns in zip(segment_values, members(ids), strict=True):
        for t in columns:
            if how == "even":
                results[t] = value / len(columns)
            elif how == "copy" or t == columns[-1]:
                results[t] = value
    return results


def segment_credit(
    prefix_scores: list[float], ids: list[int], normaliser: list[float] | None, how: str
) -> list[float]:
    """`normaliser` is w_mu, w_sd, b_mu, b_sd and the floor of the deviation."""
    segments = members(ids)
    rewards = [prefix_scores[columns[-1] + 1] for columns in segments]
    if normaliser is not None:
        rewards = normalised(rewards, normaliser)
    return spread(rewards, ids, how)


def normalised(rewards: list[float], normaliser: list[float]) -> list[float]:
    w_mean, w_deviation, b_mean, b_deviation, floor = normaliser
    results = []
    for k, reward in enumerate(rewards, start=1):
        log = math.log(k / len(rewards))
        deviation = max(w_deviation * log + b_deviation, floor * b_deviation)
        results.append((reward - w_mean * log - b_mean) / deviation)
    return results


def by_location(rows: list[list[float]]) -> tuple[list[float], list[float], list[float]]:
    """Logs of the locations with two rewards or more, and their means and deviations."""
    found: dict[float, list[float]] = {}
    for row in rows:
        for k, reward in enumerate(row, start=1):
            found.setdefault(max(round(k / len(row), 3), 0.001), []).append(reward)
    logs, means, deviations = [], [], []
    for location, rewards in sorted(found.items()):
        if len(rewards) > 1:
            mean = sum(rewards) / len(rewards)
            logs.append(math.log(location))
            means.append(mean)
            deviations.append(math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)))
    return logs, means, deviations


def huber_cost(
    x: list[float], y: list[float], slope: float, intercept: float, scale: float, epsilon: float
) -> float:
    total = 0.0
    for a, b in zip(x, y, strict=True):
        size = abs(b - slope * a - intercept) / scale
        square = size**2 if size <= epsilon else 2 * epsilon * size - epsilon**2
        total += scale + scale * square
    return total


def huber_scale(
    x: list[float], y: list[float], slope: float, intercept: float, epsilon: float
) -> float:
    """The best scale of these residuals, by ternary search of the convex cost."""
    low, high = 1e-9, 1e3
    for _ in range(80):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        costs = [huber_cost(x, y, slope, intercept, scale, epsilon) for scale in (left, right)]
        low, high = (low, right) if costs[0] < costs[1] else (left, high)
    return (low + high) / 2
