"""Losses of reward models with a score for each of several objectives, of which some are rated.

A rating that is NaN is missing: its score costs nothing and has no gradient.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.masking import masked_row_mean


def multi_objective_regression_loss(
    scores: Float[Tensor, "batch objectives"], ratings: Float[Tensor, "batch objectives"]
) -> Float[Tensor, ""]:
    """Squared error of every score against the rating of its objective, where there is one.

        1/|K| · Σ_{k ∈ K} (R^k(x, y) − g^k)²,   K the objectives that are rated

    Each response counts once, however many of its objectives are rated, so that the loss of a batch
    is the mean of the losses of its rows.

    Args:
        scores: one of each objective, in units of its ratings.
        ratings: NaN where one is missing.

    Returns:
        Squared units per response, in float32; 0 of a row without ratings; `regression_loss` with
        one objective that is always rated.

    Source: Wang et al. 2023, arXiv 2311.09528 (HelpSteer), whose regression model has an output per
    attribute, and stage 1 of Wang et al. 2024, arXiv 2406.12845 (ArmoRM), which skips missing
    ratings. The code of NeMo-Aligner takes the mean over all ratings of a micro-batch, in which a
    row counts more the more of it is rated, and the loss depends on how a batch is cut; the two
    are the same where all rows have as many ratings.

    >>> import torch
    >>> ratings = torch.tensor([[1.0, 3.0], [2.0, torch.nan]])
    >>> multi_objective_regression_loss(torch.zeros(2, 2), ratings)
    tensor(4.5000)
    """
    every_row = ratings.new_ones(len(ratings), 1).bool()
    return prefix_multi_objective_regression_loss(scores[:, None], ratings, every_row)


def prefix_multi_objective_regression_loss(
    prefix_scores: Float[Tensor, "batch time objectives"],
    ratings: Float[Tensor, "batch objectives"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Squared error of every prefix against the ratings of the whole, objective by objective.

        1/|K| · Σ_{k ∈ K} 1/T · Σ_t (R^k(x, y^{≤t}) − g^k)²,   K the objectives that are rated

    Its optimum is, of each objective, the mean rating of the responses that begin so.

    Args:
        prefix_scores: one of each objective, in units of its ratings; where the mask is False or
            the rating is missing they may hold anything, NaN included.
        ratings: of each response; NaN where one is missing.
        mask: True on response tokens.

    Returns:
        Squared units per prefix, in float32; 0 of a row without ratings or tokens;
        `prefix_regression_loss` with one objective that is always rated,
        `multi_objective_regression_loss` where every response is one token long.

    Source: ours, from HelpSteer as in `multi_objective_regression_loss` and the prefixes of Mudgal
    et al. 2023, arXiv 2310.17022 (CD-FUDGE).

    >>> import torch
    >>> scores, mask = torch.tensor([[[0.0, 9.0], [3.0, 9.0]]]), torch.tensor([[True, True]])
    >>> prefix_multi_objective_regression_loss(scores, torch.tensor([[1.0, torch.nan]]), mask)
    tensor(2.5000)
    """
    rated = ~ratings.isnan()
    counted = mask[:, :, None] & rated[:, None, :]  # batch, time, objectives
    scores = prefix_scores.float().masked_fill(~counted, 0.0)
    errors = scores - ratings.float().masked_fill(~rated, 0.0)[:, None, :]
    of_objectives = masked_row_mean(errors.square().mT, counted.mT)  # batch, objectives
    return masked_row_mean(of_objectives, rated).mean()
