"""Advantages of macro actions: whole segments as the steps of generalised advantage estimation."""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.aggregation import pooled_by_segment, spread_over_segments
from tokencredit.policy.advantages import gae_advantages
from tokencredit.segments import require_tiling


def macro_gae_advantages(
    token_rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    segment_ids: Int[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    bootstrap_values: Float[Tensor, "batch"] | None = None,
    value_pooling: Literal["mean", "first", "last", "position"] = "mean",
    reward_pooling: Literal["sum", "mean", "last", "position"] = "sum",
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    r"""Advantages over segments, each given to all tokens of its segment, and the returns.

    .. math::
        R_k = \sum_{t \in S_k} r_t, \qquad V_k = \sum_{t \in S_k} \sigma_t V(s_t), \qquad
        \delta_k = R_k + \gamma V_{k+1} - V_k, \\
        A_k = \delta_k + \gamma \lambda A_{k+1}, \qquad G_k = A_k + V_k

    With one token per segment these are `gae_advantages`. gamma and lambda count once per segment,
    however long it is. A baseline that reads values behind the first token of a segment depends on
    the actions it is a baseline for, which biases the gradient a little; `value_pooling="first"`,
    the value of the state that the segment begins in, does not.

    Args:
        token_rewards: in nats.
        values: V(s_t), the critic's estimate before response token t, in nats.
        response_mask: True on response tokens.
        segment_ids: the macro actions, as `segments` makes them.
        gamma: discount from one segment to the next.
        gae_lambda: 1 gives returns minus values, 0 one-step errors.
        bootstrap_values: value of the state after the last token, for responses that were cut off;
            zero for those that ended. None means all ended.
        value_pooling: the weights sigma, as in `pooled_by_segment`.
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
    code takes the mean that it takes of the values, which divides the KL penalty by the length of
    the segment, and keeps the score from it by a last segment of one token. Here rewards are
    summed; `reward_pooling="mean"` is theirs. Their code takes one response at a time, this any
    batch.

    >>> import torch
    >>> mask, ids = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 0, 1]])
    >>> rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0, 3.0, 1.0]])
    >>> macro_gae_advantages(rewards, values, mask, ids, gae_lambda=0.0)
    (tensor([[0., 0., 1.]]), tensor([[2., 2., 2.]]))
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
