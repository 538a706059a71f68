"""Scores of beginnings of a text: after 20, 40, 60, 80 and 100 % of its tokens."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.batch import padded_rows, rows_of_like_length
from tokencredit.errors import DataError
from tokencredit.evaluation.prefix_accuracy import FRACTIONS, scores_at_fractions
from tokencredit.masking import left_packed
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_objectives import joined_scores
from tokencredit.models.hf_short_attention import short_attention
from tokencredit.reward_model.hf_scores import reward_model_output
from tokencredit.scorers.hf_segment_ends import SegmentEnds
from tokencredit.scorers.hf_trained_reading import running_segment_means
from tokencredit.text.hf_token_rows import (
    EncodedText,
    ReadAt,
    read_every_token,
    read_last_token,
    scored_rows,
    token_types,
)


def counted_scores(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Int[Tensor, "batch sequence"],
    counted: Bool[Tensor, "batch sequence"],
    token_types: Int[Tensor, "batch sequence"] | None = None,
    *,
    every_output: bool = False,
) -> Float[Tensor, "batch time *objectives"]:
    """Scores at the counted tokens, moved to the left end, with gradient.

    An encoder has one score, that of the whole, whatever is counted. With `every_output` there is a
    last axis, of all outputs of the head.
    """
    with short_attention(model, input_ids.shape[1]):
        output = reward_model_output(
            model, input_ids, attention_mask, token_types=token_types, every_output=every_output
        )
    if output.position_scores is None:
        return output.sequence_scores[:, None]
    return left_packed(output.position_scores, counted)[0]


def fraction_scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    *,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
    segment_ends: SegmentEnds | None = None,
    every_output: bool = False,
) -> Float[Tensor, "rows fractions *objectives"]:
    """Score of each response when 20, 40, 60, 80 and 100 % of it have been seen.

    Causal models give all of them in one pass; encoders read each cut text anew.

    Args:
        model: a reward model.
        rows: prompts with their responses.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.
        segment_ends: of `trained_segment_ends`, where the score of a text is the mean over the ends
            of its segments, the last of them where it is cut; None where it is read at the last
            token seen.
        every_output: whether there is a last axis, of all outputs of the head.
    """
    model.eval()
    if is_causal(model):
        return _scores(model, rows, FRACTIONS, read_every_token, pad_id, batch_size, context,
                       segment_ends, every_output)  # fmt: skip
    parts = []
    for fraction in FRACTIONS:
        seen = [_beginning(row, fraction) for row in rows]
        parts.append(_scores(model, seen, (1.0,), read_last_token, pad_id, batch_size, context,
                             None, every_output))  # fmt: skip
    return torch.cat(parts, dim=1)


def _scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    fractions: tuple[float, ...],
    read_at: ReadAt,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
    segment_ends: SegmentEnds | None,
    every_output: bool,
) -> Float[Tensor, "rows fractions *objectives"]:
    joined = joined_scores(model)
    gated = joined is not None and joined.gate is not None
    outputs = model.config.num_labels if every_output else 1
    scores = torch.empty(len(rows), len(fractions), outputs)
    for some in rows_of_like_length(torch.tensor([len(row) for row in rows]), batch_size):
        texts = [rows[row] for row in some]
        tensors = scored_rows(texts, pad_id=pad_id, read_at=read_at)
        ids, attention_mask, counted = (tensor.to(model.device) for tensor in tensors)
        with torch.no_grad(), context:
            types = token_types(texts, width=ids.shape[1])
            types = None if types is None else types.to(model.device)
            if gated:
                packed = _gated_scores(model, texts, ids, attention_mask, counted)
            else:
                packed = counted_scores(
                    model, ids, attention_mask, counted, types, every_output=every_output
                )
        mask, _ = left_packed(counted, counted)
        at_ends = None
        if segment_ends is not None:
            ends, _ = padded_rows(segment_ends(texts), fill=0, side="right")
            at_ends = left_packed(ends.bool().to(model.device), counted)[0]
        for output, one in enumerate(packed.unbind(-1) if every_output else [packed]):
            if at_ends is not None:
                one = running_segment_means(one, at_ends, mask)
            found = scores_at_fractions(one, mask, fractions=fractions)
            scores[some, :, output] = found.cpu()
    return scores if every_output else scores[..., 0]


def _gated_scores(
    model: PreTrainedModel,
    texts: Sequence[EncodedText],
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Int[Tensor, "batch sequence"],
    counted: Bool[Tensor, "batch sequence"],
) -> Float[Tensor, "batch time"]:
    """Scores at the counted tokens, the objectives weighed by what stands before each response."""
    joined = joined_scores(model)
    assert joined is not None
    starts = torch.tensor([row.start for row in texts], device=input_ids.device)
    if bool((starts == 0).any()):
        raise DataError(
            "a text has no prompt, and the reward model weighs its objectives by what it reads "
            "there; expected a prompt, or at least a token that begins a sequence"
        )
    found = reward_model_output(model, input_ids, attention_mask, every_output=True)
    assert found.position_scores is not None
    rows = torch.arange(len(texts), device=input_ids.device)
    weights = joined.weights_of(found.position_scores[rows, starts - 1])
    assert weights is not None
    scores = found.position_scores[..., : len(joined.names)]
    return left_packed(joined.joined(scores, weights[:, None]), counted)[0]


def _beginning(row: EncodedText, fraction: float) -> EncodedText:
    """The row without the end of its response; what stands after the response stays."""
    at = [index for index, counts in enumerate(row.response_mask) if counts]
    kept = at[: max(1, math.ceil(fraction * len(at) - 1e-9))]
    keep = [*range(kept[-1] + 1), *range(at[-1] + 1, len(row))]
    return replace(
        row,
        input_ids=[row.input_ids[i] for i in keep],
        response_mask=[row.response_mask[i] for i in keep],
    )
