"""What perturbation adds or takes away at once: single tokens, or segments of them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError
from tokencredit.masking import left_packed


def members_of_units(
    response_mask: Bool[Tensor, "batch time"], segment_ids: Int[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch units time"]:
    """Which tokens each unit holds, units in the order of their first tokens."""
    ids = segment_ids
    if ids is None:
        ids = torch.arange(response_mask.shape[1], device=response_mask.device)[None]
    elif ids.shape != response_mask.shape or bool((ids.lt(0) & response_mask).any()):
        raise ShapeError(
            f"segment_ids of shape {tuple(ids.shape)} do not fit a response_mask of shape "
            f"{tuple(response_mask.shape)}; expected an id from 0 for every token inside the mask"
        )
    together = (ids[:, :, None] == ids[:, None, :]) & response_mask[:, None, :]
    is_first = response_mask & ~together.tril(-1).any(-1)
    members, _ = left_packed(together, is_first)
    return members


def tokens_of_units(
    subsets: Bool[Tensor, "subsets units"], members: Bool[Tensor, "batch units time"]
) -> Bool[Tensor, "batch subsets time"]:
    """The tokens of all units of each subset."""
    return (subsets.float() @ members.float()) > 0


def spread_evenly(
    credit: Float[Tensor, "batch units"], members: Bool[Tensor, "batch units time"]
) -> Float[Tensor, "batch time"]:
    """The credit of each unit in equal parts on its tokens."""
    shares = members / members.sum(-1, keepdim=True).clamp(min=1)
    return (credit[:, :, None] * shares).sum(1).float()
