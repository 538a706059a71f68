"""How much of one objective is to be taken out of others, so that they no longer follow it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.models.heads import debiased

GRID = torch.linspace(0.0, 0.95, 24, dtype=torch.float64)
"""Penalties that are tried, in their order."""

Correlation = Callable[[Float[Tensor, "rows"], Float[Tensor, "rows"]], float]


def objective_penalties(
    scores: Float[Tensor, "rows objectives"],
    *,
    against: int,
    most: float = 0.03,
    correlation: Correlation,
) -> Float[Tensor, "objectives"]:
    """The least penalty of each objective by which it no longer follows another, such as length.

        p_k = min { p : corr(r_k − p r_v, r_v) ≤ c },   p in 0, ..., 0.95;  1 where there is none

    Args:
        scores: by each objective, of the responses of a reference set.
        against: v, the number of the objective that is not to be followed; its own penalty is 1.
        most: c. Correlations below it, negative ones too, are left as they are.
        correlation: of two rows of numbers; Spearman's in the paper. NaN, of scores that are all
            equal, counts as 0.

    Returns:
        Float32, for `debiased`.

    Source: Wang et al. 2024, arXiv 2406.12845 (ArmoRM), and its code, which tries 24 values up to
    0.95 and takes 1 where none is enough.

    >>> scores = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.5, 3.0]])
    >>> pearson = lambda a, b: float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    >>> objective_penalties(scores, against=1, correlation=pearson)
    tensor([0.2478, 1.0000])
    """
    penalties = torch.ones(scores.shape[1])
    other = scores[:, against].double()
    for objective in range(scores.shape[1]):
        if objective == against:
            continue
        own = scores[:, objective].double()
        for penalty in GRID.tolist():
            pair = torch.stack([own, other], dim=-1)
            left = debiased(pair, torch.tensor([penalty, 1.0], dtype=pair.dtype), against=1)[:, 0]
            if not correlation(left, other) > most:
                penalties[objective] = penalty
                break
    return penalties
