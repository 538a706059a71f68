"""Whether token scores say what the scorer does: the score when the tokens they name come or go.

Agreement with people (`tokencredit.evaluation.agreement`) asks whether token scores point where a
reader would; faithfulness asks the scorer itself. It is given as a function of the tokens that are
kept (`tokencredit.kept_tokens`). Compare every number with that of random token scores and of the
Shapley values: how much a score can fall is a property of the scorer and the text.

Numbers are per response, in nats, NaN for a response without tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.evaluation.agreement import Direction
from tokencredit.evaluation.spans import highest_tokens
from tokencredit.kept_tokens import ScoresOfKept, kept_scores

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FEW_TOKENS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The fractions of DeYoung et al. 2020."""


def deletion_curve(
    scores_of_kept: ScoresOfKept,
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    fractions: tuple[float, ...] = FRACTIONS,
    direction: Direction = "high",
) -> Float[Tensor, "batch fractions"]:
    """Score of each response without a fraction of its tokens, the highest-scored gone first.

        R(x, y ∖ top_{⌈f T⌉})

    The faster it falls, the better the token scores know what the score stands on.

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        token_scores: in any unit; only their order counts. Of equal ones the earlier token goes
            first.
        response_mask: True on response tokens.
        fractions: of the tokens of each response, in [0, 1].
        direction: "low" takes the lowest first and the curve rises, "magnitude" those farthest
            from zero.

    Returns:
        Scores in nats, one column per fraction: that of 0 is the score of the response.

    Raises:
        ConfigError: there is no fraction, or one outside [0, 1].
        ShapeError: there is not one score per response and subset.
        NumericError: a score is NaN or infinite.

    Source: Petsiuk et al. 2018, arXiv 1806.07421, with tokens for pixels; before
    them Samek et al. 2015, arXiv 1509.06321.

    >>> values, mask = torch.tensor([[1.0, 4.0, 2.0]]), torch.ones(1, 3).bool()
    >>> def total(keep):
    ...     return (keep * values[:, None]).sum(-1)
    >>> deletion_curve(total, values, mask, fractions=(0.0, 0.3, 1.0))
    tensor([[7., 3., 0.]])
    """
    top = _highest_fractions(token_scores, response_mask, fractions, direction)
    return _curve(scores_of_kept, response_mask[:, None] & ~top, response_mask)


def insertion_curve(
    scores_of_kept: ScoresOfKept,
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    fractions: tuple[float, ...] = FRACTIONS,
    direction: Direction = "high",
) -> Float[Tensor, "batch fractions"]:
    """Score of each response of which only a fraction of the tokens is there, the highest first.

        R(x, top_{⌈f T⌉})

    The faster it rises, the better the token scores know what is enough for the score.

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        token_scores: in any unit; only their order counts. Of equal ones the earlier token comes
            first.
        response_mask: True on response tokens.
        fractions: of the tokens of each response, in [0, 1].
        direction: as in `deletion_curve`.

    Returns:
        Scores in nats, one column per fraction: that of 1 is the score of the response.

    Raises:
        ConfigError: there is no fraction, or one outside [0, 1].
        ShapeError: there is not one score per response and subset.
        NumericError: a score is NaN or infinite.

    Source: Petsiuk et al. 2018, arXiv 1806.07421, with tokens for pixels.

    >>> values, mask = torch.tensor([[1.0, 4.0, 2.0]]), torch.ones(1, 3).bool()
    >>> def total(keep):
    ...     return (keep * values[:, None]).sum(-1)
    >>> insertion_curve(total, values, mask, fractions=(0.0, 0.3, 1.0))
    tensor([[0., 4., 7.]])
    """
    top = _highest_fractions(token_scores, response_mask, fractions, direction)
    return _curve(scores_of_kept, top, response_mask)


def area_under_curve(
    curve: Float[Tensor, "batch fractions"], *, fractions: tuple[float, ...] = FRACTIONS
) -> Float[Tensor, "batch"]:
    """Area under a deletion or insertion curve, by trapezia.

    Args:
        curve: in nats, one column per fraction.
        fractions: those that the curve was made with, rising.

    Returns:
        Areas in nats; over fractions from 0 to 1, the mean score on the way. Of token scores that
        are faithful small for deletion, large for insertion.

    Raises:
        ShapeError: there is not one column per fraction.
        ConfigError: the fractions do not rise.

    >>> area_under_curve(torch.tensor([[4.0, 1.0, 0.0]]), fractions=(0.0, 0.5, 1.0))
    tensor([1.5000])
    """
    if curve.shape[1] != len(fractions):
        raise ShapeError(
            f"{curve.shape[1]} columns of the curve for {len(fractions)} fractions; expected one "
            "each"
        )
    along = torch.tensor(fractions, dtype=curve.dtype, device=curve.device)
    if not bool((along.diff() > 0).all()):
        raise ConfigError(f"fractions are {fractions}; expected them rising, as along a curve")
    return torch.trapezoid(curve, along)


