"""Advantages of macro actions as slow loops over Python floats."""


def macro_gae(
    rewards: list[float],
    values: list[float],
    ids: list[int],
    gamma: float,
    gae_lambda: float,
    bootstrap: float,
    value_weights: str,
    reward_weights: str,
) -> tuple[list[float], list[float]]:
    """Sum of discounted one-step errors, macro action by macro action, given to its tokens."""
    segments = [[t for t, own in enumerate(ids) if own == k] for k in range(max(ids) + 1)]
    macro_rewards = [_weighed([rewards[t] for t in own], reward_weights) for own in segments]
    states = [_weighed([values[t] for t in own], value_weights) for own in segments]
    states.append(bootstrap)
    errors = [
        macro_rewards[k] + gamma * states[k + 1] - states[k] for k in range(len(macro_rewards))
    ]
    advantages, returns = [0.0] * len(ids), [0.0] * len(ids)
    for k, columns in enumerate(segments):
        advantage = sum((gamma * gae_lambda) ** (j - k) * errors[j] for j in range(k, len(errors)))
        for t in columns:
            advantages[t], returns[t] = advantage, advantage + states[k]
    return advantages, returns


def _weighed(values: list[float], weights: str) -> float:
    if weights == "sum":
        return sum(values)
    if weights == "mean":
        return sum(values) / len(values)
    if weights == "position":
        shares = [1 / (i + 1) for i in range(len(values))]
        return sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)
    return values[0] if weights == "first" else values[-1]
