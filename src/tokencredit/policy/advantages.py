"""From token rewards and values to advantages, of single tokens or of macro actions."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.text.pooling import pooled_by_segment, spread_over_segments
from tokencredit.text.segments import require_tiling

ValuePooling = Literal["mean", "first", "last", "position"]
"""How the value of a macro action is made of those of its tokens, as in `pooled_by_segment`."""


def gae_advantages(
    token_rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    bootstrap_values: Float[Tensor, "batch"] | None = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Generalised advantage estimates over the response tokens, and the returns to regress on.

        δ_t = r_t + γ V(s_{t+1}) − V(s_t)
        A_t = δ_t + γ λ A_{t+1}
        G_t = A_t + V(s_t)

    With λ = 1 and no `bootstrap_values` the returns G_t are the rewards to go of `rewards_to_go`;
    with λ = 0 the advantages are the one-step errors δ_t. Tokens outside the mask are skipped as if
    they were not there: they neither earn, nor cost a factor of γ or λ.

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
    """Discounted sum of the rewards from each token on.

        G_t = Σ_{u≥t} γ^{u−t} r_u

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


def macro_gae_advantages(
    token_rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    segment_ids: Int[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    bootstrap_values: Float[Tensor, "batch"] | None = None,
    value_pooling: ValuePooling = "first",
    reward_pooling: Literal["sum", "mean", "last", "position"] = "sum",
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Advantages over segments, each given to all tokens of its segment, and the returns.

        R_k = Σ_{t ∈ S_k} r_t,   V_k = Σ_{t ∈ S_k} σ_t V(s_t)
        δ_k = R_k + γ V_{k+1} − V_k
        A_k = δ_k + γ λ A_{k+1}
        G_k = A_k + V_k

    With one token per segment these are `gae_advantages`. γ and λ count once per segment,
    however long it is. The value of the state that a segment begins in, `value_pooling="first"`,
    is a baseline; one that reads values after its first token depends on the actions that it is a
    baseline for and takes away what they earn: with "mean", the published pooling, and a perfect
    critic, the first token of a segment of three kept 0.28 of its gradient and the second 0.81 in
    a policy whose every response was counted.

    Args:
        token_rewards: in nats.
        values: V(s_t), the critic's estimate before response token t, in nats.
        response_mask: True on response tokens.
        segment_ids: the macro actions, as `segments` makes them.
        gamma: discount from one segment to the next.
        gae_lambda: 1 gives returns minus values, 0 one-step errors.
        bootstrap_values: value of the state after the last token, for responses that were cut off;
            zero for those that ended. None means all ended.
        value_pooling: the weights σ, as in `pooled_by_segment`; "mean" is the published one.
        reward_pooling: likewise for the rewards; all but "sum" make rewards smaller by the length
            of their segment, the KL penalty among them.

    Returns:
        Advantages and returns, the same on all tokens of a segment, zero outside the mask.

    Raises:
        ConfigError: a pooling is none of those known.
        ShapeError: rewards, values, mask and ids differ in shape.
        DataError: the segments do not tile the responses.

    Source: Chai et al. 2024, arXiv 2410.02743, MA-PPO. The paper sums the rewards of a macro action
    with a discount of 1 inside it (read in others' accounts of it, not in the paper itself); its
    code takes the mean, as it does of the values, which divides the KL penalty by the length of
    the segment, and keeps the score from it by a last segment of one token. Here rewards are
    summed and values are those of first states; "mean" for both is theirs. Their code takes one
    response at a time, this any batch.

    >>> import torch
    >>> mask, ids = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 0, 1]])
    >>> rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0, 3.0, 1.0]])
    >>> macro_gae_advantages(rewards, values, mask, ids, gae_lambda=0.0)
    (tensor([[1., 1., 1.]]), tensor([[2., 2., 2.]]))
    """
    require_tiling(segment_ids, response_mask)
    rewards, is_segment = pooled_by_segment(token_rewards, segment_ids, how=reward_pooling)
    macro_values, _ = pooled_by_segment(values, segment_ids, how=value_pooling)
    advantages, returns = gae_advantages(
        rewards,
        macro_values,
        is_segment,
        gamma=gamma,
        gae_lambda=gae_lambda,
        bootstrap_values=bootstrap_values,
    )
    return (
        spread_over_segments(advantages, segment_ids, how="copy"),
        spread_over_segments(returns, segment_ids, how="copy"),
    )
