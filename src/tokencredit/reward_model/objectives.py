"""Every objective of reward models by its name: its rows, where scores are read, its loss.

An objective has a name and positions, the places of a response that are scored in training. A new
one is a function of `Judgements` and a row in `OBJECTIVES`; `train-reward-model` then offers it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.masking import masked_row_mean
from tokencredit.names import require_named
from tokencredit.reward_model.losses.length_weighted import (
    length_weighted_classification_loss,
    length_weighted_regression_loss,
)
from tokencredit.reward_model.losses.pairs import (
    bradley_terry_losses,
    centering_loss,
    held_prefix_scores,
    prefix_bradley_terry_loss,
    prefix_bradley_terry_losses,
    segment_bradley_terry_loss,
)
from tokencredit.reward_model.losses.rankings import prefix_plackett_luce_loss
from tokencredit.reward_model.losses.several_ratings import prefix_multi_objective_regression_loss
from tokencredit.reward_model.losses.targets import (
    prefix_classification_loss,
    prefix_regression_loss,
)
from tokencredit.reward_model.losses.values import q_classification_loss, q_value_loss

RowKind = Literal["pairs", "labels", "ratings", "several-ratings", "rankings"]
"""What a row of data says: which answer is better, 0 or 1, a number, one of each objective, or the
order of several answers."""

Reading = Literal["last", "every", "segment-ends"]
"""The tokens where scores are read."""


@dataclass(frozen=True)
class LossSettings:
    """Options of the losses of reward models."""

    centering: float = field(default=0.0, metadata={"was": "center_rewards_coefficient"})
    """For pairs: price of the squared sum of both scores, per squared nat, which keeps scores
    around 0."""
    label_smoothing: float = 0.0
    """Share of pairs that are taken to be labelled the wrong way round."""
    bootstrap_lambda: float = 0.95
    """For `bootstrapped` positions: 0 learns from the next score alone (CD-Q as published), 1 from
    the label or rating alone, which is `every`."""
    prefix_weights: Literal["equal", "length"] = "equal"
    """For labels and ratings at `every` position, how much each prefix of a response counts: all
    the same (`equal`), or in proportion to its tokens (`length`, RAD)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; expected a share from 0 to below 0.5, "
                "at which nothing is learnt"
            )
        if not 0 <= self.bootstrap_lambda <= 1:
            raise ConfigError(
                f"bootstrap_lambda is {self.bootstrap_lambda}; expected a number from 0 to 1"
            )


@dataclass(frozen=True)
class Judgements:
    """Scores of a batch and what was said of its rows.

    Attributes:
        scores: at the places that are read, from column 0 on; of pairs first those of all preferred
            responses, then those of all others; of rankings those of one after another. Models over
            the vocabulary may say more than one number of a place, those of several objectives say
            one of each.
        mask: True on scores that are there.
        targets: of each pair its margin in nats, of each response its label, rating or ratings, NaN
            where one is missing; of each ranking the ranks of its answers, NaN where there are no
            more of them.
        strengths: of each row, the weight of a preference.
        preferred: of each pair the probability that its preference is right; None for 1.
    """

    scores: Float[Tensor, "rows time *rest"]
    mask: Bool[Tensor, "rows time"]
    targets: Float[Tensor, "judgements *objectives"]
    strengths: Float[Tensor, "judgements"]
    preferred: Float[Tensor, "judgements"] | None = None

    @property
    def sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores of preferred and of other responses, then their masks, as losses take them."""
        chosen, rejected = self.scores.chunk(2)
        chosen_mask, rejected_mask = self.mask.chunk(2)
        return chosen, rejected, chosen_mask, rejected_mask


Loss = Callable[[Judgements, LossSettings], Float[Tensor, ""]]
PairLosses = Callable[[Judgements, LossSettings], Float[Tensor, "pairs"]]


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    Attributes:
        rows: what it learns from.
        reading: where scores are read. All but `last` need a causal model.
        loss: of a batch.
        options: names of the settings that the loss reads.
        beginnings: whether every pair of beginnings of equal length is an example of its own.
        pair_losses: what each pair of a batch costs, without strength and centring, for losses that
            are mixed pair by pair; None where rows are no pairs.
    """

    rows: RowKind
    reading: Reading
    loss: Loss
    options: tuple[str, ...] = ()
    beginnings: bool = False
    pair_losses: PairLosses | None = None


