"""Advantages without a critic, as published: one number per response, or rewards to go.

What sums the rewards of a response pays all its tokens alike, so that dense credit is lost in the
sum. `policy/dense_estimators.py` has those that keep it. Groups are the responses that belong
together, as those to one prompt.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.masking import masked_whiten
from tokencredit.policy.advantages import rewards_to_go


def reinforce_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards to go, with no baseline.

        A_t = Σ_{u≥t} γ^{u−t} r_u

    Unbiased at gamma 1 for credit that does not look ahead (terminal, prefix differences); biased
    for credit that does (attention, uniform), whose early rewards depend on later tokens.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy; others are skipped as if they were not there,
            here and in every estimator: no reward, and no step of the discount.
        gamma: discount.

    Returns:
        Advantages in nats, float32 at least, zero outside the mask.

    Source: Williams 1992, REINFORCE; Sutton and Barto 2018, section 13.3.

    >>> reinforce_advantages(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]]))
    tensor([[3., 2.]])
    """
    rewards = counted_rewards(token_rewards, response_mask)
    if gamma != 1.0:
        return rewards_to_go(rewards, response_mask, gamma=gamma)
    return rewards.flip(-1).cumsum(-1).flip(-1).masked_fill(~response_mask, 0.0)


def reinforce_plus_plus_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    epsilon: float = 1e-8,
) -> Float[Tensor, "batch time"]:
    """Rewards to go, whitened over all tokens of the batch.

        A_t = (G_t − μ) / √(σ² + ε)

    Biased by mean and deviation being those of the same batch. The bias vanishes as the batch
    grows: what is left is REINFORCE divided by the deviation of the returns.

    Args:
        token_rewards: in nats, the KL penalty included.
        response_mask: True on tokens of the policy.
        gamma: discount.
        epsilon: added to the variance.

    Returns:
        Advantages of mean 0 and variance 1 over the mask, zero outside it.

    Source: Hu et al. 2025, arXiv 2501.03262, with the variance of the population. Its variant with
    a baseline per prompt sums rewards first and is not this one.

    >>> mask = torch.tensor([[True, True]])
    >>> reinforce_plus_plus_advantages(torch.tensor([[1.0, 1.0]]), mask)
    tensor([[ 1., -1.]])
    """
    to_go = reinforce_advantages(token_rewards, response_mask, gamma=gamma)
    return masked_whiten(to_go, response_mask, epsilon=epsilon)


def rloo_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
) -> Float[Tensor, "batch time"]:
    """The whole return of a response less the mean return of the others to its prompt.

        A_{i,t} = R_i − 1 / (|g| − 1) · Σ_{j ∈ g, j ≠ i} R_j,   R_i = Σ_u r_{i,u}

    Unbiased for every credit, causal or not. The same on all tokens: of token rewards only the sum
    is left.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy. A response without any is in no group.
        group_ids: responses with the same number answer the same prompt.

    Returns:
        Advantages in nats, zero outside the mask, and on a response that has no others.

    Source: Kool et al. 2019; for language models Ahmadian et al. 2024, arXiv 2402.14740, section 4.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> rloo_advantages(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), mask, ids)
    tensor([[ 2.,  2.],
            [-2., -2.]])
    """
    returns = counted_rewards(token_rewards, response_mask).sum(-1)
    baselines, has_others = others_means(returns, response_mask.any(-1), group_ids)
    return _on_every_token((returns - baselines) * has_others, response_mask)


def grpo_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    scale: Literal["group", "batch", "none"] = "group",
    epsilon: float = 1e-4,
) -> Float[Tensor, "batch time"]:
    """The whole return less the mean of its group, divided by a standard deviation or not.

        A_{i,t} = (R_i − mean_g R) / (σ + ε),   R_i = Σ_u r_{i,u}

    With scale "none" the gradient is (|g| − 1) / |g| times the true one, as the mean contains the
    response itself: a factor, no change of direction. Dividing by the deviation of the group
    changes the objective: prompts with little spread weigh more. For two responses it is 1 / √2
    times the gradient of the chance to win less that to lose against a frozen copy of the policy,
    whatever the margin. "batch" divides all prompts by one number, which depends on the batch. All
    tokens of a response get the same advantage: of token rewards only the sum is left.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy. A response without any is in no group.
        group_ids: responses with the same number answer the same prompt.
        scale: "group" as published, "batch" for one deviation of all returns, "none" (Dr. GRPO).
        epsilon: added to the deviation, in nats.

    Returns:
        Advantages, zero outside the mask, and in a group of one.

    Raises:
        ConfigError: there is no such scale.

    Source: Shao et al. 2024, arXiv 2402.03300, section 4.1.2; "none" is Liu et al. 2025, arXiv
    2503.20783. Deviation (sample) and epsilon are those of TRL.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> grpo_advantages(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), mask, ids, scale="none")
    tensor([[ 1.,  1.],
            [-1., -1.]])
    """
    if scale not in ("group", "batch", "none"):
        raise ConfigError(f"scale is {scale!r}; expected 'group', 'batch' or 'none'")
    returns, counts = counted_rewards(token_rewards, response_mask).sum(-1), response_mask.any(-1)
    advantages = returns - group_means(returns, counts, group_ids)
    if scale != "none":
        together = group_ids if scale == "group" else torch.zeros_like(group_ids)
        advantages = advantages / (group_deviations(returns, counts, together) + epsilon)
    return _on_every_token(advantages, response_mask)


