"""One forward pass of a reward model: its score, the score of every prefix, one attention row.

Whatever the padding, rows are moved to the left end before the model sees them: positions then
count from the first real token in every architecture. Rows that would change each other's scores
all the same go through the model apart (`hf_passes`). A causal model needs no mask after that,
since no real token comes after padding, and runs the fastest kernels.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
)

from tokencredit.batch import (
    ObjectiveScores,
    ResponseBatch,
    ResponseScores,
    rows_of_like_length,
)
from tokencredit.errors import DataError, NumericError
from tokencredit.masking import left_packed
from tokencredit.models.heads import (
    at_last_token,
    float32_outputs,
    last_positions,
    scalar_scores,
)
from tokencredit.models.hf_architecture import (
    is_causal,
    reading_positions,
    require_readable,
    sequence_classifier,
)
from tokencredit.models.hf_attention import recorded_attention
from tokencredit.models.hf_objectives import (
    JoinedScores,
    every_score,
    joined_scores,
)
from tokencredit.models.hf_passes import (
    causal_states,
    classifier_logits,
    evaluating,
    row_places,
    separate_passes,
    tokens_per_pass,
)


@dataclass(frozen=True)
class RewardModelOutput:
    """What one forward pass says about whole sequences.

    Attributes:
        sequence_scores: the score of each sequence, in nats, float32; where every output is read,
            each of them.
        position_scores: the score of the sequence up to each token, zero on padding; None where
            the model reads in both directions, so that prefixes have no score of their own.
        attention: attention paid to each token by the position where the score is read, zero on
            padding; each row sums to 1. None where it was not asked for.
    """

    sequence_scores: Float[Tensor, "batch *objectives"]
    position_scores: Float[Tensor, "batch sequence *objectives"] | None
    attention: Float[Tensor, "batch sequence"] | None


def reward_model_output(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"],
    *,
    attention_layer: int | None = None,
    token_types: Int[Tensor, "batch sequence"] | None = None,
    every_output: bool = False,
) -> RewardModelOutput:
    """Score, prefix scores and attention row of each sequence, in one forward pass.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        input_ids: padded on either side or both; ids under the mask may be anything.
        attention_mask: real tokens. What is masked between real tokens is left out.
        attention_layer: of which layer to record the attention; None records none.
        token_types: 1 on the second of two segments, for encoders that read pairs.
        every_output: whether scores have a last axis, of all outputs of the head, as models of
            several objectives are trained; of the scores that one is joined of, where it is.

    Returns:
        Scores read at the last real token of a causal model; for an encoder what its own forward
        gives, and the attention of the first token. Gradients flow to the scores.

    Raises:
        ModelError: the head has more than one score and one is read, or the model gives no
            attention or reads its score elsewhere.
        DataError: a row has no real token, or more than the model can read.
        ConfigError: there is no such layer.

    Source: Chan et al. 2024, arXiv 2402.00782 (last layer, heads averaged). Their code takes the
    row at the policy's length of prompt and response; here it is the row where the score is read.
    """
    pretrained = sequence_classifier(model, every_output=every_output)
    real = attention_mask.bool()
    require_readable(pretrained, input_ids, real)
    ids, packed = left_packed(input_ids, real)
    types = None if token_types is None else left_packed(token_types, real)[0]
    lengths, causal = packed.sum(-1), is_causal(pretrained)
    if attention_layer is not None and not causal:
        reading_positions(pretrained, packed)
    groups = separate_passes(pretrained, ids, lengths, causal=causal)
    parts = [
        _one_pass(
            pretrained,
            ids[rows],
            lengths[rows],
            None if types is None else types[rows],
            attention_layer,
            every_output,
        )
        for rows in groups
    ]
    back = row_places(groups, len(ids))
    width = ids.shape[1]
    scores = _joined_parts([_widened(part.position_scores, width) for part in parts], back)
    rows_of_attention = _joined_parts([_widened(part.attention, width) for part in parts], back)
    return RewardModelOutput(
        torch.cat([part.sequence_scores for part in parts])[back],
        None if scores is None else _unpacked_values(scores, packed, real),
        None if rows_of_attention is None else _unpacked_values(rows_of_attention, packed, real),
    )


def _one_pass(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch packed"],
    lengths: Int[Tensor, "batch"],
    token_types: Int[Tensor, "batch packed"] | None,
    attention_layer: int | None,
    every_output: bool,
) -> RewardModelOutput:
    """The output for rows at the left end, of which none changes the scores of another."""
    ids = ids[:, : int(lengths.max())]
    packed = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    causal = is_causal(model)
    recording: Any = nullcontext()
    read: Callable[[Tensor], Tensor] = Tensor.float if every_output else scalar_scores
    if attention_layer is not None:
        reading = last_positions(packed) if causal else reading_positions(model, packed)
        recording = recorded_attention(model, reading[:, None], packed, layer=attention_layer)
    joined = joined_scores(model) if every_output else None
    if causal:
        hidden, record = causal_states(model, ids, around=recording)
        with every_score(joined):
            scores = read(float32_outputs(model.score, hidden))
        sequence_scores = at_last_token(scores, packed)
        padding = ~packed[..., None] if every_output else ~packed
        position_scores = scores.masked_fill(padding, 0.0)
    else:
        segments = {} if token_types is None else {"token_type_ids": token_types[:, : ids.shape[1]]}
        with recording as record, every_score(joined):
            logits = classifier_logits(model, ids, lengths, **segments)
        sequence_scores, position_scores = read(logits), None
    attention = None if record is None else record.rows[:, 0]
    return RewardModelOutput(sequence_scores, position_scores, attention)


def _widened(
    values: Float[Tensor, "batch packed *objectives"] | None, width: int
) -> Float[Tensor, "batch width *objectives"] | None:
    """Zeros after the values, up to this width."""
    if values is None:
        return None
    return nn.functional.pad(values, (0, 0) * (values.dim() - 2) + (0, width - values.shape[1]))


def score_responses(
    model: nn.Module,
    batch: ResponseBatch,
    *,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None = None,
    attention_layer: int | None = None,
    micro_batch_size: int | None = None,
    two_segments: bool = False,
) -> ResponseScores:
    """Everything credit needs to know about responses, without gradients and without dropout.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        batch: in the model's own tokens.
        attention_mask: real tokens of prompt and response, where some follow the last token that
            counts (the end of a chat turn); `batch.attention_mask` by default.
        attention_layer: of which layer to record the attention; None records none.
        micro_batch_size: sequences per forward pass at most, those of like length together; by
            default as many as `tokens_per_pass` says. Changes time and memory, not the result.
        two_segments: whether the model is told which tokens are the response's, as encoders that
            read pairs of sentences are.

    Raises:
        NumericError: a score is NaN or infinite.
        DataError: a prompt is empty or not padded on the left, or a text is too long.
        ModelError, ConfigError: as `reward_model_output`.
    """
    real = (batch.attention_mask if attention_mask is None else attention_mask).bool()
    require_prompts(batch)
    types = None
    if two_segments:
        second = torch.ones_like(batch.response_ids)
        types = torch.cat([torch.zeros_like(batch.prompt_ids), second], dim=-1)
    at_once = tokens_per_pass(model)
    batches = rows_of_like_length(real.sum(-1), micro_batch_size, tokens=at_once)
    joined = joined_scores(model)
    with torch.no_grad(), evaluating(model):
        outputs = [
            reward_model_output(
                model,
                batch.input_ids[rows],
                real[rows],
                attention_layer=attention_layer,
                token_types=None if types is None else types[rows],
                every_output=joined is not None,
            )
            for rows in batches
        ]
    back = torch.cat(batches).argsort()
    sequence_scores = torch.cat([output.sequence_scores for output in outputs])[back]
    positions = _joined_parts([output.position_scores for output in outputs], back)
    attention = _joined_parts([output.attention for output in outputs], back)
    _require_finite(sequence_scores, positions)
    start = batch.prompt_ids.shape[1]
    if positions is not None:
        positions = positions[:, start - 1 :]
    if attention is not None:
        attention = attention[:, start:].masked_fill(~batch.response_mask, 0.0)
    if joined is None:
        return ResponseScores(sequence_scores, positions, attention)
    there = real[:, start - 1 :]
    return _of_objectives(joined, sequence_scores, positions, attention, there)


def _of_objectives(
    joined: JoinedScores,
    sequence_scores: Float[Tensor, "batch outputs"],
    prefix_scores: Float[Tensor, "batch time_plus_1 outputs"] | None,
    attention: Float[Tensor, "batch time"] | None,
    there: Bool[Tensor, "batch time_plus_1"],
) -> ResponseScores:
    """The score made of several, with each of these."""
    at_prompt = sequence_scores if prefix_scores is None else prefix_scores[:, 0]
    weights, count = joined.weights_of(at_prompt), len(joined.names)
    sequence_scores = sequence_scores[:, :count]
    prefix_scores = None if prefix_scores is None else prefix_scores[..., :count]
    objectives = {
        name: ObjectiveScores(
            ResponseScores(
                sequence_scores[:, at],
                None if prefix_scores is None else prefix_scores[..., at],
                attention,
            ),
            None if weights is None else weights[:, at],
        )
        for at, name in enumerate(joined.names)
    }
    whole, prefixes = joined.joined(sequence_scores, weights), None
    if prefix_scores is not None:
        of_rows = None if weights is None else weights[:, None]
        prefixes = joined.joined(prefix_scores, of_rows).masked_fill(~there, 0.0)
    return ResponseScores(whole, prefixes, attention, objectives=objectives)


def require_prompts(batch: ResponseBatch) -> None:
    """Refuse responses of which the score of the prompt alone could not be read.

    Raises:
        DataError: a prompt is empty or not padded on the left.
    """
    prompt_ends = batch.prompt_mask[:, -1:]
    if prompt_ends.shape[1] == 0 or not bool(prompt_ends.all()):
        raise DataError(
            "a prompt is empty or padded on the right; expected at least one real token at the "
            "right end of prompt_ids, such as a beginning-of-sequence token: it is where the "
            "score of the prompt alone is read"
        )


def _require_finite(
    sequence_scores: Float[Tensor, "batch *objectives"],
    positions: Float[Tensor, "batch sequence *objectives"] | None,
) -> None:
    """All scores are numbers."""
    finite = sequence_scores.isfinite().view(len(sequence_scores), -1).all(-1)
    if positions is not None:
        finite = finite & positions.isfinite().flatten(1).all(-1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise NumericError(
            f"the reward model gives NaN or infinite scores in rows {rows}; expected finite ones: "
            "look for NaN weights, or load it in float32 or bfloat16 rather than float16"
        )


def _unpacked_values(
    values: Float[Tensor, "batch packed *objectives"],
    packed: Bool[Tensor, "batch packed"],
    real: Bool[Tensor, "batch sequence"],
) -> Float[Tensor, "batch sequence *objectives"]:
    """Undo `left_packed`: values back in their own columns, zeros elsewhere."""
    unpacked = values.new_zeros((*real.shape, *values.shape[2:]))
    unpacked[real] = values[packed]
    return unpacked


def _joined_parts(
    parts: list[Float[Tensor, "_ sequence *objectives"] | None], order: Int[Tensor, "batch"]
) -> Float[Tensor, "batch sequence *objectives"] | None:
    """Micro-batches put together, in this order; None where there is nothing to join."""
    present = [part for part in parts if part is not None]
    return torch.cat(present)[order] if present else None
