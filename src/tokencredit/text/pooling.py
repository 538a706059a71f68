"""Values of tokens pooled into segments, and values of segments spread over their tokens.

Every credit method composes with every segmentation: `scores_at_segment_ends` of its token scores,
or `pooled_by_segment`, something done to the segments, and `spread_over_segments`. Sums are taken
in float32, or in float64 where that is given.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.masking import masked_row_mean
from tokencredit.text.segments import segment_ends, segment_lengths

Pooling = Literal["sum", "mean", "first", "last", "position"]


Spreading = Literal["even", "end", "copy"]


def pooled_by_segment(
    values: Float[Tensor, "batch time"],
    segment_ids: Int[Tensor, "batch time"],
    *,
    how: Pooling,
) -> tuple[Float[Tensor, "batch segments"], Bool[Tensor, "batch segments"]]:
    """One value per segment from those of its tokens.

        V_k = Σ_{t ∈ S_k} σ_t v_t

    Args:
        values: of the tokens; what lies outside the segments is ignored.
        segment_ids: as `segments` makes them.
        how: the weights σ: 1 ("sum"), the same with sum one ("mean"), 1 on the first or last
            token alone, or proportional to 1 / i for the i-th token of the segment, with sum one
            ("position").

    Returns:
        Values of the segments, zero after the last segment of a row, and the mask of segments
        that are there.

    Raises:
        ConfigError: `how` is none of these.
        ShapeError: values and segment ids differ in shape.

    >>> pooled_by_segment(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]]), how="mean")
    (tensor([[2., 5.]]), tensor([[True, True]]))
    """
    if values.shape != segment_ids.shape:
        raise ShapeError(
            f"values have shape {tuple(values.shape)} and segment_ids {tuple(segment_ids.shape)}; "
            "expected one value per token"
        )
    lengths = segment_lengths(segment_ids)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    weights = _pooling_weights(segment_ids, lengths, how).to(values)
    # A token of weight zero may hold anything, infinity included.
    weighted = torch.where(weights > 0, values, 0.0) * weights
    columns = segment_ids.long().clamp(min=0)
    return values.new_zeros(lengths.shape).scatter_add(-1, columns, weighted), lengths > 0


def spread_over_segments(
    segment_values: Float[Tensor, "batch segments"],
    segment_ids: Int[Tensor, "batch time"],
    *,
    how: Spreading,
) -> Float[Tensor, "batch time"]:
    """The value of each segment given to its tokens.

    Args:
        segment_values: what lies after the last segment of a row is ignored.
        segment_ids: as `segments` makes them.
        how: "even" gives every token the same part of the value, "end" the last token the whole,
            "copy" every token the whole.

    Returns:
        Values of the tokens, zero outside the segments. With "even" and "end" the tokens of a
        segment sum to its value.

    Raises:
        ConfigError: `how` is none of these.
        ShapeError: there are fewer values than segments, or rows differ in number.

    >>> spread_over_segments(torch.tensor([[2.0, 5.0]]), torch.tensor([[0, 0, 1]]), how="even")
    tensor([[1., 1., 5.]])
    """
    lengths = segment_lengths(segment_ids)
    if len(segment_values) != len(lengths) or segment_values.shape[1] < lengths.shape[1]:
        raise ShapeError(
            f"segment_values have shape {tuple(segment_values.shape)} for {lengths.shape[1]} "
            f"segments in each of {len(lengths)} rows; expected a value for every segment"
        )
    columns = segment_ids.long().clamp(min=0)
    own = segment_values.to(torch.promote_types(segment_values.dtype, torch.float32))
    own = own.gather(-1, columns)
    if how == "even":
        own = own / lengths.gather(-1, columns).clamp(min=1)
    elif how not in ("end", "copy"):
        raise ConfigError(f"how is {how!r}; expected 'even', 'end' or 'copy'")
    paid = segment_ends(segment_ids) if how == "end" else segment_ids >= 0
    return own.masked_fill(~paid, 0.0)


def scores_at_segment_ends(
    token_scores: Float[Tensor, "batch time"], segment_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """What the tokens of each segment earn, paid together at its last token.

    The sum of a row stays, and a score moves only to a later token. Causality stays as well where a
    token is known to end its segment when it comes: n-grams, and segments closed when shown
    (`segments.close`). A segment that ends because of what the next token is, by perplexity or by
    the text, makes what the last token is paid depend on the next one. It is the way to any credit
    method by sentence, clause or n-gram.

    Args:
        token_scores: of any credit method, in nats.
        segment_ids: as `segments` makes them.

    Returns:
        Token scores in nats, zero but at the ends of segments.

    Raises:
        ShapeError: scores and segment ids differ in shape.

    >>> scores_at_segment_ends(torch.tensor([[1.0, -3.0, 5.0]]), torch.tensor([[0, 0, 1]]))
    tensor([[ 0., -2.,  5.]])
    """
    sums, _ = pooled_by_segment(token_scores, segment_ids, how="sum")
    return spread_over_segments(sums, segment_ids, how="end")


def segment_end_scores(
    prefix_scores: Float[Tensor, "batch time_plus_1"], segment_ids: Int[Tensor, "batch time"]
) -> tuple[Float[Tensor, "batch segments"], Bool[Tensor, "batch segments"]]:
    """Score of each segment: of the prefix that ends with its last token.

        e_k = f(x, y_{≤end(k)})

    Args:
        prefix_scores: in nats; column 0 is the prompt alone and is not read, column t + 1 ends
            with response token t.
        segment_ids: as `segments` makes them.

    Returns:
        Segment scores in nats, zero after the last segment of a row, and the mask of segments
        that are there.

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens.

    Source: Yin et al. 2025, arXiv 2501.02790, segment-level reward.

    >>> segment_end_scores(torch.tensor([[9.0, 1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]]))
    (tensor([[3., 5.]]), tensor([[True, True]]))
    """
    if prefix_scores.shape[1] != segment_ids.shape[1] + 1:
        raise ShapeError(
            f"{prefix_scores.shape[1]} prefix scores for {segment_ids.shape[1]} tokens; expected "
            "one more than tokens, the first of the prompt alone"
        )
    return pooled_by_segment(prefix_scores[:, 1:], segment_ids, how="last")


def segment_average_scores(
    prefix_scores: Float[Tensor, "batch time_plus_1"], segment_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch"]:
    """Score of each response under a segment reward model: the mean over its segments.

        R = 1/K · Σ_k e_k

    Args:
        prefix_scores: in nats, as for `segment_end_scores`.
        segment_ids: as `segments` makes them.

    Returns:
        Sequence scores in nats, 0 for a response without segments.

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens.

    Source: Yin et al. 2025, arXiv 2501.02790, the average that its Bradley-Terry loss compares.

    >>> segment_average_scores(torch.tensor([[9.0, 1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]]))
    tensor([4.])
    """
    return masked_row_mean(*segment_end_scores(prefix_scores, segment_ids))


def _pooling_weights(
    segment_ids: Int[Tensor, "batch time"], lengths: Int[Tensor, "batch segments"], how: Pooling
) -> Float[Tensor, "batch time"]:
    """Weight of each token in its segment, zero outside the segments."""
    columns, inside = segment_ids.long().clamp(min=0), segment_ids >= 0
    before = (lengths.cumsum(-1) - lengths).gather(-1, columns)
    places = (inside.cumsum(-1) - before).double()  # in the segment, from 1
    if how == "sum":
        weights = torch.ones_like(places)
    elif how == "mean":
        weights = 1.0 / lengths.gather(-1, columns).double()
    elif how == "first":
        weights = (places == 1).double()
    elif how == "last":
        weights = segment_ends(segment_ids).double()
    elif how == "position":
        decay = (1.0 / places).masked_fill(~inside, 0.0)
        totals = decay.new_zeros(lengths.shape).scatter_add(-1, columns, decay)
        weights = decay / totals.gather(-1, columns)
    else:
        raise ConfigError(f"how is {how!r}; expected 'sum', 'mean', 'first', 'last' or 'position'")
    return weights.masked_fill(~inside, 0.0)
