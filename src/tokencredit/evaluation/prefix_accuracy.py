"""How well a reward model judges responses of which it has seen only the beginning."""

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from tokencredit.errors import DataError, ShapeError
from tokencredit.masking import left_packed

FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)


def scores_at_fractions(
    prefix_scores: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    fractions: tuple[float, ...] = FRACTIONS,
) -> Float[Tensor, "batch fractions"]:
    """Score of each response when a fraction of its tokens has been seen.

        R(y^{≤⌈f T⌉})

    Args:
        prefix_scores: in nats; column t ends with response token t. Where the mask is False they
            may hold anything.
        mask: True on response tokens.
        fractions: of the response's own length, in (0, 1].

    Returns:
        Scores in nats, one column per fraction; that of 1.0 is the score of the whole.

    Raises:
        DataError: a response has no tokens.

    >>> scores_at_fractions(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool))
    tensor([[1., 2., 2., 3., 3.]])
    """
    packed, _ = left_packed(prefix_scores, mask)
    return packed.gather(-1, tokens_at_fractions(mask, fractions=fractions))


def tokens_at_fractions(
    mask: Bool[Tensor, "batch time"], *, fractions: tuple[float, ...] = FRACTIONS
) -> Int[Tensor, "batch fractions"]:
    """Which token of its response is the last that has been seen, ⌈f T⌉ − 1.

    Args:
        mask: as in `scores_at_fractions`.
        fractions: as there.

    Raises:
        DataError: a response has no tokens.

    >>> tokens_at_fractions(torch.ones(1, 8, dtype=torch.bool))
    tensor([[1, 3, 4, 6, 7]])
    """
    lengths = mask.sum(-1)
    if not bool((lengths > 0).all()):
        row = int((lengths == 0).nonzero()[0])
        raise DataError(f"response {row} has no tokens; expected at least one in each: drop it")
    # In float64 and less a little: 0.55 * 100 comes out above 55.
    seen = lengths[:, None].double() * torch.tensor(fractions, dtype=torch.float64).to(mask.device)
    return seen.sub(1e-9).ceil().long().clamp(min=1) - 1


def pair_accuracy_by_fraction(
    chosen_scores: Float[Tensor, "pairs fractions"],
    rejected_scores: Float[Tensor, "pairs fractions"],
    *,
    fractions: tuple[float, ...] = FRACTIONS,
) -> list[dict[str, float | int]]:
    """Share of pairs whose preferred response scores higher; a tie counts half.

    Args:
        chosen_scores: of the preferred responses at each fraction, in nats.
        rejected_scores: of the others, in nats.
        fractions: of the responses that have been seen, one per column.

    Returns:
        One row per fraction: `fraction`, `accuracy` in [0, 1], `count` of pairs.

    Raises:
        ShapeError: there is not one column per fraction.
        DataError: there are no pairs.

    >>> pair_accuracy_by_fraction(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1), fractions=(1.0,))
    [{'fraction': 1.0, 'accuracy': 0.75, 'count': 2}]
    """
    return _rows(chosen_scores - rejected_scores, fractions)


def label_accuracy_by_fraction(
    scores: Float[Tensor, "responses fractions"],
    labels: Num[Tensor, "responses"],
    *,
    fractions: tuple[float, ...] = FRACTIONS,
) -> list[dict[str, float | int]]:
    """Share of responses whose score is positive where the label is 1 and negative where it is 0.

    Args:
        scores: at each fraction, in nats.
        labels: 1 good, 0 bad.
        fractions: of the responses that have been seen, one per column.

    Returns:
        One row per fraction: `fraction`, `accuracy` in [0, 1], `count` of responses.

    Raises:
        ShapeError: there is not one column per fraction.
        DataError: there are no responses.

    >>> scores, labels = torch.tensor([[2.0], [1.0]]), torch.tensor([1, 0])
    >>> label_accuracy_by_fraction(scores, labels, fractions=(1.0,))
    [{'fraction': 1.0, 'accuracy': 0.5, 'count': 2}]
    """
    return _rows(torch.where(labels[:, None] > 0, scores, -scores), fractions)


def rating_accuracy_by_fraction(
    scores: Float[Tensor, "responses fractions"],
    ratings: Num[Tensor, "responses"],
    *,
    fractions: tuple[float, ...] = FRACTIONS,
) -> list[dict[str, float | int]]:
    """Share of pairs of responses with different ratings that the scores order as the ratings do.

    A tie of scores counts half.

    Args:
        scores: at each fraction, in any unit.
        ratings: more for better ones.
        fractions: of the responses that have been seen, one per column.

    Returns:
        One row per fraction: `fraction`, `accuracy` in [0, 1], `count` of responses.

    Raises:
        ShapeError: there is not one column per fraction.
        DataError: there are no two responses with different ratings.

    Source: the concordance index of Harrell et al. 1982.

    >>> scores, ratings = torch.tensor([[2.0], [1.0], [3.0]]), torch.tensor([8, 3, 3])
    >>> rating_accuracy_by_fraction(scores, ratings, fractions=(1.0,))
    [{'fraction': 1.0, 'accuracy': 0.5, 'count': 3}]
    """
    _require_columns(scores, fractions)
    right = torch.zeros(scores.shape[1], dtype=torch.float64)
    pairs = 0
    for score, rating in zip(scores, ratings, strict=True):
        worse = ratings < rating
        lead = score - scores[worse]
        right += ((lead > 0).double() + 0.5 * (lead == 0).double()).sum(0).cpu()
        pairs += int(worse.sum())
    if not pairs:
        raise DataError(
            f"{len(ratings)} responses, all of them rated alike; expected at least two ratings: "
            "hold more of them out"
        )
    return [
        {"fraction": fraction, "accuracy": float(accuracy), "count": len(ratings)}
        for fraction, accuracy in zip(fractions, right / pairs, strict=True)
    ]


def _rows(lead: Tensor, fractions: tuple[float, ...]) -> list[dict[str, float | int]]:
    """Accuracy by column, where a positive lead is right."""
    _require_columns(lead, fractions)
    if not len(lead):
        raise DataError("no responses to score; expected at least one: hold more of them out")
    right = (lead > 0).double() + 0.5 * (lead == 0).double()
    return [
        {"fraction": fraction, "accuracy": float(accuracy), "count": len(lead)}
        for fraction, accuracy in zip(fractions, right.mean(0), strict=True)
    ]


def _require_columns(scores: Tensor, fractions: tuple[float, ...]) -> None:
    if scores.shape[1] != len(fractions):
        raise ShapeError(
            f"{scores.shape[1]} columns of scores for {len(fractions)} fractions; expected one each"
        )
