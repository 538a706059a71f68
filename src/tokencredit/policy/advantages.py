"""From token rewards and values to advantages."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae_advantages(
    token_rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    bootstrap_values: Float[Tensor, "batch"] | None = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    r"""Generalised advantage estimates over the response tokens, and the returns to regress on.

    .. math::
        \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
        A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad G_t = A_t + V(s_t)

    Tokens outside the mask are skipped as if they were not there: they neither earn, nor cost a
    factor of gamma or lambda.

    Args:
        token_rewards: in nats.
        values: V(s_t), the critic's estimate before response token t, in nats.
        response_mask: True on response tokens.
        gamma: discount; below 1 no redistribution conserves the return.
        gae_lambda: 1 gives returns minus values, 0 one-step errors.
        bootstrap_values: value of the state after the last token, for responses that were cut off;
            zero for those that ended. None means all ended.

    Returns:
        Advantages and returns, zero outside the mask.

    Source: Schulman et al. 2016, arXiv 1506.02438, equation 16.

    >>> mask = torch.tensor([[True, True]])
    >>> gae_advantages(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), mask, gae_lambda=1.0)
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    next_values = values.new_zeros(len(values)) if bootstrap_values is None else bootstrap_values
    next_advantages = torch.zeros_like(next_values)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[-1])):
        counts = response_mask[:, t]
        errors = token_rewards[:, t] + gamma * next_values - values[:, t]
        estimate = errors + gamma * gae_lambda * next_advantages
        next_advantages = torch.where(counts, estimate, next_advantages)
        next_values = torch.where(counts, values[:, t], next_values)
        advantages[:, t] = torch.where(counts, estimate, 0.0)
    return advantages, torch.where(response_mask, advantages + values, 0.0)


def rewards_to_go(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    r"""Discounted sum of the rewards from each token on.

    .. math:: G_t = \sum_{u \ge t} \gamma^{u - t} r_u

    Unbiased as a weight of the policy gradient only if the reward of a token does not depend on
    later ones: true of prefix differences, not of attention or uniform credit.

    Args:
        token_rewards: in nats.
        response_mask: True on response tokens; others are skipped as if they were not there.
        gamma: discount.

    Returns:
        Returns in nats, zero outside the mask.

    Source: Sutton and Barto 2018, section 13.3.

    >>> rewards_to_go(torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[True, True, False]]))
    tensor([[3., 2., 0.]])
    """
    _, returns = gae_advantages(
        token_rewards, torch.zeros_like(token_rewards), response_mask, gamma=gamma, gae_lambda=1.0
    )
    return returns
