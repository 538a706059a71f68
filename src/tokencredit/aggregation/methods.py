"""Every way to combine several rewards by its name: how it acts, and how many models it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.aggregation.combining import (
    log_sigmoid_sum_scores,
    mean_less_deviation_scores,
    mean_less_variance_scores,
    nominal_and_worst_scores,
    require_coefficient,
    require_finite_weights,
    require_models,
    require_nominal_share,
    weighted_sum_scores,
    worst_case_scores,
)
from tokencredit.aggregation.euler import (
    mean_less_deviation_slopes,
    nominal_and_worst_slopes,
    worst_case_slopes,
)
from tokencredit.errors import ConfigError
from tokencredit.names import named


@dataclass(frozen=True)
class CombinationSettings:
    """How the scores of several reward models become one."""

    method: str = "sum"
    """How scores are combined once each is multiplied by its weight: `sum`, `worst-case`,
    `mean-less-variance`, `mean-less-deviation`, `nominal-and-worst` or `log-sigmoid-sum`."""
    variance_coef: float = 0.1
    """For `mean-less-variance`: nats that are subtracted per squared nat of variance."""
    deviation_coef: float = 1.0
    """For `mean-less-deviation`: how many standard deviations are subtracted from the mean."""
    nominal_share: float = 0.5
    """For `nominal-and-worst`: share of the first source; the lowest of all has the rest."""
    credit: Literal["together", "each"] = "together"
    """`together` combines scores, prefix by prefix, before credit is given. `each` gives every
    source its own credit and weighs it by its slope in the combined score, so that token scores sum
    to it (Euler weights)."""

    def __post_init__(self) -> None:
        row = named("combination method", self.method, AGGREGATIONS)
        if self.credit == "each" and row.slopes is None:
            able = ", ".join(name for name, one in AGGREGATIONS.items() if one.slopes is not None)
            raise ConfigError(
                f"combine.credit is 'each' with combine.method {self.method!r}, which does not "
                f"grow in step with its scores; expected one of {able}, or combine.credit "
                "'together'"
            )
        require_coefficient("variance_coef", self.variance_coef)
        require_coefficient("deviation_coef", self.deviation_coef)
        require_nominal_share(self.nominal_share)


Combination = Callable[
    [Float[Tensor, "*batch models"], Float[Tensor, "models"], CombinationSettings],
    Float[Tensor, "*batch"],
]


@dataclass(frozen=True)
class Aggregation:
    """One way to combine scores."""

    combined: Combination
    """From scores, the weights of their models, and the settings to combined scores."""
    acts: Literal["linear", "elementwise"]
    """Elementwise combinations act on each prefix alone, so that combined prefix scores are still
    a potential. Linear ones do so too, and token scores may be combined in their place."""
    models: int
    """How many it needs at least to say anything."""
    text: str
    """What it is, with its source, in one line."""
    slopes: Callable[[Tensor, CombinationSettings], Tensor] | None = None
    """From weighted scores to the slope of each, where these times the scores are the combined
    score; None where they are not."""


AGGREGATIONS: dict[str, Aggregation] = {
    "sum": Aggregation(
        lambda scores, weights, _: weighted_sum_scores(scores, weights),
        acts="linear",
        models=1,
        text="the weighted sum (Fine-Grained RLHF, arXiv 2306.01693)",
        slopes=lambda scores, _: torch.ones_like(scores),
    ),
    "worst-case": Aggregation(
        lambda scores, weights, _: worst_case_scores(scores * weights),
        acts="elementwise",
        models=2,
        text="the least weighted score (WCO, arXiv 2310.02743)",
        slopes=lambda scores, _: worst_case_slopes(scores),
    ),
    "mean-less-variance": Aggregation(
        lambda scores, weights, settings: mean_less_variance_scores(
            scores * weights, variance_coef=settings.variance_coef
        ),
        acts="elementwise",
        models=2,
        text="the mean less a multiple of the variance (UWO, arXiv 2310.02743)",
    ),
    "mean-less-deviation": Aggregation(
        lambda scores, weights, settings: mean_less_deviation_scores(
            scores * weights, deviation_coef=settings.deviation_coef
        ),
        acts="elementwise",
        models=2,
        text="the mean less a multiple of the standard deviation (arXiv 2401.16635)",
        slopes=lambda scores, settings: mean_less_deviation_slopes(
            scores, deviation_coef=settings.deviation_coef
        ),
    ),
    "nominal-and-worst": Aggregation(
        lambda scores, weights, settings: nominal_and_worst_scores(
            scores * weights, nominal_share=settings.nominal_share
        ),
        acts="elementwise",
        models=2,
        text="the first weighted score, mixed with the least (BRME, arXiv 2409.15360)",
        slopes=lambda scores, settings: nominal_and_worst_slopes(
            scores, nominal_share=settings.nominal_share
        ),
    ),
    "log-sigmoid-sum": Aggregation(
        lambda scores, weights, _: log_sigmoid_sum_scores(scores * weights),
        acts="elementwise",
        models=2,
        text="log-sigmoids of the weighted scores, added up (LSC, arXiv 2402.00742)",
    ),
}


def combined_scores(
    scores: Float[Tensor, "*batch models"],
    weights: Float[Tensor, "models"],
    settings: CombinationSettings,
) -> Float[Tensor, "*batch"]:
    """Scores of several models combined by the method that the settings name.

    A model of weight 0 takes no part: its scores are not read, and may be anything.

    Args:
        scores: in nats, each brought to a common scale before. Sequence scores or prefix scores.
        weights: of the models.
        settings: the method and its options.

    Returns:
        Float32, in nats.

    Raises:
        ConfigError: a weight is NaN or infinite, or fewer models carry weight than the method
            needs.
        ShapeError: there is not one weight per model.

    >>> import torch
    >>> scores, settings = torch.tensor([[1.0, 3.0, 9.0]]), CombinationSettings("worst-case")
    >>> combined_scores(scores, torch.tensor([1.0, 0.1, 0.0]), settings)
    tensor([0.3000])
    """
    require_models(scores, weights)
    require_weights(weights.tolist(), settings)
    counts = weights != 0
    weights = weights[counts].to(scores.device)
    return AGGREGATIONS[settings.method].combined(scores[..., counts], weights, settings)


def combining_weights(
    scores: Float[Tensor, "*batch models"],
    weights: Float[Tensor, "models"],
    settings: CombinationSettings,
) -> Float[Tensor, "*batch models"]:
    """What to multiply the token scores of each model by, so that all sum to the combined score.

    Args:
        scores: of whole responses, in nats, each brought to a common scale before.
        weights: of the models, which are part of the result; one of weight 0 has 0.
        settings: the method and its options.

    Returns:
        Float32. Times the scores they sum to `combined_scores`.

    Raises:
        ConfigError, ShapeError: as `combined_scores`; or the combination is none that grows in step
            with its scores.

    >>> import torch
    >>> scores, settings = torch.tensor([[1.0, 3.0, 9.0]]), CombinationSettings("worst-case")
    >>> combining_weights(scores, torch.tensor([1.0, 0.1, 0.0]), settings)
    tensor([[0.0000, 0.1000, 0.0000]])
    """
    require_models(scores, weights)
    require_weights(weights.tolist(), settings)
    slopes = AGGREGATIONS[settings.method].slopes
    if slopes is None:
        raise ConfigError(
            f"combine.method is {settings.method!r}, which does not grow in step with its scores; "
            "expected one that does, worst-case for example"
        )
    counts, weights = weights != 0, weights.to(scores.device)
    found = torch.zeros_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
    own = weights[counts]
    found[..., counts] = slopes(scores[..., counts] * own, settings) * own
    return found


def require_weights(weights: Sequence[float], settings: CombinationSettings) -> None:
    """Raise ConfigError unless these weights are finite and as many as needed are not 0."""
    require_finite_weights(weights)
    least = AGGREGATIONS[settings.method].models
    count = sum(weight != 0 for weight in weights)
    if count < least:
        raise ConfigError(
            f"{count} of {len(weights)} rewards carry weight; expected at least {least} for the "
            f"combination method {settings.method!r}"
        )
