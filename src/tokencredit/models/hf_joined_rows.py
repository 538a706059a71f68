"""Answers to one prompt in one row, after the beginning that they share.

The row of a group holds what all its answers begin with, then the rest of each, at its own
positions; no rest sees another. A causal model then gives every token the state that it has in a
row of its own, and the prompt is read once.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.batch import padded_rows
from tokencredit.errors import TokenCreditWarning
from tokencredit.models.hf_architecture import reads_both_ways
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_kept_keys import attention_windows, rescales_positions
from tokencredit.models.hf_passes import evaluating, ordinary_ids

# What a token of a joined row belongs to; the rests follow.
PADDING, SHARED, FIRST_REST = range(3)
# Joined rows are read where they have at most this share of the tokens, padding included.
WORTHWHILE = 0.9
# How far a state may move, as a share of the largest: by the rounding of other matrix shapes alone.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 0.1

_reads_joined: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class JoinedRows:
    """Rows of several groups, a row for each group, and where their tokens stand.

    Attributes:
        input_ids: of the groups, padded on the right.
        position_ids: of each token in the row that it comes from.
        branches: `PADDING`, `SHARED`, or the number of the rest, from `FIRST_REST` on.
        groups: the group of each row.
        columns: where in its group each token of a row stands; 0 on padding.
    """

    input_ids: Int[Tensor, "groups sequence"]
    position_ids: Int[Tensor, "groups sequence"]
    branches: Int[Tensor, "groups sequence"]
    groups: Int[Tensor, "rows"]
    columns: Int[Tensor, "rows width"]


def joined_rows(rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> JoinedRows:
    """One row for each group of rows.

    Args:
        rows: token ids; those of a group together.
        sizes: how many rows each group has.

    >>> joined = joined_rows([[5, 6, 7], [5, 6, 8, 9], [4]], [2, 1])
    >>> joined.input_ids.tolist(), joined.position_ids.tolist()
    ([[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]], [[0, 1, 2, 2, 3], [0, 0, 0, 0, 0]])
    >>> joined.branches.tolist(), joined.columns.tolist()
    ([[1, 1, 2, 3, 3], [1, 0, 0, 0, 0]], [[0, 1, 2, 0], [0, 1, 3, 4], [0, 0, 0, 0]])
    """
    ids, positions, branches, columns, groups = [], [], [], [], []
    at = 0
    for group, size in enumerate(sizes):
        some = rows[at : at + size]
        at += size
        shared = shared_length(some)
        ids.append(list(some[0][:shared]))
        positions.append(list(range(shared)))
        branches.append([SHARED] * shared)
        for branch, row in enumerate(some, start=FIRST_REST):
            groups.append(group)
            moved = len(ids[-1]) - shared
            columns.append([*range(shared), *range(shared + moved, len(row) + moved)])
            ids[-1] += row[shared:]
            positions[-1] += range(shared, len(row))
            branches[-1] += [branch] * (len(row) - shared)
    return JoinedRows(
        padded_rows(ids, fill=0, side="right")[0],
        padded_rows(positions, fill=0, side="right")[0],
        padded_rows(branches, fill=PADDING, side="right")[0],
        torch.tensor(groups),
        padded_rows(columns, fill=0, side="right")[0],
    )


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with.

    Args:
        rows: token ids.

    >>> shared_length([[5, 6, 7], [5, 6, 8]])
    2
    """
    length = 0
    for ids in zip(*rows, strict=False):
        if len(set(ids)) > 1:
            break
        length += 1
    return length


def joined_arguments(model: nn.Module, joined: JoinedRows) -> dict[str, Any]:
    """Arguments for a forward pass over joined rows.

    Args:
        model: that `reads_joined_rows` allows.
        joined: the rows.
    """
    pretrained = pretrained_model(model)
    device = pretrained.device
    branches, positions = joined.branches.to(device), joined.position_ids.to(device)
    return {
        "input_ids": joined.input_ids.to(device),
        "position_ids": positions,
        "attention_mask": branch_masks(pretrained, branches, positions),
        "use_cache": False,
    }


def branch_masks(
    model: PreTrainedModel,
    branches: Int[Tensor, "groups sequence"],
    position_ids: Int[Tensor, "groups sequence"],
) -> Any:
    """What attention may see: the shared beginning, and earlier tokens of the same rest.

    Args:
        model: of which `attention_windows` knows what it sees.
        branches: as of `JoinedRows`.
        position_ids: likewise.

    Returns:
        A mask, or one for each type of attention layer.
    """
    windows = attention_windows(model)
    assert windows is not None
    seen, by = branches[:, None, :], branches[:, :, None]
    visible = ((seen == SHARED) | (seen == by)).tril()
    distances = position_ids[:, :, None] - position_ids[:, None, :]
    masks = {
        kind: _mask(visible if window is None else visible & (distances < window), model)
        for kind, window in windows.items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _mask(visible: Bool[Tensor, "groups sequence sequence"], model: PreTrainedModel) -> Tensor:
    """What attention takes: eager attention adds its mask to the logits."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return visible[:, None]
    mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(model.dtype).min)[:, None]


def reads_joined_rows(model: nn.Module) -> bool:
    """Whether a causal language model gives joined rows the states of rows apart.

    Tried once for each model, with two short rows. Warns, that once, where it does not.

    Args:
        model: a Hugging Face model, also inside a PEFT wrapper.
    """
    pretrained = pretrained_model(model)
    if reads_both_ways(pretrained) or rescales_positions(pretrained):
        return False
    if attention_windows(pretrained) is None:
        return False
    if model not in _reads_joined:
        _reads_joined[model] = _gives_the_same(model)
    return _reads_joined[model]


@torch.no_grad()
def _gives_the_same(model: nn.Module) -> bool:
    """Whether two short rows have the same logits in one row as apart."""
    found = ordinary_ids(pretrained_model(model))
    half = len(found) // 2
    rows = [found, found[:half] + found[half:][::-1]]
    joined = joined_rows(rows, [2])
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.autocast(device.type, enabled=False):
            apart = model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits
            together = model(**joined_arguments(model, joined)).logits
        together = together[joined.groups[:, None], joined.columns]
        error_size, scale = float((apart - together).abs().max()), float(apart.abs().max())
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        difference = f"does not take answers in one row ({type(error).__name__}: {error})"
    else:
        if error_size <= _TOLERANCES.get(apart.dtype, _COARSE_TOLERANCE) * scale:
            return True
        difference = (
            f"gives answers in one row other logits than apart (by {error_size:.3g} of {scale:.3g})"
        )
    warnings.warn(
        f"{type(pretrained_model(model)).__name__} {difference}: each answer is read with its own "
        "prompt, which takes longer",
        TokenCreditWarning,
        stacklevel=2,
    )
    return False
