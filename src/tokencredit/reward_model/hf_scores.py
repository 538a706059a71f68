"""One forward pass of a reward model: its score, the score of every prefix, one attention row.

Whatever the padding, rows are moved to the left end before the model sees them: positions then
count from the first real token in every architecture. Rows that would change each other's scores
all the same go through the model apart (`hf_passes`). A causal model needs no mask after that,
since no real token comes after padding, and runs the fastest kernels.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tokencredit.batch import (
    ObjectiveScores,
    ResponseBatch,
    ResponseScores,
    rows_of_like_length,
)
from tokencredit.errors import DataError, NumericError, TokenCreditWarning
from tokencredit.masking import left_packed
from tokencredit.models.heads import (
    at_last_token,
    float32_outputs,
    last_positions,
    objective_names,
    require_one_score,
    scalar_scores,
)
from tokencredit.models.hf_architecture import (
    is_causal,
    reading_positions,
    require_readable,
    sequence_classifier,
    vocabulary_width,
)
from tokencredit.models.hf_attention import recorded_attention
from tokencredit.models.hf_bounds import keep_pessimistic_score, pessimism_asked
from tokencredit.models.hf_gates import keep_gated_score
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_objectives import (
    Join,
    JoinedScores,
    every_score,
    join_scores,
    joined_scores,
    keep_one_score,
    mean_of_all,
    split_objectives,
)
from tokencredit.models.hf_passes import (
    causal_states,
    classifier_logits,
    evaluating,
    row_places,
    separate_passes,
    tokens_per_pass,
)
from tokencredit.models.hf_users import keep_score_of_user
from tokencredit.models.hf_vocabularies import warn_of_tokens_without_rows


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


def load_reward_model(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    pad_token: str | None = None,
    trust_remote_code: bool = False,
    join: Join | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence-classification model and its tokenizer, ready to score.

    Args:
        name_or_path: a folder or a Hub id; of a model of several objectives with one of them,
            `folder#helpful`, or a weighted sum, `folder#helpful=0.7,short=0.3`; of a model that
            knows users with one of them; `folder#pessimistic=0.5` where its covariance is kept. The
            score of an ensemble of heads is their mean where nothing is asked for.
        dtype: of the weights; scores are float32 in any case.
        attn_implementation: None for the model's default, which is the fast one.
        device: to put the model on.
        pad_token: a token of the vocabulary to pad with, for tokenizers that name none.
        trust_remote_code: let Python code that comes with the model run.
        join: makes one score of all outputs, in the place of what stands after `#`, which is then
            only its name.

    Raises:
        ModelError: nothing that can be loaded is there, the head's weights are missing (of a
            language model, for example), it has more than one score and none is asked for, or
            `pad_token` is not in the vocabulary.
        ConfigError: there is no such objective.
    """
    place, asked = split_objectives(name_or_path)
    model = load_model(
        AutoModelForSequenceClassification,
        place,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=trust_remote_code,
        expected="a model trained for sequence classification: train one with "
        "`tokencredit train-reward-model`",
    )
    pessimism = pessimism_asked(asked)
    if getattr(model.config, "score_users", None) is not None:
        keep_score_of_user(model, asked, name=place)
    elif pessimism is not None:
        keep_pessimistic_score(model, pessimism, name=place)
    elif join is not None:
        join_scores(model, join, asked, name=str(place))
    elif not asked and getattr(model.config, "score_gate", None) is not None:
        keep_gated_score(model, name=place)
    elif asked or getattr(model.config, "score_ensemble", False):
        keep_one_score(model, asked or mean_of_all(model.config), name=str(place))
    require_one_score(model.config.num_labels, objective_names(model.config))
    warn_of_order(model, str(name_or_path))
    tokenizer = load_tokenizer(place, pad_token=pad_token, trust_remote_code=trust_remote_code)
    warn_of_tokens_without_rows(tokenizer, vocabulary_width(model))
    return model, tokenizer


_GOOD = ("positive", "pos", "good", "better", "chosen", "safe", "helpful", "accept", "true", "yes")


def warn_of_order(model: PreTrainedModel, name: str) -> None:
    """Say where the first of two outputs, by its label, is the better one."""
    labels = getattr(model.config, "id2label", None) or {}
    first, second = (str(labels.get(i, "")).lower() for i in (0, 1))
    if model.config.num_labels == 2 and first in _GOOD and second not in _GOOD:
        warnings.warn(
            f"the outputs of {name!r} are labelled {labels[0]!r}, {labels[1]!r}, and the score is "
            "the second less the first; expected the better one second: with these labels every "
            "score has the wrong sign, unless the labels are wrong",
            TokenCreditWarning,
            stacklevel=3,
        )


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
