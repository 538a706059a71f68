"""Scores of steps: on the last token of each step, clipped, or as differences between steps.

Steps are columns here, `(batch, steps)`; `segment_ids` say which tokens they are made of.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.aggregation import spread_over_segments
from tokencredit.errors import ShapeError
from tokencredit.masking import last_true_index


def step_score_credit(
    step_scores: Float[Tensor, "batch steps"],
    segment_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    r"""The score of each step on the last token of the step.

    .. math:: r_t = \sum_k 1[t = e_k] \, R_k

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
    r"""Step scores below a threshold as penalties, the others as zero (Clip).

    .. math:: R'_k = \min(R_k - \eta, 0)

    Args:
        step_scores: a probability of correctness, say.
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
    r"""What each step scores above the next one (Delta).

    .. math:: R'_k = R_k - R_{k+1} \text{ for } k < K - 1, \quad R'_{K-1} = R_{K-1}, \quad R'_K = 0

    The last step gets nothing here: it is paid for success, which is added to these scores. Clip
    and then Delta gives both bounds.

    Args:
        step_scores: a probability of correctness, say, or `clipped_step_scores` of it.
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
