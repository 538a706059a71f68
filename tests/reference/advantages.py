"""Advantages as slow loops over Python floats: drop masked tokens, estimate, put them back."""


def _spread(kept: list[float], mask: list[bool]) -> list[float]:
    values = iter(kept)
    return [next(values) if counts else 0.0 for counts in mask]


def _kept(row: list[float], mask: list[bool]) -> list[float]:
    return [value for value, counts in zip(row, mask, strict=True) if counts]


def gae(
    rewards: list[float],
    values: list[float],
    mask: list[bool],
    gamma: float,
    gae_lambda: float,
    bootstrap: float,
) -> tuple[list[float], list[float]]:
    """The sum of equation 16 of arXiv 1506.02438, term by term."""
    rewards, values = _kept(rewards, mask), _kept(values, mask)
    states = [*values, bootstrap]
    errors = [rewards[t] + gamma * states[t + 1] - states[t] for t in range(len(rewards))]
    advantages = [
        sum((gamma * gae_lambda) ** (u - t) * errors[u] for u in range(t, len(errors)))
        for t in range(len(errors))
    ]
    returns = [advantage + value for advantage, value in zip(advantages, values, strict=True)]
    return _spread(advantages, mask), _spread(returns, mask)


def rewards_to_go(rewards: list[float], mask: list[bool], gamma: float) -> list[float]:
    rewards = _kept(rewards, mask)
    sums = [
        sum(gamma ** (u - t) * rewards[u] for u in range(t, len(rewards)))
        for t in range(len(rewards))
    ]
    return _spread(sums, mask)
