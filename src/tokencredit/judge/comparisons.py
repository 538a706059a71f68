"""What verdicts on two responses say once the order in which they were shown is taken out."""

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ShapeError


def both_orders(
    first: Float[Tensor, "*rows"], second: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """A comparison that was judged in both orders, without what the place alone gives.

        q = ½ (q(y, y₀) − q(y₀, y))

    A bias that adds the same to whatever stands first cancels exactly. So it must be taken in
    logits: a mean of probabilities keeps a part of it.

    Args:
        first: q(y, y₀), how much the response shown first is preferred where that is y.
        second: q(y₀, y), how much the response shown first is preferred where that is y₀.

    Returns:
        How much y is preferred to y₀, in the same unit; NaN where one of the two is.

    Source: Pairwise-RL, Xu et al. 2025, arXiv 2504.04950, judges both orders; Rubric-ARM, arXiv
    2602.01511, takes the mean of two verdicts in {0, 1}: (1 + q) / 2 for verdicts of 1 and −1.

    >>> both_orders(torch.tensor([2.9]), torch.tensor([0.9]))
    tensor([1.])
    """
    return (first - second) / 2


def order_consistency(
    first: Float[Tensor, "rows"], second: Float[Tensor, "rows"]
) -> Float[Tensor, ""]:
    """The share of comparisons in which both orders prefer the same response.

    Args:
        first: as in `both_orders`.
        second: as in `both_orders`. Rows where one is NaN do not count; 0 agrees with nothing.

    Returns:
        From 0 to 1; NaN where no row counts.

    >>> order_consistency(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 1.0]))
    tensor(0.5000)
    """
    there = first.isfinite() & second.isfinite()
    return (first[there] * second[there] < 0).float().mean()


def group_wins(margins: Float[Tensor, "group others"]) -> Float[Tensor, "group"]:
    """How much each response of a group is preferred to the others, on average.

        r_i = (1/G) Σ_j d_ij

    Where comparisons are missing, the mean over those that are there stands for them.

    Args:
        margins: d, how much row i is preferred to column j; NaN where nobody knows. What stands
            on the diagonal is not read.

    Returns:
        In the unit of the margins; NaN for a response of which no comparison is known.

    Raises:
        ShapeError: there are not as many rows as columns.

    Source: Think-RM, Hong et al. 2025, arXiv 2505.16265, numerator of its advantage. In its code a
    comparison that cannot be read counts as a draw.

    >>> group_wins(torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))
    tensor([ 1., -1.])
    """
    known = _known(margins)
    counts = known.sum(-1)
    means = margins.where(known, torch.zeros_like(margins)).sum(-1) / counts
    return means * (len(margins) - 1) / len(margins)


def group_win_advantages(
    margins: Float[Tensor, "group others"], *, eps: float = 1e-6
) -> Float[Tensor, "group"]:
    """Advantages of the responses of a group from their comparisons alone.

        A_i = (1/G) Σ_j d_ij / √( Σ_ij d_ij² / (2 G (G − 1)) + ε )

    Of margins that are differences of scores these are (r_i − mean r) / std r, as GRPO has them. A
    sum of squares over fewer comparisons, where some are missing, is scaled up to all of them.

    Args:
        margins: as in `group_wins`.
        eps: ε.

    Returns:
        Without unit; NaN for a response of which no comparison is known.

    Raises:
        ShapeError: there are not as many rows as columns.

    Source: Think-RM, arXiv 2505.16265; its code has ε = 1e-6.

    >>> scores = torch.tensor([1.0, 2.0, 6.0])
    >>> group_win_advantages(scores[:, None] - scores)
    tensor([-0.7559, -0.3780,  1.1339])
    """
    known = _known(margins)
    squares = margins.where(known, torch.zeros_like(margins)).square().sum()
    # The mean over ordered pairs is twice the variance of the scores behind the margins.
    variance = squares / known.sum() / 2
    return group_wins(margins) / (variance + eps).sqrt()


def _known(margins: Float[Tensor, "group others"]) -> Tensor:
    if margins.shape[0] != margins.shape[1]:
        raise ShapeError(f"margins have shape {tuple(margins.shape)}; expected (group, group)")
    off_diagonal = ~torch.eye(len(margins), dtype=torch.bool, device=margins.device)
    return margins.isfinite() & off_diagonal
