"""Several rewards of the same text combined into one, before credit is given.

Every function takes the scores of one text by several models in its last axis and reduces that
axis. It acts on sequence scores `(batch, models)` and, column by column, on prefix scores
`(batch, time + 1, models)`. Whatever is computed column by column from prefix scores is again a
score of the prefix alone: its differences are causal, and they sum to the combined score of the
response above that of the prompt. Zero scores combine to zero, so padding stays zero; only sums of
log-sigmoids have another number there, which nobody reads.

Combine scores and give credit afterwards. Token scores may be combined in their place only where
the combination is linear: the least of the models' token scores is no credit of the least score.

A weight multiplies the score of its model before anything else. The published formulas have
weights of 1 on scores that were brought to a common scale, model by model (`normalised_scores`):
without it the worst case is the model with the lowest mean.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokencredit.errors import ConfigError, ShapeError


def weighted_sum_scores(
    scores: Float[Tensor, "*batch models"], weights: Float[Tensor, "models"]
) -> Float[Tensor, "*batch"]:
    """Scores multiplied by the weights of their models and added up.

    s = Σ_m w_m s_m

    Combines: linearly. The token scores of the models, weighted and added up in the same way, are
    the token scores of the sum.

    Args:
        scores: in nats.
        weights: of the models; 1 / models each for their mean. They may be negative.

    Returns:
        Float32, in nats.

    Raises:
        ShapeError: there is not one weight per model, or no model.
        ConfigError: a weight is NaN or infinite.

    Source: Wu et al. 2023, arXiv 2306.01693, one weight per reward model; with 1 / models each it
    is the mean of Coste et al. 2024, arXiv 2310.02743.

    >>> weighted_sum_scores(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, -0.5]))
    tensor([-0.5000])
    """
    require_models(scores, weights)
    require_finite_weights(weights.tolist())
    return (_in_float32(scores) * weights.to(scores.device)).sum(-1)


def worst_case_scores(scores: Float[Tensor, "*batch models"]) -> Float[Tensor, "*batch"]:
    """The least score that any model gives (WCO).

    s = min_m s_m

    Combines: elementwise. The minimum is taken prefix by prefix, and may change its model.

    Args:
        scores: in nats, brought to a common scale before.

    Returns:
        Float32, in nats.

    Raises:
        ShapeError: there is no model.

    Source: Coste et al. 2024, arXiv 2310.02743, worst-case optimisation.

    >>> worst_case_scores(torch.tensor([[1.0, 3.0], [2.0, -2.0]]))
    tensor([ 1., -2.])
    """
    require_models(scores)
    return _in_float32(scores).amin(-1)


def mean_less_variance_scores(
    scores: Float[Tensor, "*batch models"], *, variance_coef: float = 0.1
) -> Float[Tensor, "*batch"]:
    """The mean over models, lowered where they disagree (UWO).

    s = s̄ − λ · 1/M Σ_m (s_m − s̄)²

    Combines: elementwise.

    Args:
        scores: in nats, brought to a common scale before.
        variance_coef: λ, per nat.

    Returns:
        Float32, in nats.

    Raises:
        ShapeError: there is no model.
        ConfigError: `variance_coef` is negative, NaN or infinite.

    Source: Coste et al. 2024, arXiv 2310.02743, uncertainty-weighted optimisation. Their best-of-n
    code takes the population variance, as here, and their PPO code the unbiased one, larger by
    M / (M − 1); their settings have λ 0.5 for best-of-n and 0.1 for PPO.

    >>> mean_less_variance_scores(torch.tensor([[1.0, 3.0]]), variance_coef=0.5)
    tensor([1.5000])
    """
    require_coefficient("variance_coef", variance_coef)
    require_models(scores)
    scores = _in_float32(scores)
    return scores.mean(-1) - variance_coef * scores.var(-1, correction=0)


def mean_less_deviation_scores(
    scores: Float[Tensor, "*batch models"], *, deviation_coef: float = 1.0
) -> Float[Tensor, "*batch"]:
    """The mean over models less a multiple of their standard deviation: a lower confidence bound.

    s = s̄ − β √(1/M Σ_m (s_m − s̄)²)

    Combines: elementwise. Unlike the variance it keeps its meaning when all scores are scaled
    alike. Of two models, β = 1 gives the worst case.

    Args:
        scores: in nats, brought to a common scale before.
        deviation_coef: β, a pure number.

    Returns:
        Float32, in nats. Where all models agree the gradient is that of the mean.

    Raises:
        ShapeError: there is no model.
        ConfigError: `deviation_coef` is negative, NaN or infinite.

    Source: Zhang et al. 2024, arXiv 2401.16635, the lower confidence bound. Which deviation they
    take, and their β, could not be read: the population's and 1 are ours.

    >>> mean_less_deviation_scores(torch.tensor([[1.0, 3.0]]), deviation_coef=0.5)
    tensor([1.5000])
    """
    require_coefficient("deviation_coef", deviation_coef)
    require_models(scores)
    scores = _in_float32(scores)
    variance = scores.var(-1, correction=0)
    # The root has no gradient at 0, where all models agree; there nothing is taken off.
    differ = variance > 0
    deviation = torch.where(differ, variance, 1.0).sqrt().masked_fill(~differ, 0.0)
    return scores.mean(-1) - deviation_coef * deviation


def nominal_and_worst_scores(
    scores: Float[Tensor, "*batch models"], *, nominal_share: float = 0.5
) -> Float[Tensor, "*batch"]:
    """What one trusted model says, mixed with the least score that any model gives (BRME).

    s = w s_0 + (1 − w) min_m s_m

    Combines: elementwise.

    Args:
        scores: in nats, brought to a common scale before; those of the trusted, nominal model come
            first.
        nominal_share: w, from 0, the worst case, to 1, the nominal model alone.

    Returns:
        Float32, in nats.

    Raises:
        ShapeError: there is no model.
        ConfigError: `nominal_share` lies outside [0, 1].

    Source: Yan et al. 2024, arXiv 2409.15360, the objective of their policy. Which of their heads
    is the nominal one could not be read; here it is the first.

    >>> nominal_and_worst_scores(torch.tensor([[1.0, 3.0, -1.0]]), nominal_share=0.75)
    tensor([0.5000])
    """
    require_nominal_share(nominal_share)
    require_models(scores)
    scores = _in_float32(scores)
    return nominal_share * scores[..., 0] + (1 - nominal_share) * scores.amin(-1)


def log_sigmoid_sum_scores(scores: Float[Tensor, "*batch models"]) -> Float[Tensor, "*batch"]:
    """The log-probability that a text is good by every model, were they independent (LSC).

    s = Σ_m log σ(s_m)

    Combines: elementwise. Never above 0: what one model finds bad no other makes up for, and what
    is good enough by one earns little more there. Of one model the ranking stays, not the score.

    Args:
        scores: in nats above that of a text which is just good enough; 0 there
            (`log_win_probabilities` subtracts a score of the reference policy).

    Returns:
        Float32, in nats, at most 0.

    Raises:
        ShapeError: there is no model.

    Source: Wang et al. 2024, arXiv 2402.00742, the sum of transformed rewards.

    >>> log_sigmoid_sum_scores(torch.tensor([[0.0, 0.0], [9.0, -9.0]]))
    tensor([-1.3863, -9.0002])
    """
    require_models(scores)
    return logsigmoid(_in_float32(scores)).sum(-1)


def require_nominal_share(value: float) -> None:
    """Raise ConfigError unless this is a share."""
    if not 0 <= value <= 1:
        raise ConfigError(f"nominal_share is {value}; expected a number from 0 to 1")


def require_coefficient(name: str, value: float) -> None:
    """Raise ConfigError unless this is a finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value}; expected a finite number, 0 or more")


def require_finite_weights(weights: Sequence[float]) -> None:
    """Raise ConfigError unless all of these are numbers."""
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"the weights are {list(weights)}; expected finite numbers")


def require_models(scores: Float[Tensor, "*batch models"], weights: Tensor | None = None) -> None:
    """Raise ShapeError unless there is a model, and one weight for each."""
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ShapeError(
            f"scores have shape {tuple(scores.shape)}; expected the scores of at least one model "
            "in the last axis"
        )
    if weights is not None and weights.shape != scores.shape[-1:]:
        raise ShapeError(
            f"weights have shape {tuple(weights.shape)} for scores of shape "
            f"{tuple(scores.shape)}; expected one weight per model, which are the last axis"
        )


def _in_float32(scores: Float[Tensor, "*batch models"]) -> Float[Tensor, "*batch models"]:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
