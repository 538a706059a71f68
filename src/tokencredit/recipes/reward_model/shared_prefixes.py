"""Both answers of a pair in one row, after the beginning that they share.

A pair is most often one prompt and two answers. Its row holds what both begin with, then the rest
of the one and the rest of the other, each at its own positions; neither rest sees the other. A
causal model then gives every token the state that it has in a row of its own, and the prompt is
read once.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokencredit.batch import padded_rows
from tokencredit.errors import TokenCreditWarning
from tokencredit.models.heads import scalar_scores
from tokencredit.models.hf_architecture import is_causal, sequence_classifier
from tokencredit.models.hf_joined_rows import PADDING, branch_masks, joined_rows
from tokencredit.models.hf_kept_keys import attention_windows, rescales_positions
from tokencredit.models.hf_short_attention import short_attention
from tokencredit.recipes.reward_model.examples import JudgedRow, judgement_batch, reward_batch
from tokencredit.scorers.hf_fractions import counted_scores
from tokencredit.text.hf_token_rows import ReadAt

_TOLERANCES = {torch.float32: 1e-4}
_COARSE_TOLERANCE = 5e-2


def shared_batch(
    judged: Sequence[JudgedRow], *, pad_id: int, read_at: ReadAt
) -> dict[str, Int[Tensor, "..."] | Bool[Tensor, "..."] | Float[Tensor, "..."]]:
    """Pairs, a row each, and where their scores are read.

    Args:
        judged: pairs.
        pad_id: fills padding.
        read_at: which tokens of a text have their score read.

    Returns:
        `input_ids`, `position_ids` and `branches` (pairs, sequence): of padding, of what both begin
        with, of the chosen side and of the rejected one. `columns` (texts, reads): where in its row
        a score stands, all chosen sides first, and `counted`, True on columns that are there.
        `targets`, `strengths` and `preferred` as of `reward_batch`.
    """
    chosen, rejected = zip(*(one.responses for one in judged), strict=True)
    both = [text.input_ids for one in judged for text in one.responses]
    joined = joined_rows(both, [2] * len(judged))
    reads = [
        [at for at, is_read in enumerate(read_at(text)) if is_read] for text in (*chosen, *rejected)
    ]
    found, counted = padded_rows(reads, fill=0, side="right")
    columns = torch.cat([joined.columns[::2], joined.columns[1::2]])
    return {
        "input_ids": joined.input_ids.masked_fill(joined.branches == PADDING, pad_id),
        "position_ids": joined.position_ids,
        "branches": joined.branches,
        "columns": columns.gather(-1, found),
        "counted": counted,
        **judgement_batch(judged),
    }


def shared_scores(
    model: nn.Module,
    input_ids: Int[Tensor, "pairs sequence"],
    position_ids: Int[Tensor, "pairs sequence"],
    branches: Int[Tensor, "pairs sequence"],
    columns: Int[Tensor, "texts reads"],
    counted: Bool[Tensor, "texts reads"],
) -> Float[Tensor, "texts reads"]:
    """Scores where they are read, with gradient; zeros where nothing is.

    Only the states that are read go through the head, in float32.

    Args:
        model: that `shares_prefixes` allows.
        input_ids: as `shared_batch` gives them.
        position_ids: likewise.
        branches: likewise.
        columns: likewise.
        counted: likewise.
    """
    pretrained = sequence_classifier(model)
    with short_attention(model, input_ids.shape[1]):
        hidden = pretrained.base_model(
            input_ids,
            attention_mask=branch_masks(pretrained, branches, position_ids),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
    rows = torch.arange(len(input_ids), device=input_ids.device).repeat(2)[:, None]
    read = hidden[rows.expand_as(columns)[counted], columns[counted]]
    with torch.autocast(hidden.device.type, enabled=False):
        found = scalar_scores(pretrained.score(read.float()))
    scores = found.new_zeros(columns.shape)
    scores[counted] = found
    return scores


def shares_prefixes(model: nn.Module, row: JudgedRow, *, pad_id: int, read_at: ReadAt) -> bool:
    """Whether one row for both sides of a pair gives the scores of two rows, as a pair shows.

    Warns where the model takes such rows and gives other scores.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        row: a pair to compare both ways with; anything else shares nothing.
        pad_id: fills padding.
        read_at: which tokens of a text have their score read.
    """
    if len(row.responses) != 2 or not is_causal(model):
        return False
    pretrained: Any = sequence_classifier(model)
    if attention_windows(pretrained) is None or rescales_positions(pretrained):
        return False
    together = shared_batch([row], pad_id=pad_id, read_at=read_at)
    apart = reward_batch([row], pad_id=pad_id, read_at=read_at)
    training = model.training
    model.eval()
    with torch.no_grad():
        inputs: list[dict[str, Any]] = [
            {name: tensor.to(pretrained.device) for name, tensor in batch.items() if name in names}
            for batch, names in (
                (together, ("input_ids", "position_ids", "branches", "columns", "counted")),
                (apart, ("input_ids", "attention_mask", "counted")),
            )
        ]
        alone = counted_scores(model, **inputs[1])
        difference = (shared_scores(model, **inputs[0]) - alone).abs()
        scale = float(alone.abs().max())
    model.train(training)
    allowed = _TOLERANCES.get(pretrained.dtype, _COARSE_TOLERANCE) * max(scale, 1.0)
    if float(difference.max()) <= allowed:
        return True
    warnings.warn(
        f"{type(pretrained).__name__} gives a pair in one row other scores than in two (by "
        f"{float(difference.max()):.3g}): each answer is read with its own prompt, which takes "
        "longer",
        TokenCreditWarning,
        stacklevel=2,
    )
    return False
