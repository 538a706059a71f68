"""How far a mean over documents would move if other documents had been drawn."""

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError


def mean_interval(
    values: Float[Tensor, "documents"],
    *,
    resamples: int = 1000,
    coverage: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over documents.

    Documents are drawn with replacement, as many as there are, and the mean taken, again and again.
    It says nothing of other reward models or other annotators.

    Args:
        values: one per document; NaN where it is not defined, left out.
        resamples: how often.
        coverage: share of the means that lie inside, between 0 and 1.
        seed: of the draws; two sets of values of the same length are given the same ones.

    Returns:
        Low and high end; NaN if there is no value.

    Raises:
        ConfigError: `resamples` is not positive, or `coverage` not between 0 and 1.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3.

    >>> mean_interval(torch.tensor([0.5, 0.5, float("nan")]))
    (0.5, 0.5)
    """
    if resamples < 1 or not 0 < coverage < 1:
        raise ConfigError(
            f"resamples is {resamples} and coverage {coverage}; expected at least one resample and "
            "a coverage between 0 and 1"
        )
    defined = values[~values.isnan()].double().cpu()
    if not len(defined):
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(defined), (resamples, len(defined)), generator=generator)
    ends = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=torch.float64)
    low, high = defined[drawn].mean(-1).quantile(ends).tolist()
    return low, high
