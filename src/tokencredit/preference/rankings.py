"""Preferences from what is known of answers: factors in order of importance, ratings, aspects."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, DataError


def ranked_preferences(
    factors: Float[Tensor, "pairs 2 factors"], thresholds: Float[Tensor, "factors"]
) -> Int[Tensor, "pairs"]:
    """Which answer of each pair is better by factors in the order of their importance (HERON).

    The first factor in which the two differ by more than its threshold decides.

        sign(z_1k − z_2k)   of the first k with |z_1k − z_2k| > δ_k

    Args:
        factors: z, of both answers, the most important factor first, more for better ones.
        thresholds: δ, at least 0; a multiple of the standard deviation of each factor, for example.

    Returns:
        1 where the first answer is better, −1 where the second is, 0 where nothing decides. With
        thresholds above 0 the relation is not transitive: it may be that none of three is best.

    Raises:
        ConfigError: a threshold is negative or NaN.
        DataError: a factor is NaN.

    Source: Bukharin et al. 2023, arXiv 2309.02632 (HERON), and its code; of the pairs that nothing
    decides they learn nothing.

    >>> factors = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[1.0, 0.0], [0.0, 9.0]]])
    >>> ranked_preferences(factors, torch.tensor([0.5, 0.0]))
    tensor([-1,  1])
    """
    if not bool((thresholds >= 0).all()):
        raise ConfigError(f"thresholds are {thresholds.tolist()}; expected numbers of at least 0")
    if bool(factors.isnan().any()):
        raise DataError(
            f"{int(factors.isnan().any(-1).any(-1).sum())} pairs have a factor that is NaN; "
            "expected a number for every factor: drop these pairs"
        )
    gaps = factors[:, 0] - factors[:, 1]
    signs = gaps.sign() * (gaps.abs() > thresholds)
    decides = (signs != 0) & ((signs != 0).cumsum(-1) == 1)
    return (signs * decides).sum(-1).long()


def pairs_from_ratings(
    ratings: Float[Tensor, "answers"],
    *,
    errors: Float[Tensor, "answers"] | None = None,
    z: float = 3.0,
    best_share: float = 1.0,
) -> tuple[Int[Tensor, "pairs 2"], Float[Tensor, "pairs"]]:
    """Pairs of answers to one prompt whose ratings differ by more than their errors allow.

        (i, j)   where   g_i − g_j > z √(e_i² + e_j²)

    Args:
        ratings: g, mean ratings, more for better answers; NaN for an answer without one.
        errors: e, the standard error of each; None for 0.
        z: how many standard errors of the difference there must be.
        best_share: only answers among this share of the best ones are preferred, at least one.

    Returns:
        Indices of the preferred and of the other answer, by the first and then by the second; and
        the difference of their ratings.

    Raises:
        ConfigError: z or an error is negative, or the share outside (0, 1].

    Source: Zhang et al. 2024, arXiv 2406.10522, whose code takes z 3 and prefers the upper half.

    >>> pairs_from_ratings(torch.tensor([2.0, 1.9, 1.0]), errors=torch.full((3,), 0.1))
    (tensor([[0, 2],
            [1, 2]]), tensor([1.0000, 0.9000]))
    """
    error = torch.zeros_like(ratings) if errors is None else errors
    if not (z >= 0 and 0 < best_share <= 1 and not bool((error < 0).any())):
        raise ConfigError(
            f"z is {z}, best_share {best_share} and {int((error < 0).sum())} errors are below 0; "
            "expected z and errors of at least 0, and a share above 0 and up to 1"
        )
    gaps = ratings[:, None] - ratings[None]
    apart = gaps > z * (error[:, None].square() + error[None].square()).sqrt()
    order = ratings.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    best = torch.zeros_like(ratings, dtype=torch.bool)
    best[order[: max(1, int(best_share * len(ratings) + 1e-9))]] = True
    pairs = (apart & best[:, None]).nonzero()
    return pairs, gaps[pairs[:, 0], pairs[:, 1]]


def aspect_ratings(annotations: Mapping[str, Mapping[str, object]]) -> dict[str, float]:
    """The rating of each aspect of an answer of UltraFeedback, NaN where it is none.

    The overall score of these data is not asked: many of its tens should be ones.

    Args:
        annotations: by aspect; each with a `Rating`, a number or the text of one, or `N/A`.

    Source: Cui et al. 2023, arXiv 2310.01377, the layout of its data set.

    >>> aspect_ratings({"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "N/A"}})
    {'honesty': 4.0, 'helpfulness': nan}
    """
    return {aspect: _number(said.get("Rating")) for aspect, said in annotations.items()}


def aspect_mean(annotations: Mapping[str, Mapping[str, object]]) -> float:
    """The mean of those aspects of an answer that have a number; NaN where none has.

    Args:
        annotations: as in `aspect_ratings`.

    >>> aspect_mean({"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "N/A"}})
    4.0
    """
    known = [rating for rating in aspect_ratings(annotations).values() if not math.isnan(rating)]
    return sum(known) / len(known) if known else math.nan


def _number(said: object) -> float:
    try:
        return float(said) if isinstance(said, int | float | str) else math.nan
    except ValueError:
        return math.nan