def prefix_pair_losses(judgements: Judgements, settings: LossSettings) -> Float[Tensor, "pairs"]:
    """Bradley-Terry on prefixes of equal length, pair by pair."""
    return prefix_bradley_terry_losses(
        *judgements.sides,
        margin=judgements.targets,
        preferred=_preferred(judgements, settings),
    )


def segment_pair_losses(judgements: Judgements, settings: LossSettings) -> Float[Tensor, "pairs"]:
    """Bradley-Terry on means over ends of segments, pair by pair."""
    chosen, rejected, chosen_ends, rejected_ends = judgements.sides
    return bradley_terry_losses(
        masked_row_mean(chosen.float(), chosen_ends),
        masked_row_mean(rejected.float(), rejected_ends),
        margin=judgements.targets,
        preferred=_preferred(judgements, settings),
    )


def centred_prefix_loss(judgements: Judgements, settings: LossSettings) -> Float[Tensor, ""]:
    """Bradley-Terry on prefixes of equal length, with the price of sums that are not 0."""
    chosen, rejected, chosen_mask, rejected_mask = judgements.sides
    loss = prefix_bradley_terry_loss(
        *judgements.sides,
        margin=judgements.targets,
        strength=judgements.strengths,
        preferred=_preferred(judgements, settings),
    )
    if not settings.centering:
        return loss
    held = held_prefix_scores(chosen, chosen_mask), held_prefix_scores(rejected, rejected_mask)
    return loss + settings.centering * centering_loss(*held, chosen_mask | rejected_mask)


def _preferred(
    judgements: Judgements, settings: LossSettings
) -> Float[Tensor, "judgements"] | None:
    """How probably each preference is right, with the share that is taken to be wrong."""
    share, said = settings.label_smoothing, judgements.preferred
    if not share:
        return said
    said = torch.ones_like(judgements.strengths) if said is None else said
    return said * (1 - share) + (1 - said) * share


def centred_segment_loss(judgements: Judgements, settings: LossSettings) -> Float[Tensor, ""]:
    """Bradley-Terry on means over ends of segments, with the price of sums that are not 0."""
    chosen, rejected, chosen_ends, rejected_ends = judgements.sides
    loss = segment_bradley_terry_loss(
        *judgements.sides,
        margin=judgements.targets,
        strength=judgements.strengths,
        preferred=_preferred(judgements, settings),
    )
    if not settings.centering:
        return loss
    means = masked_row_mean(chosen, chosen_ends), masked_row_mean(rejected, rejected_ends)
    every_pair = torch.ones_like(means[0], dtype=torch.bool)
    return loss + settings.centering * centering_loss(*means, every_pair)


def label_loss(judgements: Judgements, settings: LossSettings) -> Float[Tensor, ""]:
    """Cross-entropy of every score that is read against the label of its response."""
    by_length = settings.prefix_weights == "length"
    loss = length_weighted_classification_loss if by_length else prefix_classification_loss
    return loss(judgements.scores, judgements.targets, judgements.mask)


def rating_loss(judgements: Judgements, settings: LossSettings) -> Float[Tensor, ""]:
    """Squared error of every score that is read against the rating of its response."""
    by_length = settings.prefix_weights == "length"
    loss = length_weighted_regression_loss if by_length else prefix_regression_loss
    return loss(judgements.scores, judgements.targets, judgements.mask)


def several_ratings_loss(judgements: Judgements, _settings: LossSettings) -> Float[Tensor, ""]:
    """Squared error of every score that is read against the rating of its objective."""
    return prefix_multi_objective_regression_loss(
        judgements.scores, judgements.targets, judgements.mask
    )


def ranking_loss(judgements: Judgements, _settings: LossSettings) -> Float[Tensor, ""]:
    """Plackett-Luce on prefixes of equal length, or on the one score that is read."""
    ranks = judgements.targets
    present = ~ranks.isnan()
    scores, mask = (
        columns.new_zeros(*ranks.shape, columns.shape[1])
        for columns in (judgements.scores, judgements.mask)
    )
    scores[present], mask[present] = judgements.scores, judgements.mask
    return prefix_plackett_luce_loss(scores, ranks, mask)


