"""What each of several reward models has in their combined score, for credit that sums to it.

A combination that grows in step with its scores, C(a s) = a C(s), is a sum of its scores, each
times its own slope (Euler): C(s) = Σ_m s_m ∂C/∂s_m. With these slopes at the finished response the
token scores of single models add up to token scores of the combined one, whatever credit each model
has. They are known only when the response is finished, so that such credit looks ahead.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.aggregation.combining import (
    require_coefficient,
    require_models,
    require_nominal_share,
)


def worst_case_slopes(
    scores: Float[Tensor, "*batch models"],
) -> Float[Tensor, "*batch models"]:
    """Slopes of the least score of several: 1 for the model that gives it, 0 for all others.

    Args:
        scores: in nats; of two that are equally low the first has the slope.

    Returns:
        Float32.

    Raises:
        ShapeError: there is no model.

    Source: Euler's theorem on homogeneous functions, for `worst_case_scores`; ours.

    >>> worst_case_slopes(torch.tensor([[1.0, -2.0, 3.0]]))
    tensor([[0., 1., 0.]])
    """
    require_models(scores)
    slopes = torch.zeros_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
    return slopes.scatter(-1, scores.argmin(-1, keepdim=True), 1.0)


def mean_less_deviation_slopes(
    scores: Float[Tensor, "*batch models"], *, deviation_coef: float = 1.0
) -> Float[Tensor, "*batch models"]:
    """Slopes of the mean of scores less a multiple of their standard deviation.

        w_m = 1/M − β (s_m − s̄) / (M deviation)

    They may be negative: what is far above the mean takes off more by its deviation than it adds.

    Args:
        scores: in nats.
        deviation_coef: β.

    Returns:
        Float32; 1/M each where all models agree.

    Raises:
        ShapeError: there is no model.
        ConfigError: the coefficient is negative or not finite.

    Source: Euler's theorem on homogeneous functions, for `mean_less_deviation_scores`; ours.

    >>> mean_less_deviation_slopes(torch.tensor([[1.0, 3.0]]), deviation_coef=0.5)
    tensor([[0.7500, 0.2500]])
    """
    require_coefficient("deviation_coef", deviation_coef)
    require_models(scores)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    above = scores - scores.mean(-1, keepdim=True)
    deviation = above.square().mean(-1, keepdim=True).sqrt()
    standing = torch.where(deviation > 0, above / deviation.clamp(min=1e-30), 0.0)
    return (1 - deviation_coef * standing) / scores.shape[-1]


def nominal_and_worst_slopes(
    scores: Float[Tensor, "*batch models"], *, nominal_share: float = 0.5
) -> Float[Tensor, "*batch models"]:
    """Slopes of what one trusted model says, mixed with the least score that any model gives.

    Args:
        scores: in nats; those of the trusted model come first.
        nominal_share: of the trusted model.

    Returns:
        Float32.

    Raises:
        ShapeError: there is no model.
        ConfigError: `nominal_share` lies outside [0, 1].

    Source: Euler's theorem on homogeneous functions, for `nominal_and_worst_scores`; ours.

    >>> nominal_and_worst_slopes(torch.tensor([[1.0, 3.0, -1.0]]), nominal_share=0.75)
    tensor([[0.7500, 0.0000, 0.2500]])
    """
    require_nominal_share(nominal_share)
    slopes = (1 - nominal_share) * worst_case_slopes(scores)
    slopes[..., 0] += nominal_share
    return slopes