def comprehensiveness(
    scores_of_kept: ScoresOfKept,
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    fractions: tuple[float, ...] = FEW_TOKENS,
    direction: Direction = "high",
) -> Float[Tensor, "batch"]:
    """What the score loses without its highest-scored tokens, averaged over several fractions.

        1/|F| · Σ_{f ∈ F} (R(x, y) − R(x, y ∖ top_{⌈f T⌉}))

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        token_scores: in any unit; only their order counts.
        response_mask: True on response tokens.
        fractions: of the tokens of each response, in [0, 1].
        direction: as in `deletion_curve`; with "low", faithful scores make it negative.

    Returns:
        Differences in nats, large where the token scores are faithful.

    Raises:
        ConfigError: there is no fraction, or one outside [0, 1].
        ShapeError: there is not one score per response and subset.
        NumericError: a score is NaN or infinite.

    Source: DeYoung et al. 2020, arXiv 1911.03429, equation 1, averaged over fractions. They take
    the probability of the predicted class, here it is the score; as in their code, no fraction of
    zero is averaged in.

    >>> values, mask = torch.tensor([[1.0, 4.0, 2.0]]), torch.ones(1, 3).bool()
    >>> def total(keep):
    ...     return (keep * values[:, None]).sum(-1)
    >>> comprehensiveness(total, values, mask, fractions=(0.3, 0.6))
    tensor([5.])
    """
    _require_shares(fractions)
    curve = deletion_curve(
        scores_of_kept,
        token_scores,
        response_mask,
        fractions=(0.0, *fractions),
        direction=direction,
    )
    return (curve[:, :1] - curve[:, 1:]).mean(-1)


def sufficiency(
    scores_of_kept: ScoresOfKept,
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    fractions: tuple[float, ...] = FEW_TOKENS,
    direction: Direction = "high",
) -> Float[Tensor, "batch"]:
    """What the highest-scored tokens alone lack of the score, averaged over several fractions.

        1/|F| · Σ_{f ∈ F} (R(x, y) − R(x, top_{⌈f T⌉}))

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        token_scores: in any unit; only their order counts.
        response_mask: True on response tokens.
        fractions: of the tokens of each response, in [0, 1].
        direction: as in `deletion_curve`; with "low", faithful scores make it large.

    Returns:
        Differences in nats, small where the token scores are faithful: below zero where the
        tokens that they name score higher alone.

    Raises:
        ConfigError: there is no fraction, or one outside [0, 1].
        ShapeError: there is not one score per response and subset.
        NumericError: a score is NaN or infinite.

    Source: DeYoung et al. 2020, arXiv 1911.03429, equation 2; departures as in
    `comprehensiveness`.

    >>> values, mask = torch.tensor([[1.0, 4.0, 2.0]]), torch.ones(1, 3).bool()
    >>> def total(keep):
    ...     return (keep * values[:, None]).sum(-1)
    >>> sufficiency(total, values, mask, fractions=(0.3, 0.6))
    tensor([2.])
    """
    _require_shares(fractions)
    curve = insertion_curve(
        scores_of_kept,
        token_scores,
        response_mask,
        fractions=(*fractions, 1.0),
        direction=direction,
    )
    return (curve[:, -1:] - curve[:, :-1]).mean(-1)


def _require_shares(fractions: tuple[float, ...]) -> None:
    if not fractions or not all(0.0 <= fraction <= 1.0 for fraction in fractions):
        raise ConfigError(f"fractions are {fractions}; expected one or more numbers from 0 to 1")


def _highest_fractions(
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    fractions: tuple[float, ...],
    direction: Direction,
) -> Bool[Tensor, "batch fractions time"]:
    """The highest-scored tokens of each response, as many as each fraction says, rounded up."""
    _require_shares(fractions)
    lengths = response_mask.sum(-1).double()
    # Less a little: 0.55 * 100 comes out above 55.
    counts = [(lengths * fraction - 1e-9).ceil().clamp(min=0).long() for fraction in fractions]
    chosen = [
        highest_tokens(token_scores, response_mask, count, direction=direction) for count in counts
    ]
    return torch.stack(chosen, dim=1)


def _curve(
    scores_of_kept: ScoresOfKept,
    keep: Bool[Tensor, "batch fractions time"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch fractions"]:
    scores = kept_scores(scores_of_kept, keep).float()
    return scores.masked_fill(~response_mask.any(-1, keepdim=True), torch.nan)
