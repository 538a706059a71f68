"""Scores brought to a common scale and bounded: everything before they are combined and spread."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.aggregation.references import (
    log_win_probabilities,
    reference_quantiles,
    win_margins,
    win_probabilities,
)
from tokencredit.batch import ResponseScores
from tokencredit.errors import ConfigError
from tokencredit.names import named


@dataclass(frozen=True)
class ScoreSettings:
    """What is done to the score of a reward model before it is spread.

    In this order: `ceiling`, `length_price`, `normalization`, `clip`, `transform`.
    """

    normalization: Literal["none", "running", "scale", "reference"] = field(
        default="none", metadata={"was": "score_normalization"}
    )
    """`running` subtracts the mean of all scores so far and divides by their standard deviation;
    `scale` only divides; `reference` takes mean and deviation from responses of the reference,
    drawn before the first step."""
    clip: float | None = field(default=None, metadata={"was": "score_clip"})
    """Largest absolute sequence score, in nats, after normalisation; None for none."""
    ceiling: float | None = None
    """Highest score that is believed, in nats as the reward model gives them; higher ones count as
    this one. None for no ceiling."""
    length_price: float = 0.0
    """What each response token costs, in nats as the reward model gives them."""
    transform: str = "none"
    """What replaces the score: `par`, how probably the response is better than one of the
    reference; `lsc`, the log-sigmoid of its lead over a good response of the reference; `nash`, how
    much more probably than not it beats an opponent between policy and reference; `none` keeps
    it."""
    slope: float = 1.0
    """For `par` and `nash`: steepness of the probability, per nat."""
    quantile: float = 0.85
    """For `lsc`: share of the reference's responses that are worse than a good one."""

    def __post_init__(self) -> None:
        named("score.transform", self.transform, SCORE_TRANSFORMS)
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; expected a positive number of nats")
        if not (self.slope > 0 and 0 < self.quantile < 1):
            raise ConfigError(
                f"slope is {self.slope} and quantile {self.quantile}; expected a positive slope "
                "and a quantile between 0 and 1"
            )
        if self.ceiling is not None and self.ceiling != self.ceiling:
            raise ConfigError("ceiling is NaN; expected a number of nats")
        if not 0 <= self.length_price < float("inf"):
            raise ConfigError(
                f"length_price is {self.length_price}; expected a finite number, 0 or more"
            )

    @property
    def reference_responses(self) -> int:
        """How many responses of the reference to each prompt it needs."""
        return SCORE_TRANSFORMS[self.transform].references


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of all scores seen so far.

    Source: Chan, Golub and LeVeque 1979, the parallel update of sums of squares.

    >>> import torch
    >>> moments = RunningMoments().updated(torch.tensor([1.0, 3.0])).updated(torch.tensor([5.0]))
    >>> moments.mean, round(moments.std, 4)
    (3.0, 1.633)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def updated(self, scores: Float[Tensor, "batch"]) -> "RunningMoments":
        """The moments with these scores counted in."""
        seen, fresh = self.count, scores.numel()
        if fresh == 0:
            return self
        mean = float(scores.double().mean())
        shift = mean - self.mean
        count = seen + fresh
        return RunningMoments(
            count,
            self.mean + shift * fresh / count,
            self.squares
            + float((scores.double() - mean).square().sum())
            + shift**2 * seen * fresh / count,
        )

    @property
    def std(self) -> float:
        """Population standard deviation, in nats; 1 while nothing varies."""
        variance = self.squares / self.count if self.count else 0.0
        return variance**0.5 if variance > 0 else 1.0


@dataclass(frozen=True)
class ReferenceScores:
    """What a reward model says of the reference's responses to the prompt of each row.

    Attributes:
        scores: as it gave them, in nats; NaN for what could not be scored.
        lengths: response tokens of each.
    """

    scores: Float[Tensor, "batch references"]
    lengths: Float[Tensor, "batch references"]