def next_label_loss(judgements: Judgements, settings: LossSettings) -> Float[Tensor, ""]:
    """Cross-entropy of every prefix against what the model says of the next one."""
    return q_classification_loss(
        judgements.scores,
        judgements.targets,
        judgements.mask,
        bootstrap_lambda=settings.bootstrap_lambda,
    )


def next_rating_loss(judgements: Judgements, settings: LossSettings) -> Float[Tensor, ""]:
    """Squared error of every prefix against what the model says of the next one."""
    return q_value_loss(
        judgements.scores,
        judgements.targets,
        judgements.mask,
        bootstrap_lambda=settings.bootstrap_lambda,
    )


_OF_PAIRS = ("centering", "label_smoothing")

OBJECTIVES: dict[tuple[str, str], Objective] = {
    ("bradley-terry", "last"): Objective(
        "pairs", "last", centred_prefix_loss, _OF_PAIRS, pair_losses=prefix_pair_losses
    ),
    ("bradley-terry", "every"): Objective(
        "pairs", "every", centred_prefix_loss, _OF_PAIRS, pair_losses=prefix_pair_losses
    ),
    ("bradley-terry", "pairs"): Objective(
        "pairs", "last", centred_prefix_loss, _OF_PAIRS, True, prefix_pair_losses
    ),
    ("bradley-terry", "segments"): Objective(
        "pairs", "segment-ends", centred_segment_loss, _OF_PAIRS, pair_losses=segment_pair_losses
    ),
    ("plackett-luce", "last"): Objective("rankings", "last", ranking_loss),
    ("plackett-luce", "every"): Objective("rankings", "every", ranking_loss),
    ("classification", "last"): Objective("labels", "last", label_loss),
    ("classification", "every"): Objective("labels", "every", label_loss, ("prefix_weights",)),
    ("classification", "bootstrapped"): Objective(
        "labels", "every", next_label_loss, ("bootstrap_lambda",)
    ),
    ("regression", "last"): Objective("ratings", "last", rating_loss),
    ("regression", "every"): Objective("ratings", "every", rating_loss, ("prefix_weights",)),
    ("regression", "bootstrapped"): Objective(
        "ratings", "every", next_rating_loss, ("bootstrap_lambda",)
    ),
    ("multi-objective-regression", "last"): Objective(
        "several-ratings", "last", several_ratings_loss
    ),
    ("multi-objective-regression", "every"): Objective(
        "several-ratings", "every", several_ratings_loss
    ),
}
"""Each objective by its name and its positions."""


def objective_row(objective: str, positions: str, settings: LossSettings) -> Objective:
    """The row of an objective whose loss reads all settings that are not at their defaults.

    Args:
        objective: its name.
        positions: what is scored in training.
        settings: of its loss.

    Raises:
        ConfigError: there is no such objective, it has no such positions, or its loss does not read
            a setting that was changed.

    >>> objective_row("regression", "every", LossSettings()).rows
    'ratings'
    """
    row = OBJECTIVES.get((objective, positions))
    if row is None:
        _refuse_name(objective, positions)
    for one in fields(settings):
        value = getattr(settings, one.name)
        if value != one.default and one.name not in row.options:
            readers = sorted(
                " ".join(key) for key, r in OBJECTIVES.items() if one.name in r.options
            )
            raise ConfigError(
                f"loss.{one.name} is {value} with objective {objective!r} and positions "
                f"{positions!r}, whose loss does not read it; expected {one.default}, or one of "
                f"{', '.join(readers)}"
            )
    return row


def _refuse_name(objective: str, positions: str) -> NoReturn:
    require_named("objective", objective, dict.fromkeys(name for name, _ in OBJECTIVES))
    known = [place for name, place in OBJECTIVES if name == objective]
    raise ConfigError(
        f"positions is {positions!r} with objective {objective!r}; expected one of "
        f"{', '.join(known)}"
    )
