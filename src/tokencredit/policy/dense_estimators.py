"""Advantages without a critic that keep what dense credit says about each token.

All are rewards to go less a baseline made of several responses to the same prompt. For credit that
does not look ahead (terminal, prefix differences) each docstring says what the expected gradient
is at gamma 1; for credit that does (attention, uniform) the rewards to go are biased already.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.masking import left_packed
from tokencredit.policy.estimators import (
    counted_rewards,
    group_means,
    others_means,
    reinforce_advantages,
)


def leave_one_out_to_go_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards to go less the mean whole return of the other responses to the prompt.

        A_{i,t} = G_{i,t} − 1 / (|g| − 1) · Σ_{j ∈ g, j ≠ i} G_{j,0}

    Unbiased: the baseline depends on nothing that this response says. With terminal credit it is
    RLOO; with dense credit a token is freed of what was earned before it. The baseline is that of
    the first token: where rewards are far from zero on average, late tokens stand far below it,
    which is noise, and `index_baseline_to_go_advantages` has less of it.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy. A response without any is in no group.
        group_ids: responses with the same number answer the same prompt.
        gamma: discount.

    Returns:
        Advantages in nats, zero outside the mask, and on a response that has no others.

    Source: rewards to go of Sutton and Barto 2018, section 13.3, under the baseline of Ahmadian et
    al. 2024, arXiv 2402.14740; the two together are derived here.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> leave_one_out_to_go_advantages(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), mask, ids)
    tensor([[ 2.,  1.],
            [-2., -2.]])
    """
    to_go = reinforce_advantages(token_rewards, response_mask, gamma=gamma)
    returns = _from_the_start(to_go, response_mask)
    baselines, has_others = others_means(returns, response_mask.any(-1), group_ids)
    kept = response_mask & has_others[:, None]
    return (to_go - baselines[:, None]).masked_fill(~kept, 0.0)


def group_mean_to_go_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards to go less the mean whole return of all responses to the prompt.

        A_{i,t} = G_{i,t} − 1 / |g| · Σ_{j ∈ g} G_{j,0}

    The gradient is (|g| − 1) / |g| times the true one, as the mean contains the response itself: a
    factor, no change of direction. With terminal credit it is GRPO without a deviation.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy. A response without any is in no group.
        group_ids: responses with the same number answer the same prompt.
        gamma: discount.

    Returns:
        Advantages in nats, zero outside the mask.

    Source: rewards to go under the mean of Shao et al. 2024, arXiv 2402.03300; the two together
    are derived here.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> group_mean_to_go_advantages(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), mask, ids)
    tensor([[ 1.,  0.],
            [-1., -1.]])
    """
    to_go = reinforce_advantages(token_rewards, response_mask, gamma=gamma)
    returns = _from_the_start(to_go, response_mask)
    means = group_means(returns, response_mask.any(-1), group_ids)
    return (to_go - means[:, None]).masked_fill(~response_mask, 0.0)


def index_baseline_to_go_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards to go less those of the other responses at the same index.

        A_{i,t} = G_{i,t} − 1 / n_{i,t} · Σ_{j ∈ g, j ≠ i, t < T_j} G_{j,t}

    Unbiased: whether others reach an index depends on them alone. But late baselines rest on few
    others, and on none at the end of the longest response, where the baseline is zero: noise.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy; they alone are counted by the index.
        group_ids: responses with the same number answer the same prompt.
        gamma: discount.

    Returns:
        Advantages in nats, zero outside the mask.

    Source: derived here; Sutton and Barto 2018, section 13.4, allow any baseline of the state, of
    which the index is a part.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> index_baseline_to_go_advantages(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), mask, ids)
    tensor([[ 2.,  1.],
            [-2., -1.]])
    """
    to_go = reinforce_advantages(token_rewards, response_mask, gamma=gamma)
    packed, packed_mask = left_packed(to_go, response_mask)
    baselines, _ = others_means(packed, packed_mask, group_ids)
    return _unpacked(packed - baselines, packed_mask, response_mask)


def index_centred_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards less those of the others at the same index, and then summed to go.

        A_{i,t} = Σ_{u≥t} γ^{u−t} (r_{i,u} − m_{i,u})
        m_{i,u} = 1 / n_{i,u} · Σ_{j ∈ g, j ≠ i, u < T_j} r_{j,u}

    Biased where the policy chooses its length: the means are charged for as long as the response
    goes on, so the gradient is that of the return less Σ_{u<T} E[m_u]. Where the mean reward
    of an index is positive that is a hidden bonus for stopping before it, where it is negative one
    for going on. At a fixed length it is unbiased.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy; they alone are counted by the index.
        group_ids: responses with the same number answer the same prompt.
        gamma: discount.

    Returns:
        Advantages in nats, zero outside the mask.

    Source: the step-wise form of GRPO, without its deviation; Shao et al. 2024, arXiv 2402.03300,
    section 4.1.3, normalise by all steps of a group at once. The bias is derived here.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> index_centred_advantages(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), mask, ids)
    tensor([[ 2.,  1.],
            [-2., -1.]])
    """
    packed, packed_mask = left_packed(counted_rewards(token_rewards, response_mask), response_mask)
    means, _ = others_means(packed, packed_mask, group_ids)
    to_go = reinforce_advantages(packed - means, packed_mask, gamma=gamma)
    return _unpacked(to_go, packed_mask, response_mask)


def _from_the_start(
    to_go: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch"]:
    """Rewards to go from the first token of the policy on; zero without any."""
    is_first = response_mask & (response_mask.cumsum(-1) == 1)
    return to_go.masked_fill(~is_first, 0.0).sum(-1)


def _unpacked(
    packed: Float[Tensor, "batch packed"],
    packed_mask: Bool[Tensor, "batch packed"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Undo `left_packed`: values back in their own columns, zeros elsewhere."""
    spread = torch.zeros(response_mask.shape, dtype=packed.dtype, device=packed.device)
    return spread.masked_scatter(response_mask, packed[packed_mask])