def remax_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    greedy_returns: Float[Tensor, "batch"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards to go less the whole return of the greedy response to the same prompt.

        A_t = Σ_{u≥t} γ^{u−t} r_u − R(x, y_greedy)

    Unbiased where rewards to go are, see `reinforce_advantages`: the baseline does not depend on
    what was drawn.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy.
        greedy_returns: sum of the rewards of the greedy response of the current policy, in nats.
        gamma: discount of the rewards to go.

    Returns:
        Advantages in nats, zero outside the mask.

    Source: Li et al. 2023, arXiv 2310.10505. Their code subtracts the baseline from a terminal
    reward and discounts the difference, the same at gamma 1, and adds to each token its own KL
    alone; here it is that of all later tokens.

    >>> mask = torch.tensor([[True, True]])
    >>> remax_advantages(torch.tensor([[1.0, 2.0]]), mask, torch.tensor([2.0]))
    tensor([[1., 0.]])
    """
    to_go = reinforce_advantages(token_rewards, response_mask, gamma=gamma)
    return (to_go - greedy_returns[:, None]).masked_fill(~response_mask, 0.0)


def _on_every_token(
    advantages: Float[Tensor, "batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    return advantages[:, None].masked_fill(~response_mask, 0.0)


def counted_rewards(
    token_rewards: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Rewards of the tokens that count, zero elsewhere, in float32 at least.

    >>> mask = torch.tensor([[True, False]])
    >>> counted_rewards(torch.tensor([[1.0, float("nan")]], dtype=torch.bfloat16), mask)
    tensor([[1., 0.]])
    """
    wide = torch.promote_types(token_rewards.dtype, torch.float32)
    return token_rewards.masked_fill(~response_mask, 0.0).to(wide)


def group_means(
    values: Float[Tensor, "batch *rest"],
    counts: Bool[Tensor, "batch *rest"],
    group_ids: Int[Tensor, "batch"],
) -> Float[Tensor, "batch *rest"]:
    """Mean of the counted values of each row's group, the row's own among them; 0 without any.

    >>> values, counts = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])
    >>> group_means(values, counts, torch.tensor([7, 7, 7]))
    tensor([2., 2., 2.])
    """
    kept = values.masked_fill(~counts, 0.0)
    return group_sums(kept, group_ids) / group_sums(counts.to(kept), group_ids).clamp(min=1)


def others_means(
    values: Float[Tensor, "batch *rest"],
    counts: Bool[Tensor, "batch *rest"],
    group_ids: Int[Tensor, "batch"],
) -> tuple[Float[Tensor, "batch *rest"], Bool[Tensor, "batch *rest"]]:
    """Mean of the counted values of the others in each row's group, and whether there are any.

    >>> values, counts = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, True])
    >>> others_means(values, counts, torch.tensor([0, 0, 1]))
    (tensor([3., 1., 0.]), tensor([ True,  True, False]))
    """
    kept, own = values.masked_fill(~counts, 0.0), counts.to(values)
    number = group_sums(own, group_ids) - own
    return (group_sums(kept, group_ids) - kept) / number.clamp(min=1), number > 0


def group_deviations(
    values: Float[Tensor, "batch"], counts: Bool[Tensor, "batch"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Sample standard deviation of each row's group, Bessel's correction included.

    >>> group_deviations(torch.tensor([1.0, 3.0]), torch.tensor([True, True]), torch.zeros(2).int())
    tensor([1.4142, 1.4142])
    """
    errors = (values - group_means(values, counts, group_ids)).masked_fill(~counts, 0.0)
    number = group_sums(counts.to(errors), group_ids)
    return (group_sums(errors.square(), group_ids) / (number - 1).clamp(min=1)).sqrt()


def group_sums(
    values: Float[Tensor, "batch *rest"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch *rest"]:
    """Sum of the values of each row's group, the row's own among them.

    >>> group_sums(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([0, 0, 1]))
    tensor([4., 4., 9.])
    """
    _, groups = torch.unique(group_ids, return_inverse=True)
    return torch.zeros_like(values).index_add(0, groups, values)[groups]
