"""From the scores of judged answers to the numbers of an evaluation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from tokencredit.evaluation.agreement import spearman_correlation
from tokencredit.evaluation.bootstrap import mean_interval
from tokencredit.evaluation.calibration import (
    expected_calibration_error,
    pair_reliability_curve,
)
from tokencredit.evaluation.pair_scores import (
    best_of_n_outcome,
    pair_outcomes,
    reciprocal_rank,
    wilson_interval,
)
from tokencredit.evaluation.prefix_accuracy import pair_accuracy_by_fraction
from tokencredit.preference.hf_comparisons import Comparison

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ScoredComparison:
    """One comparison and what the model says about its answers.

    Attributes:
        comparison: the answers.
        chosen_scores: of the better answers at each fraction seen, in nats; the last column is the
            score of the whole.
        rejected_scores: of the others.
    """

    comparison: Comparison
    chosen_scores: Float[Tensor, "chosen fractions"]
    rejected_scores: Float[Tensor, "rejected fractions"]

    @property
    def is_pair(self) -> bool:
        """Whether there are two answers and no more."""
        return len(self.comparison.chosen) == len(self.comparison.rejected) == 1


@dataclass(frozen=True)
class ScoredPair:
    """A better and a worse answer with their scores.

    Attributes:
        name: of the comparison.
        subset: of the comparison.
        chosen_scores: of the better answer at each fraction seen, in nats.
        rejected_scores: of the other.
        chosen_characters: length of the better answer.
        rejected_characters: length of the other.
    """

    name: str | int
    subset: str
    chosen_scores: list[float]
    rejected_scores: list[float]
    chosen_characters: int
    rejected_characters: int

    def json_row(self) -> dict[str, Any]:
        """The pair as a line of `pairs.jsonl`."""
        margin = self.chosen_scores[-1] - self.rejected_scores[-1]
        correct = 0.5 if margin == 0 else float(margin > 0)
        return {**asdict(self), "margin": margin, "correct": correct}


def scored_pairs(scored: Sequence[ScoredComparison]) -> list[ScoredPair]:
    """Every better answer with every worse one of the same comparison."""
    return [
        ScoredPair(
            one.comparison.name,
            one.comparison.subset,
            better.tolist(),
            worse.tolist(),
            len(chosen),
            len(rejected),
        )
        for one in scored
        for (chosen, better), (rejected, worse) in product(
            zip(one.comparison.chosen, one.chosen_scores, strict=True),
            zip(one.comparison.rejected, one.rejected_scores, strict=True),
        )
    ]


def evaluation(
    scored: Sequence[ScoredComparison], *, confidence: float, bins: int
) -> dict[str, Any]:
    """The numbers of `evaluation.json`.

    Args:
        scored: comparisons with their scores.
        confidence: of the intervals.
        bins: of the calibration.
    """
    pairs = scored_pairs(scored)
    chosen = torch.tensor([pair.chosen_scores for pair in pairs], dtype=torch.float64)
    rejected = torch.tensor([pair.rejected_scores for pair in pairs], dtype=torch.float64)
    whole = pair_outcomes(chosen[:, -1], rejected[:, -1])
    margins = chosen[:, -1] - rejected[:, -1]
    found = {
        "accuracy": share(whole, confidence),
        "subsets": _by_subset(pairs, whole, confidence),
        "fractions": pair_accuracy_by_fraction(chosen, rejected),
        "negative_log_likelihood": float(softplus(-margins).mean()),
        "calibration": _calibration(chosen[:, -1], rejected[:, -1], bins=bins),
        "scores": {
            "chosen": _distribution(chosen[:, -1]),
            "rejected": _distribution(rejected[:, -1]),
            "margin": _distribution(margins),
        },
        "length": _length(scored, pairs, whole, margins, confidence),
    }
    if not all(one.is_pair for one in scored):
        picked = [best_of_n_outcome(o.chosen_scores[:, -1], o.rejected_scores[:, -1])
                  for o in scored]  # fmt: skip
        found["best_of_n"] = share(torch.tensor(picked), confidence)
        found["one_against_many"] = _one_against_many(scored, confidence)
    return found


def _one_against_many(scored: Sequence[ScoredComparison], confidence: float) -> dict[str, Any]:
    """How often a right answer is strictly above all wrong ones, and the mean reciprocal rank."""
    ranks = torch.tensor(
        [reciprocal_rank(one.chosen_scores[:, -1], one.rejected_scores[:, -1]) for one in scored],
        dtype=torch.float64,
    )
    low, high = mean_interval(ranks, coverage=confidence)
    return {
        **share((ranks == 1).double(), confidence),
        "wrong_answers": sum(len(one.rejected_scores) for one in scored) / len(scored),
        "mean_reciprocal_rank": {"mean": float(ranks.mean()), "low": low, "high": high},
    }


def share(outcomes: Float[Tensor, "pairs"], confidence: float) -> dict[str, float | int | None]:
    """The mean of outcomes in [0, 1] with its Wilson interval; None where there are none."""
    count = len(outcomes)
    if not count:
        return {"accuracy": None, "low": None, "high": None, "count": 0, "ties": 0}
    right = float(outcomes.double().sum())
    low, high = wilson_interval(right, count, confidence=confidence)
    ties = int(((outcomes > 0) & (outcomes < 1)).sum())
    return {"accuracy": right / count, "low": low, "high": high, "count": count, "ties": ties}


def _calibration(
    chosen_scores: Float[Tensor, "pairs"], rejected_scores: Float[Tensor, "pairs"], *, bins: int
) -> dict[str, Any]:
    curve = pair_reliability_curve(chosen_scores, rejected_scores, bins=bins)
    return {"expected_calibration_error": expected_calibration_error(curve), "curve": curve}


def _by_subset(
    pairs: list[ScoredPair], outcomes: Float[Tensor, "pairs"], confidence: float
) -> dict[str, Any]:
    """Accuracy of each part of the data; nothing where there are no parts."""
    names = list(dict.fromkeys(pair.subset for pair in pairs))
    if names == [""]:
        return {}
    longer = _longer_wins(pairs)
    found = {}
    for name in names:
        inside = torch.tensor([pair.subset == name for pair in pairs])
        row = share(outcomes[inside], confidence)
        found[name] = {**row, "longer_wins": float(longer[inside].mean())}
    return found


def _longer_wins(pairs: list[ScoredPair]) -> Float[Tensor, "pairs"]:
    return pair_outcomes(
        torch.tensor([pair.chosen_characters for pair in pairs]),
        torch.tensor([pair.rejected_characters for pair in pairs]),
    )


def _length(
    scored: Sequence[ScoredComparison],
    pairs: list[ScoredPair],
    outcomes: Float[Tensor, "pairs"],
    margins: Float[Tensor, "pairs"],
    confidence: float,
) -> dict[str, Any]:
    """How much of the judgement is the number of characters."""
    longer = _longer_wins(pairs)
    scores = torch.cat([part[:, -1] for one in scored
                        for part in (one.chosen_scores, one.rejected_scores)])  # fmt: skip
    lengths = [
        len(text) for one in scored for text in one.comparison.chosen + one.comparison.rejected
    ]
    gaps = [float(pair.chosen_characters - pair.rejected_characters) for pair in pairs]
    return {
        "longer_wins": share(longer, confidence),
        "shorter_wins": share(1 - longer, confidence),
        "accuracy_where_the_longer_is_better": share(outcomes[longer == 1], confidence),
        "accuracy_where_the_shorter_is_better": share(outcomes[longer == 0], confidence),
        "picks_the_longer": share(_agreement(outcomes, longer), confidence),
        "score_length_spearman": _spearman(scores, torch.tensor(lengths)),
        "margin_length_spearman": _spearman(margins, torch.tensor(gaps)),
    }


def _agreement(
    outcomes: Float[Tensor, "pairs"], longer: Float[Tensor, "pairs"]
) -> Float[Tensor, "differing"]:
    """Whether the answer with the higher score is the longer one, where lengths differ."""
    differ: Bool[Tensor, "pairs"] = longer != 0.5
    return torch.where(longer == 1, outcomes, 1 - outcomes)[differ]


def _spearman(first: Tensor, second: Tensor) -> float | None:
    """The correlation of ranks; None where one of both is constant."""
    mask = torch.ones(1, len(first), dtype=torch.bool)
    found = float(spearman_correlation(first[None].float(), second[None].float(), mask))
    return None if found != found else found


def _distribution(values: Float[Tensor, "values"]) -> dict[str, float]:
    quantiles = torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype))
    named = {f"{q:.0%}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
    spread = float(values.std()) if len(values) > 1 else 0.0
    ends = {"min": float(values.min()), "max": float(values.max())}
    return {"mean": float(values.mean()), "standard_deviation": spread, **named, **ends}
