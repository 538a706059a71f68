"""Sums and means over the responses that belong together, as those to one prompt."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
    return _group_sums(kept, group_ids) / _group_sums(counts.to(kept), group_ids).clamp(min=1)


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
    number = _group_sums(own, group_ids) - own
    return (_group_sums(kept, group_ids) - kept) / number.clamp(min=1), number > 0


def group_deviations(
    values: Float[Tensor, "batch"], counts: Bool[Tensor, "batch"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Sample standard deviation of each row's group, Bessel's correction included.

    >>> group_deviations(torch.tensor([1.0, 3.0]), torch.tensor([True, True]), torch.zeros(2).int())
    tensor([1.4142, 1.4142])
    """
    errors = (values - group_means(values, counts, group_ids)).masked_fill(~counts, 0.0)
    number = _group_sums(counts.to(errors), group_ids)
    return (_group_sums(errors.square(), group_ids) / (number - 1).clamp(min=1)).sqrt()


def _group_sums(
    values: Float[Tensor, "batch *rest"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch *rest"]:
    _, groups = torch.unique(group_ids, return_inverse=True)
    return torch.zeros_like(values).index_add(0, groups, values)[groups]
