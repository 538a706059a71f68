"""Advantages without a critic, as slow loops over Python floats."""

import statistics

Row, Mask = list[float], list[bool]


def _kept(row: Row, mask: Mask) -> Row:
    return [value for value, counts in zip(row, mask, strict=True) if counts]


def _spread(kept: Row, mask: Mask) -> Row:
    values = iter(kept)
    return [next(values) if counts else 0.0 for counts in mask]


def _to_go(kept: Row, gamma: float) -> Row:
    return [sum(gamma ** (u - t) * kept[u] for u in range(t, len(kept))) for t in range(len(kept))]


def _mean(values: Row) -> float:
    return sum(values) / len(values) if values else 0.0


def _members(i: int, rows: list[Row], groups: list[int]) -> list[int]:
    """Numbers of the responses of i's group that have a token."""
    return [j for j in range(len(rows)) if groups[j] == groups[i] and rows[j]]


def reinforce(rewards: list[Row], masks: list[Mask], gamma: float) -> list[Row]:
    """Section 13.3 of Sutton and Barto."""
    return [
        _spread(_to_go(_kept(row, mask), gamma), mask)
        for row, mask in zip(rewards, masks, strict=True)
    ]


def reinforce_plus_plus(
    rewards: list[Row], masks: list[Mask], gamma: float, epsilon: float
) -> list[Row]:
    """arXiv 2501.03262: normalised over the whole batch."""
    to_go = [_to_go(_kept(row, mask), gamma) for row, mask in zip(rewards, masks, strict=True)]
    everything = [value for row in to_go for value in row]
    mean = _mean(everything)
    scale = (_mean([(value - mean) ** 2 for value in everything]) + epsilon) ** 0.5
    return [
        _spread([(value - mean) / scale for value in row], mask)
        for row, mask in zip(to_go, masks, strict=True)
    ]


def remax(rewards: list[Row], masks: list[Mask], greedy: Row, gamma: float) -> list[Row]:
    """arXiv 2310.10505 with rewards to go."""
    return [
        _spread([value - baseline for value in _to_go(_kept(row, mask), gamma)], mask)
        for row, mask, baseline in zip(rewards, masks, greedy, strict=True)
    ]


def rloo(rewards: list[Row], masks: list[Mask], groups: list[int]) -> list[Row]:
    """arXiv 2402.14740, section 4."""
    kept = [_kept(row, mask) for row, mask in zip(rewards, masks, strict=True)]
    result = []
    for i, mask in enumerate(masks):
        others = [sum(kept[j]) for j in _members(i, kept, groups) if j != i]
        advantage = sum(kept[i]) - _mean(others) if others else 0.0
        result.append([advantage if counts else 0.0 for counts in mask])
    return result


def grpo(
    rewards: list[Row], masks: list[Mask], groups: list[int], scale: str, epsilon: float
) -> list[Row]:
    """arXiv 2402.03300, section 4.1.2."""
    kept = [_kept(row, mask) for row, mask in zip(rewards, masks, strict=True)]

    def deviation(values: Row) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    means = [_mean([sum(kept[j]) for j in _members(i, kept, groups)]) for i in range(len(kept))]
    result = []
    for i, mask in enumerate(masks):
        divisor = 1.0
        if scale == "group":
            divisor = deviation([sum(kept[j]) for j in _members(i, kept, groups)]) + epsilon
        if scale == "batch":
            divisor = deviation([sum(row) for row in kept if row]) + epsilon
        advantage = (sum(kept[i]) - means[i]) / divisor
        result.append([advantage if counts else 0.0 for counts in mask])
    return result


def leave_one_out_to_go(
    rewards: list[Row], masks: list[Mask], groups: list[int], gamma: float
) -> list[Row]:
    to_go = [_to_go(_kept(row, mask), gamma) for row, mask in zip(rewards, masks, strict=True)]
    result = []
    for i, mask in enumerate(masks):
        others = [to_go[j][0] for j in _members(i, to_go, groups) if j != i]
        own = [value - _mean(others) if others else 0.0 for value in to_go[i]]
        result.append(_spread(own, mask))
    return result


def group_mean_to_go(
    rewards: list[Row], masks: list[Mask], groups: list[int], gamma: float
) -> list[Row]:
    to_go = [_to_go(_kept(row, mask), gamma) for row, mask in zip(rewards, masks, strict=True)]
    means = [_mean([to_go[j][0] for j in _members(i, to_go, groups)]) for i in range(len(to_go))]
    return [
        _spread([value - mean for value in row], mask)
        for row, mask, mean in zip(to_go, masks, means, strict=True)
    ]


def _less_others_at_the_index(rows: list[Row], groups: list[int]) -> list[Row]:
    return [
        [
            value
            - _mean([rows[j][t] for j in _members(i, rows, groups) if j != i and t < len(rows[j])])
            for t, value in enumerate(row)
        ]
        for i, row in enumerate(rows)
    ]


def index_baseline_to_go(
    rewards: list[Row], masks: list[Mask], groups: list[int], gamma: float
) -> list[Row]:
    to_go = [_to_go(_kept(row, mask), gamma) for row, mask in zip(rewards, masks, strict=True)]
    less = _less_others_at_the_index(to_go, groups)
    return [_spread(row, mask) for row, mask in zip(less, masks, strict=True)]


def index_centred(
    rewards: list[Row], masks: list[Mask], groups: list[int], gamma: float
) -> list[Row]:
    kept = [_kept(row, mask) for row, mask in zip(rewards, masks, strict=True)]
    centred = _less_others_at_the_index(kept, groups)
    return [_spread(_to_go(row, gamma), mask) for row, mask in zip(centred, masks, strict=True)]
