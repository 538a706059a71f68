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


def bounded_exp(value: float) -> float:
    return math.exp(value) if value <= 10 else math.exp(10) * (1 + value - 10)


def chi_square_term(log_ratio: float) -> float:
    return bounded_exp(log_ratio) - 1 + bounded_exp(-log_ratio) - 1


def dense_chi_square(log_ratios: list[float], chi_square: float) -> list[float]:
    """Penalties of the tokens of one response, all of which count."""
    penalties, so_far = [], 0.0
    for log_ratio in log_ratios:
        before = bounded_exp(so_far)
        so_far += log_ratio
        penalties.append((bounded_exp(so_far) - before) / math.sqrt(max(chi_square, 1e-4)))
    return penalties


def forward_kl(policy_logits: list[float], ref_logits: list[float]) -> float:
    policy, ref = (_probabilities(logits) for logits in (policy_logits, ref_logits))
    return sum(r * math.log(r / p) for p, r in zip(policy, ref, strict=True) if r > 0)


def entropy(logits: list[float]) -> float:
    return -sum(p * math.log(p) for p in _probabilities(logits) if p > 0)


def _probabilities(logits: list[float]) -> list[float]:
    total = sum(math.exp(one) for one in logits)
    return [math.exp(one) / total for one in logits]
