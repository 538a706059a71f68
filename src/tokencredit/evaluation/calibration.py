"""Whether a reward model means what it says: predicted against observed, and how they differ.

A reliability curve is a list of rows, one per bin that is not empty: `predicted` and `observed`,
both means over the bin, its ends `low` and `high`, and the `count` of judgements in it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor

from tokencredit.errors import ConfigError, DataError

Curve = list[dict[str, float | int]]


def pair_reliability_curve(
    chosen_scores: Float[Tensor, "pairs"],
    rejected_scores: Float[Tensor, "pairs"],
    *,
    bins: int = 10,
) -> Curve:
    """How sure the model is of its choice between two responses, and how often it is right.

        predicted = σ(|R_w − R_l|)

    Args:
        chosen_scores: of the preferred responses, in nats.
        rejected_scores: of the others, in nats.
        bins: of equal width between 1/2 and 1.

    Returns:
        Rows as the module says; `observed` is the share of pairs in which the preferred response
        scores higher, a tie counting half.

    Raises:
        DataError: there are no pairs, or a score is NaN.
        ConfigError: `bins` is not positive.

    >>> pair_reliability_curve(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), bins=1)
    [{'low': 0.5, 'high': 1.0, 'predicted': 0.8807970285415649, 'observed': 0.5, 'count': 2}]
    """
    lead = chosen_scores.float() - rejected_scores.float()
    right = (lead > 0).float() + 0.5 * (lead == 0).float()
    return reliability_curve(lead.abs().sigmoid(), right, bins=bins, low=0.5)


def label_reliability_curve(
    scores: Float[Tensor, "responses"], labels: Num[Tensor, "responses"], *, bins: int = 10
) -> Curve:
    """The probability that scores give to a good response, and how many are good.

        predicted = σ(R)

    Args:
        scores: log-odds, in nats.
        labels: 1 good, 0 bad.
        bins: of equal width between 0 and 1.

    Returns:
        Rows as the module says; `observed` is the share of good responses.

    Raises:
        DataError: there are no responses, or a score is NaN.
        ConfigError: `bins` is not positive.

    >>> label_reliability_curve(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]), bins=2)
    [{'low': 0.5, 'high': 1.0, 'predicted': 0.5, 'observed': 0.5, 'count': 2}]
    """
    return reliability_curve(scores.float().sigmoid(), labels.float(), bins=bins)


def rating_reliability_curve(
    scores: Float[Tensor, "responses"], ratings: Num[Tensor, "responses"], *, bins: int = 10
) -> Curve:
    """The rating that scores predict, and the mean rating that was given.

    Args:
        scores: predicted ratings.
        ratings: in the same unit.
        bins: holding as many responses each as can be, by rising score.

    Returns:
        Rows as the module says; `low` and `high` are the least and highest score in a bin.

    Raises:
        DataError: there are no responses, or a score is NaN.
        ConfigError: `bins` is not positive.

    >>> rating_reliability_curve(torch.tensor([4.0, 1.0]), torch.tensor([5.0, 1.0]), bins=1)
    [{'low': 1.0, 'high': 4.0, 'predicted': 2.5, 'observed': 3.0, 'count': 2}]
    """
    _require_some(scores, bins)
    parts = scores.argsort(stable=True).tensor_split(min(bins, len(scores)))
    ends = [(float(scores[part[0]]), float(scores[part[-1]])) for part in parts]
    return [
        _row(low, high, scores[part], ratings[part])
        for part, (low, high) in zip(parts, ends, strict=True)
    ]


def reliability_curve(
    probabilities: Float[Tensor, "judgements"],
    outcomes: Num[Tensor, "judgements"],
    *,
    bins: int = 10,
    low: float = 0.0,
) -> Curve:
    """Probabilities against what came true, in bins of equal width.

    Args:
        probabilities: between `low` and 1.
        outcomes: 1 for what came true, 0 for what did not, or between.
        bins: between `low` and 1; a probability on a border belongs to the bin above it.
        low: the least probability that there can be.

    Returns:
        Rows as the module says.

    Raises:
        DataError: there are no judgements, or a probability is NaN.
        ConfigError: `bins` is not positive.

    Source: DeGroot and Fienberg 1983; bins of equal width as in Guo et al. 2017, arXiv 1706.04599.

    >>> rows = reliability_curve(torch.tensor([0.1, 0.3, 0.9]), torch.tensor([0, 1, 1]), bins=2)
    >>> [(row["observed"], row["count"]) for row in rows]
    [(0.5, 2), (1.0, 1)]
    """
    _require_some(probabilities, bins)
    ends = torch.linspace(low, 1.0, bins + 1, dtype=torch.float64)
    inside = torch.bucketize(probabilities.double(), ends[1:-1], right=True)
    return [
        _row(float(ends[index]), float(ends[index + 1]), probabilities[found], outcomes[found])
        for index in range(bins)
        if bool((found := inside == index).any())
    ]


def expected_calibration_error(curve: Sequence[dict[str, float | int]]) -> float:
    """Mean distance between predicted and observed, over judgements.

        Σ_b n_b / n · |predicted_b − observed_b|

    It depends on the number of bins, and is above 0 for a perfect model on few data.

    Args:
        curve: rows of a reliability curve.

    Raises:
        DataError: the curve is empty.

    Source: Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, equation 3.

    >>> expected_calibration_error([{"predicted": 0.9, "observed": 0.65, "count": 4}])
    0.25
    """
    if not curve:
        raise DataError("the reliability curve has no rows; expected at least one bin")
    apart = sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in curve)
    return apart / sum(row["count"] for row in curve)


def _row(low: float, high: float, predicted: Tensor, observed: Tensor) -> dict[str, float | int]:
    return {
        "low": low,
        "high": high,
        "predicted": float(predicted.double().mean()),
        "observed": float(observed.double().mean()),
        "count": len(predicted),
    }


def _require_some(predicted: Tensor, bins: int) -> None:
    if bins < 1:
        raise ConfigError(f"bins is {bins}; expected at least one")
    if not len(predicted) or bool(predicted.isnan().any()):
        raise DataError(
            f"{len(predicted)} scores, {int(predicted.isnan().sum())} of them NaN; expected at "
            "least one, and none of them NaN"
        )
