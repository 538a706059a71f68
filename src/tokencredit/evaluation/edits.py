"""What a score does when one attribute of a text is edited and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import DataError
from tokencredit.evaluation.bootstrap import mean_interval
from tokencredit.evaluation.pair_scores import wilson_interval


@dataclass(frozen=True)
class AttributeEffect:
    """How much a score heeds one attribute.

    Attributes:
        attribute: its name.
        edits: how many there are.
        change: mean of the score of the edited text less that of the original, in nats.
        low: end of its bootstrap interval.
        high: the other end.
        falls: share of the edits that lower the score; one that changes nothing counts half.
        falls_low: end of its Wilson interval.
        falls_high: the other end.
        compared: edits of answers that stand in a pair.
        flips: share of these that turn which answer of the pair scores higher, the counterfactuals;
            the others are semifactuals. NaN where none stands in a pair.
        flips_low: end of its Wilson interval.
        flips_high: the other end.
    """

    attribute: str
    edits: int
    change: float
    low: float
    high: float
    falls: float
    falls_low: float
    falls_high: float
    compared: int
    flips: float
    flips_low: float
    flips_high: float


def attribute_effects(
    attributes: Sequence[str],
    original: Float[Tensor, "edits"],
    edited: Float[Tensor, "edits"],
    *,
    other: Float[Tensor, "edits"] | None = None,
    coverage: float = 0.95,
    resamples: int = 1000,
) -> list[AttributeEffect]:
    """What a score does when one attribute of a text is edited, with intervals.

        Δ_a = mean_i∈a (R(x, y'_i) − R(x, y_i))

    Args:
        attributes: of each edit, what was edited.
        original: scores R(x, y), in nats.
        edited: scores R(x, y') of the edited texts.
        other: scores of the other answer of the pair in which the edited one stands; NaN where it
            stands in none. A verdict turns where the sign of the lead over it does, and a tie on
            either side counts as turned.
        coverage: of the intervals.
        resamples: of the bootstrap over edits.

    Returns:
        Of each attribute, those of the largest change first.

    Raises:
        DataError: there are no edits, or not as many scores.

    Source: Jiang et al. 2024, arXiv 2411.16502, read in reviews: they edit either answer of a pair
    by a language model and report how often its preference turns. Intervals are ours.

    >>> found = attribute_effects(["tone"], torch.tensor([2.0]), torch.tensor([0.5]))
    >>> found[0].change, found[0].falls
    (-1.5, 1.0)
    """
    if not attributes or not len(attributes) == len(original) == len(edited):
        raise DataError(
            f"there are {len(attributes)} edits with {len(original)} and {len(edited)} scores; "
            "expected at least one edit, and two scores of each"
        )
    changes = edited.double() - original.double()
    effects = []
    for name in dict.fromkeys(attributes):
        rows = torch.tensor([one == name for one in attributes])
        change = changes[rows]
        low, high = mean_interval(change, coverage=coverage, resamples=resamples)
        falls = float((change < 0).double().sum() + (change == 0).double().sum() / 2)
        turned = torch.zeros(0)
        if other is not None:
            before, after = (
                one.double()[rows] - other.double()[rows] for one in (original, edited)
            )
            known = before.isfinite() & after.isfinite()
            turned = (before[known] * after[known] <= 0).double()
        compared, flips = len(turned), float(turned.sum())
        ends = wilson_interval(flips, compared, confidence=coverage) if compared else (nan, nan)
        effects.append(
            AttributeEffect(
                name,
                len(change),
                float(change.mean()),
                low,
                high,
                falls / len(change),
                *wilson_interval(falls, len(change), confidence=coverage),
                compared,
                flips / compared if compared else nan,
                *ends,
            )
        )
    return sorted(effects, key=lambda one: -abs(one.change))