@dataclass(frozen=True)
class ScoreTransform:
    """One way to bound scores by those of the reference.

    Attributes:
        transformed: from scores, those of the reference and the settings to bounded scores.
        references: how many responses of the reference to each prompt it needs.
        text: what it is, with its source, in one line.
        against_mixture: whether these are responses of an opponent between the reference and the
            policy as it is, drawn in every step.
    """

    transformed: Callable[[Tensor, Tensor, ScoreSettings], Tensor]
    references: int
    text: str
    against_mixture: bool = False


SCORE_TRANSFORMS: dict[str, ScoreTransform] = {
    "none": ScoreTransform(lambda scores, *_: scores, 0, "the score as it is"),
    "par": ScoreTransform(
        lambda scores, references, settings: win_probabilities(
            scores, references, slope=settings.slope
        ),
        1,
        "how probably it is better than a response of the reference (PAR, arXiv 2502.18770)",
    ),
    "lsc": ScoreTransform(
        lambda scores, references, settings: log_win_probabilities(
            scores, reference_quantiles(references, quantile=settings.quantile)
        ),
        2,
        "log-sigmoid of what it is above a good one of these (LSC, arXiv 2402.00742)",
    ),
    "nash": ScoreTransform(
        lambda scores, opponents, settings: win_margins(scores, opponents, slope=settings.slope),
        1,
        "how much more probably than not it beats a mixture of policy and reference (Nash-MD, "
        "arXiv 2312.00886)",
        against_mixture=True,
    ),
}
"""Rows by the names that `score.transform` takes."""


def normalised_scores(
    scores: Float[Tensor, "*axes"],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    clip: float | None = None,
) -> Float[Tensor, "*axes"]:
    """Scores centred, scaled and then clipped, before they are spread over tokens.

    s' = clip((s − μ) / σ, ±c)

    Apply the same call to sequence scores and prefix scores: their differences then telescope to
    the transformed score, and a clipped potential is still a potential.

    Args:
        scores: sequence or prefix scores in nats.
        mean: subtracted.
        std: divided by; positive.
        clip: largest absolute value left; None leaves all.

    Raises:
        ConfigError: `std` or `clip` is not positive.

    >>> import torch
    >>> normalised_scores(torch.tensor([1.0, 9.0]), mean=1.0, std=2.0, clip=3.0)
    tensor([0., 3.])
    """
    if std <= 0 or (clip is not None and clip <= 0):
        raise ConfigError(f"std is {std} and clip {clip}; expected positive numbers")
    normal = (scores - mean) / std
    return normal if clip is None else normal.clamp(-clip, clip)


def priced_scores(
    scores: Float[Tensor, "*axes"],
    lengths: Float[Tensor, "*axes"],
    *,
    ceiling: float | None = None,
    length_price: float = 0.0,
) -> Float[Tensor, "*axes"]:
    """Scores up to a ceiling, less the price of the tokens that they are scores of.

    s' = min(s, c) − p · tokens

    Apply the same call to prefix scores, with the tokens of each prefix: it depends on the prefix
    alone, so a potential stays one.

    Args:
        scores: sequence or prefix scores in nats, as the reward model gave them.
        lengths: response tokens of each text.
        ceiling: largest score that is believed; None believes all.
        length_price: of a token, in nats.

    Source: both stand in the code of Fu et al. 2025, arXiv 2502.18770, before their transforms.

    >>> import torch
    >>> priced_scores(torch.tensor([9.0]), torch.tensor([4.0]), ceiling=3.0, length_price=0.5)
    tensor([1.])
    """
    believed = scores if ceiling is None else scores.clamp(max=ceiling)
    return believed if not length_price else believed - length_price * lengths


@dataclass(frozen=True)
class TransformedScores:
    """Scores of responses before and after their transform."""

    raw: ResponseScores
    """Scores as the reward model gave them: what is reported."""
    transformed: ResponseScores
    """Scores on the common scale: what is spread over tokens. The attention is that of `raw`."""


