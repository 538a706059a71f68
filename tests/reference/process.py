"""Rewards of steps for one response, as loops over Python floats, from the formulas."""


def step_scores_on_tokens(scores: list[float], segment_ids: list[int]) -> list[float]:
    rewards = [0.0] * len(segment_ids)
    for step, score in enumerate(scores):
        tokens = [t for t, number in enumerate(segment_ids) if number == step]
        if tokens:
            rewards[tokens[-1]] = score
    return rewards


def clipped(scores: list[float], eta: float) -> list[float]:
    return [min(score - eta, 0.0) for score in scores]


def delta(scores: list[float]) -> list[float]:
    """Steps are numbered from 1 to K."""
    last = len(scores)
    rewards = []
    for k, score in enumerate(scores, start=1):
        if k < last - 1:
            rewards.append(score - scores[k])
        else:
            rewards.append(score if k == last - 1 else 0.0)
    return rewards
