"""How a reward model was trained to be read: at the last token, or as a mean over segment ends.

The configuration of a model says it (`score_positions`, `score_segments` and its options), so that
whoever asks the model later reads the score that was trained. A model that says nothing is read at
the last token.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch, ResponseScores
from tokencredit.errors import ModelError
from tokencredit.masking import last_true_index, masked_row_mean
from tokencredit.scorers.hf_segment_ends import (
    SegmentEnds,
    SegmentEndSettings,
    entropy_reference,
    segment_end_finder,
)
from tokencredit.text.hf_token_rows import EncodedText


def remember_score_positions(
    model_config: Any, positions: str, segments: SegmentEndSettings | None
) -> None:
    """Write into a model's configuration how its scores were read in training.

    Args:
        model_config: of the model; what an earlier training wrote goes.
        positions: what was scored in training.
        segments: where segments end, with the name of the reference as it shall be found later;
            None where scores are not read at ends of segments.
    """
    for name in list(vars(model_config)):
        if name.startswith("score_segment"):
            delattr(model_config, name)
    model_config.score_positions = positions
    if segments is None:
        return
    model_config.score_segments = segments.kind
    if segments.kind == "ngram":
        model_config.score_segment_length = segments.length
    if segments.kind == "entropy":
        model_config.score_segment_entropy = segments.entropy
        model_config.score_segment_reference = segments.reference


def trained_segments(model_config: Any) -> SegmentEndSettings | None:
    """Where the segments end that a model was trained on; None if it is read at the last token.

    Raises:
        ModelError: the configuration names a kind of segments that is not known.

    >>> from types import SimpleNamespace
    >>> trained_segments(SimpleNamespace(score_segments="ngram", score_segment_length=3)).length
    3
    """
    kind = getattr(model_config, "score_segments", None)
    if kind is None:
        return None
    known = ("ngram", "sentence", "clause", "entropy")
    if kind not in known:
        raise ModelError(
            f"the configuration of the reward model has score_segments {kind!r}; expected one of "
            f"{', '.join(known)}"
        )
    return SegmentEndSettings(
        kind,
        length=getattr(model_config, "score_segment_length", 5),
        entropy=getattr(model_config, "score_segment_entropy", 2.0),
        reference=getattr(model_config, "score_segment_reference", None),
    )


def trained_segment_ends(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False
) -> SegmentEnds | None:
    """What finds the segments that a model was trained on; None if it is read at the last token.

    The finder of the last model is kept, so that a reference of entropies is loaded once.

    Args:
        model: a reward model, also inside a wrapper that hands its configuration through.
        tokenizer: its own.
        trust_remote_code: let Python code that comes with the reference run.

    Raises:
        ModelError: the configuration is not understood, or the reference is not there, is no
            language model, or reads other tokens.
    """
    segments = trained_segments(model.config)
    if segments is None:
        return None
    # What is loaded without its weights is on the device `meta`, where nothing can be computed.
    device = str(next(model.parameters()).device).replace("meta", "cpu")
    return _kept_finder(segments, tokenizer, device, trust_remote_code)


@lru_cache(maxsize=2)
def _kept_finder(
    segments: SegmentEndSettings,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    trust_remote_code: bool,
) -> SegmentEnds:
    if segments.kind != "entropy":
        return segment_end_finder(segments, tokenizer)
    reference = entropy_reference(
        str(segments.reference), tokenizer, device=device, trust_remote_code=trust_remote_code
    )
    return segment_end_finder(segments, tokenizer, reference=reference)


def running_segment_means(
    prefix_scores: Float[Tensor, "batch time"],
    ends: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Mean score of every prefix at the ends of its segments, of which the last is its own.

    Args:
        prefix_scores: of each prefix.
        ends: True where a segment ends.
        mask: True on tokens that count.
    """
    columns = []
    for t in range(prefix_scores.shape[-1]):
        read = ends[:, : t + 1] & mask[:, : t + 1]
        read[:, t] = mask[:, t]
        columns.append(masked_row_mean(prefix_scores[:, : t + 1].float(), read))
    return torch.stack(columns, dim=-1)


def scores_as_trained(
    scores: ResponseScores,
    batch: ResponseBatch,
    ends: SegmentEnds | None,
    *,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None = None,
) -> ResponseScores:
    """Scores of responses as the model was trained to be read.

    R(y) = (1 / K) Σₖ R(x, y^{≤ eₖ}), k = 1, …, K

    A prefix scores what a response would that ends there: the mean over the ends of its segments,
    of which the last is its own end. `segment_credit` takes the scores as they were before, since
    the reward of a segment is what is read at its end.

    Args:
        scores: of one forward pass; the sequence score is read after all tokens of the row.
        batch: what was scored, in the model's own tokens.
        ends: of `trained_segment_ends`; None, for models that are read at the last token, changes
            nothing.
        attention_mask: the tokens that the model read, as of `score_responses`; None for all.

    Returns:
        Scores of which the prefix score of the last token that was read is the sequence score. A
        response of which nothing was read keeps its score.

    Raises:
        ModelError: the model has no prefix scores.

    Source: Yin et al. 2025, arXiv 2501.02790, the segment reward model with the average as
    aggregation.
    """
    if ends is None:
        return scores
    if scores.prefix_scores is None:
        raise ModelError(
            "the reward model was trained on ends of segments and has no prefix scores; expected a "
            "causal model"
        )
    read = _read_tokens(batch, attention_mask)
    mask = batch.response_mask & read
    last = last_true_index(mask)
    there, column = last >= 0, last.clamp(min=0)[:, None]
    own = scores.prefix_scores[:, 1:].scatter(-1, column, scores.sequence_scores[:, None])
    at_ends = _segment_ends(batch, mask, read, ends).scatter(-1, column, there[:, None])
    means = running_segment_means(own, at_ends, mask).masked_fill(~mask, 0.0)
    whole = means.gather(-1, column)[:, 0]
    return replace(
        scores,
        sequence_scores=torch.where(there, whole, scores.sequence_scores),
        prefix_scores=torch.cat([scores.prefix_scores[:, :1], means], dim=-1),
    )


def _read_tokens(batch: ResponseBatch, attention_mask: Tensor | None) -> Bool[Tensor, "batch time"]:
    """The columns of the response that the model read."""
    if attention_mask is None:
        return torch.ones_like(batch.response_mask)
    return attention_mask[:, batch.prompt_ids.shape[-1] :].bool()


def _segment_ends(
    batch: ResponseBatch,
    mask: Bool[Tensor, "batch time"],
    read: Bool[Tensor, "batch time"],
    ends: SegmentEnds,
) -> Bool[Tensor, "batch time"]:
    """Where segments end, in the columns of the batch; the last ends at the last token that counts.

    What stands inside a response and does not count (of a tool, for example) is read as it is.
    """
    rows, places = [], []
    for index, last in enumerate(last_true_index(mask).tolist()):
        if last < 0:
            continue
        columns = read[index, : last + 1].nonzero().flatten()
        prompt = batch.prompt_ids[index][batch.prompt_mask[index]].tolist()
        ids = [*prompt, *batch.response_ids[index, columns].tolist()]
        rows.append(EncodedText(ids, [False] * len(prompt) + mask[index, columns].tolist()))
        places.append((index, columns))
    at_ends = torch.zeros_like(mask)
    for (index, columns), row_ends in zip(places, ends(rows), strict=True):
        found = torch.tensor(row_ends[-len(columns) :], device=mask.device)
        at_ends[index, columns] = found & mask[index, columns]
    return at_ends
