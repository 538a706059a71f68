"""Scores brought to a common scale: normalised by running moments, and clipped."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import ResponseScores
from tokencredit.errors import ConfigError


@dataclass(frozen=True)
class ScoreSettings:
    """What is done to the score of a reward model before it is spread."""

    normalization: Literal["none", "running"] = field(
        default="none", metadata={"was": "score_normalization"}
    )
    """`running` subtracts the mean of all scores seen so far and divides by their standard
    deviation."""
    clip: float | None = field(default=None, metadata={"was": "score_clip"})
    """Largest absolute sequence score, in nats, after normalisation; None for none."""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; expected a positive number of nats")


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


@dataclass(frozen=True)
class TransformedScores:
    """Scores of responses before and after their transform."""

    raw: ResponseScores
    """Scores as the reward model gave them: what is reported."""
    transformed: ResponseScores
    """Scores on the common scale: what is spread over tokens. The attention is that of `raw`."""


def transformed_scores(
    scores: ResponseScores, settings: ScoreSettings, moments: RunningMoments
) -> TransformedScores:
    """Sequence scores and prefix scores under one transform, with what they were before.

    Both are changed number by number and in the same way, so that differences of transformed
    prefix scores sum to the transformed score above that of the prompt. What stands after the end
    of a response is changed too, and means nothing.

    Args:
        scores: of responses, in nats.
        settings: which transform.
        moments: read where scores are normalised. Count the scores of this batch in before
            (`moments.updated(scores.sequence_scores)`), and those of prefixes never.

    Raises:
        ConfigError: the moments hold no scores, and scores are to be normalised.

    >>> import torch
    >>> scores = ResponseScores(torch.tensor([5.0]), torch.tensor([[1.0, 5.0]]), None)
    >>> both = transformed_scores(scores, ScoreSettings(clip=3.0), RunningMoments())
    >>> both.transformed.sequence_scores, both.transformed.prefix_scores
    (tensor([3.]), tensor([[1., 3.]]))
    """
    mean, std = 0.0, 1.0
    if settings.normalization == "running":
        if moments.count == 0:
            raise ConfigError(
                "normalization is 'running' and no score has been seen; expected moments that "
                "count the scores of this batch"
            )
        mean, std = moments.mean, moments.std
    normal = partial(normalised_scores, mean=mean, std=std, clip=settings.clip)
    prefixes, positions = scores.prefix_scores, scores.position_scores
    transformed = ResponseScores(
        normal(scores.sequence_scores),
        None if prefixes is None else normal(prefixes),
        scores.attention,
        None if positions is None else normal(positions),
    )
    return TransformedScores(scores, transformed)
