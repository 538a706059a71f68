"""What reward models are trained to lower on answers to one prompt that people put in order."""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from tokencredit.errors import DataError
from tokencredit.masking import masked_row_mean, masked_sum
from tokencredit.reward_model.losses.pairs import held_prefix_scores


def plackett_luce_loss(
    scores: Float[Tensor, "batch answers"],
    ranks: Num[Tensor, "batch answers"],
    mask: Bool[Tensor, "batch answers"],
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of rankings under Plackett-Luce.

        −Σ_i [ R_i − log(e^{R_i} + Σ_{j: rank_j > rank_i} e^{R_j}) ]

    Each answer is drawn from itself and all that are ranked after it. Between answers of the same
    rank nothing is said, so that neither stands in the sum of the other. A partial ranking gives
    all answers after its last place one rank that is greater than the others, or infinity.

    Args:
        scores: of each answer, in nats; where the mask is False they may hold anything, NaN
            included.
        ranks: 1 for the best; any numbers whose order says which is better.
        mask: True on answers that are there.

    Returns:
        Nats per ranking, in float32; `bradley_terry_loss` where there are two answers, 0 where all
        have one rank. Its gradient sums to 0 in every row.

    Raises:
        DataError: the rank of an answer that is there is NaN.

    Source: Plackett 1975; Zhu et al. 2023, arXiv 2301.11270, the K-wise maximum likelihood, which
    has no ties: leaving tied answers out of each other's sum is a choice of ours.

    >>> scores = torch.tensor([[1.0, 0.0, 0.0]])
    >>> plackett_luce_loss(scores, torch.tensor([[1, 2, 2]]), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.5514)
    """
    return _ranking_losses(scores[..., None], ranks, mask)[:, 0].mean()


def prefix_plackett_luce_loss(
    prefix_scores: Float[Tensor, "batch answers time"],
    ranks: Num[Tensor, "batch answers"],
    mask: Bool[Tensor, "batch answers time"],
) -> Float[Tensor, ""]:
    """Plackett-Luce on prefixes of equal length, averaged over lengths and then over rankings.

        1/n · Σ_{t=1..n} PL(R(x, y_1^{≤t}), ..., R(x, y_K^{≤t})),   n = max_i |y_i|

    An answer that has ended keeps its last score against longer ones.

    Args:
        prefix_scores: of each answer, in nats.
        ranks: as in `plackett_luce_loss`.
        mask: True on tokens of answers that are there, which start in column 0.

    Returns:
        Nats per prefix, in float32; `plackett_luce_loss` where every answer is one token long,
        `prefix_bradley_terry_loss` where there are two answers.

    Raises:
        DataError: as in `plackett_luce_loss`.

    Source: as there; on prefixes as Rashid et al. 2024, arXiv 2406.07780, compare pairs.

    >>> scores, mask = torch.tensor([[[0.0, 2.0], [0.0, 9.0]]]), torch.tensor([[[1, 1], [1, 0]]])
    >>> prefix_plackett_luce_loss(scores, torch.tensor([[1, 2]]), mask.bool())
    tensor(0.4100)
    """
    batch, answers, time = prefix_scores.shape
    held = held_prefix_scores(prefix_scores.reshape(-1, time), mask.reshape(-1, time))
    losses = _ranking_losses(held.view(batch, answers, time), ranks, mask.any(-1))
    return masked_row_mean(losses, mask.any(1)).mean()


def _ranking_losses(
    scores: Float[Tensor, "batch answers time"],
    ranks: Num[Tensor, "batch answers"],
    present: Bool[Tensor, "batch answers"],
) -> Float[Tensor, "batch time"]:
    """Negative log-likelihoods of the rankings by the scores of each column."""
    if bool((ranks.isnan() & present).any()):
        raise DataError(
            f"{int((ranks.isnan() & present).sum())} answers have the rank NaN; expected a number "
            "for each, infinity for those after the last place of a partial ranking"
        )
    scores = scores.float().masked_fill(~present[..., None], 0.0)
    behind = ranks[:, :, None] < ranks[:, None, :]
    counts = behind & present[:, :, None] & present[:, None, :]
    others = scores[:, None].masked_fill(~counts[..., None], -torch.inf)
    # Of an answer that has none after it the sum has one term, and its loss is 0.
    sums = torch.cat([scores[:, :, None], others], dim=2).logsumexp(2)
    some = counts.any(2)[..., None].expand_as(sums)
    return masked_sum((sums - scores).transpose(1, 2), some.transpose(1, 2))
