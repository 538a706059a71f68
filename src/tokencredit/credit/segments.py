"""Credit by segments, steps, utterances and spans of a response, handed to their tokens.

Steps and segments are columns, `(batch, steps)`; `segment_ids` say which tokens they are made of.
Spans of characters become spans of tokens in `preference.labels`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.credit.location import LocationNormaliser, location_normalised
from tokencredit.errors import ShapeError
from tokencredit.masking import last_true_index
from tokencredit.text.pooling import Spreading, segment_end_scores, spread_over_segments
from tokencredit.text.segments import require_tiling


def segment_credit(
    prefix_scores: Float[Tensor, "batch time_plus_1"],
    segment_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    normaliser: LocationNormaliser | None = None,
    spread: Spreading = "even",
) -> Float[Tensor, "batch time"]:
    """The reward of each segment, normalised by where it stands, spread over its tokens.

        r_t = (e_k − μ(k / K)) / σ(k / K) / |S_k| for t ∈ S_k
        e_k = f(x, y_{≤end(k)})

    Conserves: up to the segment count. Causal: no. Bounded: no. Needs: prefix scores and segments.

    The score of the response is the mean of its segments' and the row sums to their sum, so more
    segments can earn more: that is what the normaliser is against, which brings the mean of the
    rewards at every location to zero. A token is paid for the rest of its segment, and the
    normaliser knows how many segments will follow; without one and with spread "end" the credit is
    causal.

    Args:
        prefix_scores: of a reward model trained on segments, in nats; column 0 is the prompt alone
            and is not read, column t + 1 ends with response token t.
        segment_ids: as `segments` makes them.
        response_mask: True on response tokens.
        normaliser: fitted by `fitted_location_normaliser`; None takes rewards as they are.
        spread: "even" is the paper's interpolation; "end" pays the last token of the segment,
            "copy" pays every token the whole.

    Returns:
        Token scores in nats (without a unit if normalised). With "even" and "end" the tokens of a
        segment sum to its reward, a row to the sum over its segments.

    Raises:
        ConfigError: `spread` is none of the three.
        ShapeError: prefix scores, ids and mask do not fit each other.
        DataError: the segments do not tile the responses.

    Source: Yin et al. 2025, arXiv 2501.02790, segment-level reward, location-aware normalisers and
    within-segment interpolation. Their code clamps token rewards to [-10, 10] after the spread and
    can put a penalty in place of the rewards of unfinished or long responses. Here neither is part
    of the credit: `train-policy` has them as `credit.judge.clamp` and `sampling.truncated:
    replace`. The deviation has a floor.

    >>> import torch
    >>> mask, ids = torch.tensor([[True, True, True]]), torch.tensor([[0, 0, 1]])
    >>> segment_credit(torch.tensor([[9.0, 1.0, 3.0, 5.0]]), ids, mask)
    tensor([[1.5000, 1.5000, 5.0000]])
    """
    require_tiling(segment_ids, response_mask)
    rewards, is_segment = segment_end_scores(prefix_scores, segment_ids)
    if normaliser is not None:
        rewards = location_normalised(rewards, is_segment, normaliser)
    return spread_over_segments(rewards, segment_ids, how=spread).float()


def utterance_credit(
    utterance_scores: Float[Tensor, "batch segments"],
    segment_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    spread: Spreading = "copy",
) -> Float[Tensor, "batch time"]:
    """The advantage of each utterance of a dialogue, on all of its tokens.

        r_t = A(s_k, u_k) = Q(s_k, u_k) − V(s_k) for t ∈ u_k

    Conserves: no. Causal: no. Bounded: by utterance scores. Needs: utterance scores and segments.

    These are advantages: weigh the policy gradient with them as they are. As rewards, to be summed
    from each token on, take spread "end": within an utterance that gives every token the same
    advantage, and what later utterances add has mean zero given the dialogue so far.

    Args:
        utterance_scores: of an utterance-level critic, in nats.
        segment_ids: one id for each utterance of the row that the policy spoke.
        response_mask: True on tokens that the policy spoke.
        spread: as in `spread_over_segments`.

    Returns:
        Token scores in nats. With "end" a row sums to the scores of its utterances.

    Raises:
        ConfigError: `spread` is none of the three.
        ShapeError: scores, ids and mask do not fit each other.
        DataError: the utterances do not tile the responses.

    Source: Zhou et al. 2024, arXiv 2402.19446, the token-level actor of ArCHer. In their code each
    utterance is a sample of its own and the smaller of two critics' values is taken, for Q and V
    alike; the critics are the caller's here.

    >>> import torch
    >>> mask, ids = torch.tensor([[True, True, False, True]]), torch.tensor([[0, 0, -1, 1]])
    >>> utterance_credit(torch.tensor([[2.0, -1.0]]), ids, mask)
    tensor([[ 2.,  2.,  0., -1.]])
    """
    require_tiling(segment_ids, response_mask)
    return spread_over_segments(utterance_scores, segment_ids, how=spread).float()


def span_end_scores(
    span_scores: Sequence[Sequence[float]],
    span_ends: Sequence[Sequence[int]],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """The scores of one model's spans, each at the last token of its span.

    Args:
        span_scores: for each response the score of each of its spans, as many as there are.
        span_ends: likewise the column of the last token of each span. Spans that end at the same
            token add up.
        response_mask: True on response tokens.

    Returns:
        Scores for `fine_grained_credit`; each row sums to the scores of its spans.

    Raises:
        ShapeError: scores, ends and responses differ in number, or a span ends outside the mask,
            where its score would be lost.

    >>> span_end_scores([[0.5, -1.0]], [[1, 2]], torch.tensor([[True, True, True]]))
    tensor([[ 0.0000,  0.5000, -1.0000]])
    """
    counts = [len(span_scores), len(span_ends), len(response_mask)]
    if len(set(counts)) > 1 or list(map(len, span_scores)) != list(map(len, span_ends)):
        raise ShapeError(
            f"span_scores of {counts[0]} responses, span_ends of {counts[1]} and {counts[2]} rows "
            "of response_mask; expected one end for every score of every response"
        )
    rows = torch.tensor([row for row, ends in enumerate(span_ends) for _ in ends]).long()
    columns = torch.tensor([end for ends in span_ends for end in ends]).long()
    inside = (columns >= 0) & (columns < response_mask.shape[-1])
    inside &= response_mask.cpu()[rows, columns.where(inside, 0)]
    if not bool(inside.all()):
        lost = [
            (int(row), int(end)) for row, end in zip(rows[~inside], columns[~inside], strict=True)
        ]
        raise ShapeError(
            f"spans end at (row, column) {lost[:5]}; expected the last token of a span to be a "
            "response token that counts"
        )
    values = torch.tensor([score for scores in span_scores for score in scores])
    scores = torch.zeros(response_mask.shape)
    return scores.index_put_((rows, columns), values.float(), accumulate=True).to(
        response_mask.device
    )


def fine_grained_credit(
    span_scores: Float[Tensor, "models batch time"],
    model_weights: Float[Tensor, "models"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """What several reward models say about spans of their own, weighted, at the ends of the spans.

        r_t = Σ_m w_m Σ_j 1[t = e_{m,j}] · R_m(x, y, s_{m,j})

    One model may judge pieces of sentences, the next whole sentences, a third the whole response.
    A model that reads beyond the span that it scores makes the credit depend on later tokens.

    Conserves: no. Causal: yes. Bounded: no. Needs: span scores and weights.

    Args:
        span_scores: of each model, the score of a span at the last token of the span and zero
            elsewhere, as `span_end_scores` gives them.
        model_weights: w, one per model.
        response_mask: True on response tokens.

    Returns:
        Token scores; each row sums to the weighted scores of its spans. A model whose scores are
        all of one sign pays for more spans, or against them, and so for length.

    Raises:
        ShapeError: scores, weights and mask do not fit each other.

    Source: Wu et al. 2023, arXiv 2306.01693 (Fine-Grained RLHF). Their code finds the
    ends of sentences in the decoded text and maps them to tokens; here the ends are given.

    >>> pieces = torch.tensor([[0.3, 0.0, -0.3, 0.0]])
    >>> whole = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    >>> scores, weights = torch.stack([pieces, whole]), torch.tensor([1.0, 0.5])
    >>> fine_grained_credit(scores, weights, torch.ones(1, 4).bool())
    tensor([[ 0.3000,  0.0000, -0.3000,  1.0000]])
    """
    if span_scores.shape != (*model_weights.shape, *response_mask.shape):
        raise ShapeError(
            f"span_scores have shape {tuple(span_scores.shape)}, model_weights "
            f"{tuple(model_weights.shape)} and response_mask {tuple(response_mask.shape)}; "
            "expected (models, batch, time), (models) and (batch, time)"
        )
    scores = span_scores.float().masked_fill(~response_mask, 0.0)
    return (model_weights.float()[:, None, None] * scores).sum(0)


def step_score_credit(
    step_scores: Float[Tensor, "batch steps"],
    segment_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """The score of each step on the last token of the step.

        r_t = Σ_k 1[t = e_k] · R_k

    Conserves: no. Causal: yes. Bounded: by the largest step score. Needs: step scores and segments.

    Scores of correctness summed over steps pay for more steps, and policies learn to repeat
    themselves: give `clipped_step_scores` or `delta_step_scores` of them, or both. A score that
    depends on later steps, as those of `delta_step_scores` do, makes the credit depend on them.

    Args:
        step_scores: column k is about the tokens whose segment id is k; columns of steps that a
            response does not have are not read.
        segment_ids: the step of each token, -1 on tokens that are in none.
        response_mask: True on response tokens. A step whose last tokens are masked is paid at the
            last one that is not, and a step without any other token nowhere.

    Returns:
        Token scores; each row sums to the scores of its steps. Zero but at the ends of steps.

    Raises:
        ShapeError: scores, ids and mask do not fit each other, or a response has more steps than
            scores.

    Source: Gao et al. 2024, arXiv 2410.15115, the process reward; the model that scores steps is
    that of Lightman et al. 2023, arXiv 2305.20050.

    >>> ids = torch.tensor([[0, 0, 1, 1]])
    >>> step_score_credit(torch.tensor([[0.9, 0.2]]), ids, ids >= 0)
    tensor([[0.0000, 0.9000, 0.0000, 0.2000]])
    """
    if segment_ids.shape != response_mask.shape or len(step_scores) != len(segment_ids):
        raise ShapeError(
            f"step_scores have shape {tuple(step_scores.shape)}, segment_ids "
            f"{tuple(segment_ids.shape)} and response_mask {tuple(response_mask.shape)}; expected "
            "the same (batch, time) for the last two, and one row of scores per response"
        )
    return spread_over_segments(
        step_scores.float(), segment_ids.masked_fill(~response_mask, -1), how="end"
    )


def clipped_step_scores(
    step_scores: Float[Tensor, "batch steps"], step_mask: Bool[Tensor, "batch steps"], *, eta: float
) -> Float[Tensor, "batch steps"]:
    """Step scores below a threshold as penalties, the others as zero (Clip).

        R'_k = min(R_k − η, 0)

    Args:
        step_scores: for example a probability of correctness.
        step_mask: True on steps that are there.
        eta: the threshold; so low that most steps get 0.

    Returns:
        Scores that are never positive, so that no step is worth adding; zero off the mask.

    Source: Gao et al. 2024, arXiv 2410.15115, the Clip mechanism.

    >>> clipped_step_scores(torch.tensor([[0.9, 0.2]]), torch.tensor([[True, True]]), eta=0.5)
    tensor([[ 0.0000, -0.3000]])
    """
    scores = step_scores.float().masked_fill(~step_mask, 0.0)
    return (scores - eta).clamp(max=0.0).masked_fill(~step_mask, 0.0)


def delta_step_scores(
    step_scores: Float[Tensor, "batch steps"], step_mask: Bool[Tensor, "batch steps"]
) -> Float[Tensor, "batch steps"]:
    """What each step scores above the next one (Delta).

        R'_k = R_k − R_{k+1} for k < K − 1,   R'_{K−1} = R_{K−1},   R'_K = 0

    The last step gets nothing here: it is paid for success, which is added to these scores. Clip
    and then Delta gives both bounds.

    Args:
        step_scores: for example a probability of correctness, or `clipped_step_scores` of it.
        step_mask: True on steps that are there.

    Returns:
        Scores that telescope: from step k on they sum to the score of step k, and to 0 from the
        last step on; zero off the mask. The score of a step depends on the next step, so credit
        made of them is not causal.

    Source: Gao et al. 2024, arXiv 2410.15115, the Delta mechanism. The equation could not be read;
    the cases at the end are those of descriptions of the paper's figure and text.

    >>> delta_step_scores(torch.tensor([[0.7, 0.2, 0.4, 0.8]]), torch.ones(1, 4).bool())
    tensor([[ 0.5000, -0.2000,  0.4000,  0.0000]])
    """
    steps = step_scores.shape[-1]
    columns = torch.arange(steps, device=step_scores.device)
    is_last = columns == last_true_index(step_mask)[:, None]
    scores = step_scores.float().masked_fill(~step_mask | is_last, 0.0)
    # Column of the next step that is there; `steps`, a column of zeros, where there is none.
    places = torch.where(step_mask, columns, steps)
    places = torch.cat([places, places.new_full((len(places), 1), steps)], dim=-1)
    following = places.flip(-1).cummin(-1).values.flip(-1)[:, 1:]
    padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=-1)
    return (scores - padded.gather(-1, following)).masked_fill(~step_mask, 0.0)
