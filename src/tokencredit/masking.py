"""Masked reductions and selections over the time axis.

One convention: a mask is bool, True marks an entry that counts. What lies under a mask may be
anything, NaN included.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad


def masked_sum(
    values: Float[Tensor, "*batch time"], mask: Bool[Tensor, "*batch time"]
) -> Float[Tensor, "*batch"]:
    """Sum of the unmasked entries of each row.

    Entries under the mask may hold anything, NaN included.

    >>> masked_sum(torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[True, True, False]]))
    tensor([3.])
    """
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(values: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Mean over every unmasked entry of the tensor; 0 when there is none.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> masked_mean(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask)
    tensor(3.)
    """
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_row_mean(
    values: Float[Tensor, "*batch time"], mask: Bool[Tensor, "*batch time"]
) -> Float[Tensor, "*batch"]:
    """Mean of the unmasked entries of each row; 0 for a row without any.

    >>> masked_row_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def masked_var(values: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Population variance over every unmasked entry of the tensor.

    >>> masked_var(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
    tensor(1.)
    """
    values = values.masked_fill(~mask, 0.0)  # NaN there would come back through the gradient
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def masked_whiten(
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    epsilon: float = 1e-8,
) -> Float[Tensor, "batch time"]:
    """Values shifted to mean 0 and scaled to variance 1 over the mask, zero outside it.

    >>> masked_whiten(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])
    """
    values = values.masked_fill(~mask, 0.0)
    mean = masked_mean(values, mask)
    scaled = (values - mean) * torch.rsqrt(masked_var(values, mask) + epsilon)
    return scaled.masked_fill(~mask, 0.0)


def last_true_index(mask: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch"]:
    """Index of the last True of each row, -1 for a row without any.

    >>> last_true_index(torch.tensor([[True, True, False], [False, False, False]]))
    tensor([ 1, -1])
    """
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return pad(torch.where(mask, positions, -1), (1, 0), value=-1).amax(-1)


def left_packed(
    values: Shaped[Tensor, "batch time *rest"], mask: Bool[Tensor, "batch time"]
) -> tuple[Shaped[Tensor, "batch packed *rest"], Bool[Tensor, "batch packed"]]:
    """The unmasked entries of each row moved to its left end, zeros after them.

    Returns:
        The packed values and their mask; the new time axis is as long as the fullest row.

    >>> mask = torch.tensor([[False, True, True], [False, False, True]])
    >>> left_packed(torch.tensor([[7, 1, 2], [7, 7, 3]]), mask)
    (tensor([[1, 2],
            [3, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    lengths = mask.sum(-1)
    width = int(lengths.max()) if mask.numel() else 0
    packed_mask = torch.arange(width, device=mask.device) < lengths[:, None]
    packed = values.new_zeros((values.shape[0], width, *values.shape[2:]))
    packed[packed_mask] = values[mask]
    return packed, packed_mask
