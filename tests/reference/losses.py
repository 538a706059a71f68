"""Losses of PPO for one token, over Python floats."""

import math


def clipped_policy_loss(
    policy_logprob: float, old_logprob: float, advantage: float, clip_eps: float
) -> float:
    ratio = math.exp(policy_logprob) / math.exp(old_logprob)
    clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
    return -min(ratio * advantage, clipped * advantage)


def clipped_value_loss(
    value: float, old_value: float, target: float, value_clip_eps: float | None
) -> float:
    loss = 0.5 * (value - target) ** 2
    if value_clip_eps is None:
        return loss
    near = min(max(value, old_value - value_clip_eps), old_value + value_clip_eps)
    return max(loss, 0.5 * (near - target) ** 2)