def counted_scores(
    scores: ResponseScores, settings: ScoreSettings, response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch"]:
    """Sequence scores as moments count them: after `ceiling` and `length_price`.

    Args:
        scores: of responses, as the reward model gave them.
        settings: what is done to them.
        response_mask: True on response tokens.
    """
    return _priced(scores.sequence_scores, response_mask.sum(-1).float(), settings)


def transformed_scores(
    scores: ResponseScores,
    settings: ScoreSettings,
    moments: RunningMoments,
    *,
    response_mask: Bool[Tensor, "batch time"] | None = None,
    references: ReferenceScores | None = None,
) -> TransformedScores:
    """Sequence scores and prefix scores under one transform, with what they were before.

    Both are changed number by number and in the same way, so that differences of transformed
    prefix scores sum to the transformed score above that of the prompt. What stands after the end
    of a response is changed too, and means nothing.

    Args:
        scores: of responses, in nats.
        settings: which transform.
        moments: read where scores are normalised. Count the scores of this batch in before
            (`moments.updated(counted_scores(...))`), and those of prefixes never.
        response_mask: True on response tokens; needed where these have a price.
        references: what the same reward model says of the reference's responses to the prompt of
            each row; needed where scores are compared with these.

    Raises:
        ConfigError: the moments hold no scores, and scores are to be normalised; or what else is
            needed is not there.
        DataError: no response of the reference to one of the prompts could be scored.

    >>> import torch
    >>> scores = ResponseScores(torch.tensor([5.0]), torch.tensor([[1.0, 5.0]]), None)
    >>> both = transformed_scores(scores, ScoreSettings(clip=3.0), RunningMoments())
    >>> both.transformed.sequence_scores, both.transformed.prefix_scores
    (tensor([3.]), tensor([[1., 3.]]))
    """
    mean, std = _scale(settings, moments)

    def normal(numbers: Tensor, lengths: Tensor | None) -> Tensor:
        priced = _priced(numbers, lengths, settings)
        return normalised_scores(priced, mean=mean, std=std, clip=settings.clip)

    compared = None
    if settings.reference_responses:
        if references is None:
            raise ConfigError(
                f"score.transform is {settings.transform!r}, which compares with responses of the "
                "reference policy; expected their scores, which train-policy alone has, or 'none'"
            )
        compared = normal(references.scores, references.lengths)

    def changed(numbers: Tensor, lengths: Tensor | None) -> Tensor:
        scaled = normal(numbers, lengths)
        if compared is None:
            return scaled
        return SCORE_TRANSFORMS[settings.transform].transformed(scaled, compared, settings)

    whole = so_far = None
    if response_mask is not None:
        tokens = response_mask.float().cumsum(-1)
        whole, so_far = tokens[:, -1], torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=-1)
    prefixes, positions = scores.prefix_scores, scores.position_scores
    transformed = ResponseScores(
        changed(scores.sequence_scores, whole),
        None if prefixes is None else changed(prefixes, so_far),
        scores.attention,
        None if positions is None else changed(positions, so_far),
        # On the scale of the score; what else a transform does is left to the rest of the score.
        quoted_scores=None if scores.quoted_scores is None else scores.quoted_scores / std,
    )
    return TransformedScores(scores, transformed)


def _priced(numbers: Tensor, lengths: Tensor | None, settings: ScoreSettings) -> Tensor:
    if lengths is None:
        if settings.length_price:
            raise ConfigError(
                f"length_price is {settings.length_price} and no response mask is given; expected "
                "one, by which tokens are counted"
            )
        lengths = torch.zeros_like(numbers)
    return priced_scores(
        numbers, lengths, ceiling=settings.ceiling, length_price=settings.length_price
    )


def _scale(settings: ScoreSettings, moments: RunningMoments) -> tuple[float, float]:
    """What is subtracted from scores and what they are divided by."""
    if settings.normalization == "none":
        return 0.0, 1.0
    if moments.count == 0:
        raise ConfigError(
            f"normalization is {settings.normalization!r} and no score has been seen; expected "
            "moments that count the scores of this batch"
        )
    return 0.0 if settings.normalization == "scale" else moments.mean, moments.std
