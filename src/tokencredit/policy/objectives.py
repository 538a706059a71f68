"""Several objectives, each with advantages of its own, as one advantage per token.

Advantages of M objectives stand on the first axis. What they are made with (the algorithm, its
baseline) is the same for all of them; what is here only puts them together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError
from tokencredit.masking import masked_row_mean
from tokencredit.policy.estimators import group_means, group_sums


@dataclass(frozen=True)
class Objectives:
    """Advantages of several objectives for the same responses.

    Attributes:
        advantages: of each objective.
        returns: what each response earned by each objective, its weight included.
        response_mask: True on tokens of the policy.
        group_ids: responses with the same number answer the same prompt.
        weights: of the objectives.
    """

    advantages: Float[Tensor, "objectives batch time"]
    returns: Float[Tensor, "objectives batch"]
    response_mask: Bool[Tensor, "batch time"]
    group_ids: Int[Tensor, "batch"]
    weights: Float[Tensor, "objectives"]


@dataclass(frozen=True)
class ObjectiveMix:
    """One way to put advantages of several objectives together.

    Attributes:
        mixed: the function.
        text: what it does, in a line.
        kl: `each` where the price of KL is a part of every objective, `apart` where it has
            advantages of its own that are added in the end, since objectives are rescaled.
        groups: whether it needs several responses to a prompt.
    """

    mixed: Callable[[Objectives], Float[Tensor, "batch time"]]
    text: str
    kl: Literal["each", "apart"] = "each"
    groups: bool = False


def least_nonnegative_advantages(
    advantages: Float[Tensor, "objectives batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """The least of the advantages of a token, or nothing where any of them is not positive.

        A_t = min_i max(A_{i,t}, 0)

    It is the point nearest to 0 between the least and the largest of the advantages that are left
    once negative ones are cut off: a step that harms no objective. A token without an advantage in
    one objective teaches nothing.

    Args:
        advantages: of each objective.
        response_mask: True on tokens of the policy.

    Returns:
        Advantages of 0 or more, zero outside the mask.

    Raises:
        ShapeError: there is no objective.

    Source: PAMA, arXiv 2508.07768, and for one objective its Noon-PPO, max(A, 0), which is not
    PPO. Known from secondary texts; no official code was found. Theirs has a value head for each
    objective, and drops tokens beyond the clip range before the minimum, as the clipped loss does.

    >>> advantages = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])
    >>> least_nonnegative_advantages(advantages, torch.tensor([[True, True]]))
    tensor([[1., 0.]])
    """
    _require_some(advantages)
    return advantages.clamp(min=0.0).amin(0).masked_fill(~response_mask, 0.0)


def normalised_then_summed_advantages(
    advantages: Float[Tensor, "objectives batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    weights: Float[Tensor, "objectives"],
    *,
    epsilon: float = 1e-4,
) -> Float[Tensor, "batch time"]:
    """Each objective on the scale of its group, summed by weights, on the scale of the batch.

        A = N_batch( Σ_i w_i N_group(A_i) ),   N_g(A) = (A − mean_g A) / (σ_g + ε)

    A response counts as one in means and deviations, however many tokens it has, so that
    advantages that are alike on all tokens of a response are normalised as published, and dense
    ones by their spread within responses too. Blind to the scale of each reward, and to a number
    that all responses to a prompt earn more.

    Args:
        advantages: of each objective, in nats.
        response_mask: True on tokens of the policy.
        group_ids: responses with the same number answer the same prompt.
        weights: of the objectives.
        epsilon: added to deviations.

    Returns:
        Advantages, zero outside the mask.

    Raises:
        ShapeError: there is no objective, or not one weight for each.

    Source: `normalize_then_sum` of TRL 1.16, of responses; its deviations (sample) and epsilon.

    >>> mask, ids = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0])
    >>> advantages = torch.tensor([[[1.0], [0.0]], [[0.0], [30.0]]])
    >>> normalised_then_summed_advantages(advantages, mask, ids, torch.tensor([2.0, 1.0])).sign()
    tensor([[ 1.],
            [-1.]])
    """
    _require_some(advantages, weights)
    each = [
        normalised_advantages(one, response_mask, group_ids, epsilon=epsilon) for one in advantages
    ]
    together = torch.zeros_like(group_ids)
    return normalised_advantages(
        _summed(torch.stack(each), weights), response_mask, together, epsilon=epsilon
    )


def summed_then_normalised_advantages(
    advantages: Float[Tensor, "objectives batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    weights: Float[Tensor, "objectives"],
    *,
    epsilon: float = 1e-4,
) -> Float[Tensor, "batch time"]:
    """Objectives summed by weights, then on the scale of their group.

        A = N_group( Σ_i w_i A_i )

    Of advantages that a mean of the group was taken from, this is GRPO on the weighted sum of
    rewards.

    Args:
        advantages: of each objective, in nats.
        response_mask: True on tokens of the policy.
        group_ids: responses with the same number answer the same prompt.
        weights: of the objectives.
        epsilon: added to deviations.

    Returns:
        Advantages, zero outside the mask.

    Raises:
        ShapeError: there is no objective, or not one weight for each.

    Source: `sum_then_normalize` of TRL 1.16.

    >>> mask, ids = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0])
    >>> advantages = torch.tensor([[[1.0], [0.0]], [[0.0], [3.0]]])
    >>> summed_then_normalised_advantages(advantages, mask, ids, torch.tensor([1.0, 1.0])).sign()
    tensor([[-1.],
            [ 1.]])
    """
    _require_some(advantages, weights)
    return normalised_advantages(
        _summed(advantages, weights), response_mask, group_ids, epsilon=epsilon
    )


def normalised_advantages(
    advantages: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    epsilon: float = 1e-4,
) -> Float[Tensor, "batch time"]:
    """Advantages less the mean of their group and divided by its deviation.

    Every response counts as one: the mean is that of the means of its responses, and so is the
    mean square. With the same number on all tokens of a response this is the sample deviation of
    these numbers.

    Args:
        advantages: in nats.
        response_mask: True on tokens of the policy. A response without any is in no group.
        group_ids: what belongs together.
        epsilon: added to the deviation, in nats.

    Returns:
        Advantages, zero outside the mask.

    >>> mask, ids = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    >>> normalised_advantages(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), mask, ids, epsilon=0.0)
    tensor([[-0.7071, -0.7071],
            [ 0.7071,  0.7071]])
    """
    counts = response_mask.any(-1)
    means = group_means(masked_row_mean(advantages, response_mask), counts, group_ids)
    errors = (advantages - means[:, None]).masked_fill(~response_mask, 0.0)
    squares = group_sums(masked_row_mean(errors.square(), response_mask), group_ids)
    size = group_sums(counts.to(squares), group_ids)
    deviations = (squares / (size - 1).clamp(min=1)).sqrt()
    return errors / (deviations[:, None] + epsilon)


def worst_objectives(
    returns: Float[Tensor, "objectives batch"],
    counts: Bool[Tensor, "batch"],
    group_ids: Int[Tensor, "batch"],
) -> Int[Tensor, "batch"]:
    """Number of the objective with the least mean return in each row's group.

        k = argmin_k mean_{y ∈ g} r_k(y)

    With one group for all responses this is one objective for a whole step, as published; with the
    prompts as groups each prompt has its own. With every response in a group of its own it would
    be the worst case of scores, which is a way to combine them before credit.

    Args:
        returns: of each response by each objective, on one scale.
        counts: True for the responses that count.
        group_ids: what belongs together.

    Returns:
        From 0 to the number of objectives, less one; the first of several that are alike.

    Raises:
        ShapeError: there is no objective.

    Source: MaxMin-RLHF, Chakraborty et al. 2024, arXiv 2402.08925: ascend on the group of people
    whose reward, less the price of KL, is least. The price is the same for all of them. What the
    step is could not be read in code.

    >>> returns = torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    >>> worst_objectives(returns, torch.tensor([True, True]), torch.tensor([0, 0]))
    tensor([1, 1])
    >>> worst_objectives(returns, torch.tensor([True, True]), torch.tensor([0, 1]))
    tensor([0, 1])
    """
    _require_some(returns)
    return torch.stack([group_means(one, counts, group_ids) for one in returns]).argmin(0)


def _max_min(one: Objectives, group_ids: Int[Tensor, "batch"]) -> Float[Tensor, "batch time"]:
    worst = worst_objectives(one.returns, one.response_mask.any(-1), group_ids)
    chosen = one.advantages.gather(0, worst[None, :, None].expand_as(one.advantages[:1]))
    return chosen[0].masked_fill(~one.response_mask, 0.0)


def _summed(
    advantages: Float[Tensor, "objectives batch time"], weights: Float[Tensor, "objectives"]
) -> Float[Tensor, "batch time"]:
    return (weights.to(advantages)[:, None, None] * advantages).sum(0)


def _require_some(values: Tensor, weights: Tensor | None = None) -> None:
    number = len(values) if weights is None else len(weights)
    if not len(values) or number != len(values):
        raise ShapeError(
            f"{len(values)} objectives and {number} weights; expected at least one objective, and "
            "a weight for each"
        )


OBJECTIVE_MIXES: dict[str, ObjectiveMix] = {
    "pama": ObjectiveMix(
        lambda o: least_nonnegative_advantages(o.advantages, o.response_mask),
        "the least advantage of a token, nothing where any is not positive (PAMA)",
    ),
    "normalise-then-sum": ObjectiveMix(
        lambda o: normalised_then_summed_advantages(
            o.advantages, o.response_mask, o.group_ids, o.weights
        ),
        "each on the scale of its group, summed, on the scale of the batch",
        kl="apart",
        groups=True,
    ),
    "sum-then-normalise": ObjectiveMix(
        lambda o: summed_then_normalised_advantages(
            o.advantages, o.response_mask, o.group_ids, o.weights
        ),
        "summed, then on the scale of the group",
        kl="apart",
        groups=True,
    ),
    "max-min": ObjectiveMix(
        lambda o: _max_min(o, torch.zeros_like(o.group_ids)),
        "the objective with the least mean return of the step (MaxMin)",
    ),
    "max-min-per-prompt": ObjectiveMix(
        lambda o: _max_min(o, o.group_ids),
        "for each prompt the objective with the least mean return there (MaxMin)",
    ),
}
"""Rows by the names that `objectives.mix` takes."""
