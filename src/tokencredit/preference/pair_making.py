"""Answers to prompts with what is known of each, and the pairs that are made of them."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.design import consensus_pairs, contrast_instructions, d_optimal_pairs
from tokencredit.preference.rankings import pairs_from_ratings, ranked_preferences
from tokencredit.preference.word_vectors import word_vectors
from tokencredit.ranges import require_at_least


@dataclass(frozen=True)
class AnswerGroup:
    """The answers to one prompt, and what is known of each.

    Attributes:
        prompt: text, or messages.
        responses: the answers.
        ended: which of them ended.
        numbers: by the name of a column, a number of each answer; NaN where there is none.
        cells: likewise what is no number: vectors, or names of groups.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    cells: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class BuilderSettings:
    """How pairs are made of answers."""

    z: float = 3.0
    """For `ratings` and `aspects`: how many standard errors of their difference two ratings must be
    apart to count as different. Without a column of errors they differ if they are not equal."""
    best_share: float = 1.0
    """For `ratings` and `aspects`: share of the answers to a prompt, the best ones, that may be
    preferred."""
    factors: tuple[str, ...] = ()
    """For `factors`: columns of numbers to compare by, the most important first. A minus before a
    name means that less is better: `-errors`."""
    thresholds: tuple[float, ...] = ()
    """For `factors`: difference from which on each factor decides, in standard deviations over all
    answers. One number per factor, or none for 0."""
    least_share: float = 0.5
    """For `consensus`: share of the answers to a prompt that must say the same."""
    count: int = 100
    """For `design`: number of pairs to ask about."""
    ridge: float = 1.0
    """For `design`: what is known before any answer, above 0, in the unit of squared features."""
    least_likeness: float = 0.75
    """For `contrast`: likeness below which prompts ask for different things."""
    most_likeness: float = 0.9
    """For `contrast`: likeness above which prompts ask for the same."""
    most_pairs: int | None = None
    """Most pairs of one prompt, drawn at random; None takes all."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "most_pairs", "count")
        if self.thresholds and len(self.thresholds) != len(self.factors):
            raise ConfigError(
                f"thresholds has {len(self.thresholds)} numbers and factors {len(self.factors)} "
                "names; expected one for each, or no thresholds"
            )


@dataclass
class Built:
    """Rows that a builder made, and what became of the others.

    Attributes:
        rows: as they are written.
        counts: of what was passed over, by the reason.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def pair_row(group: AnswerGroup, chosen: int, rejected: int, **more: Any) -> dict[str, Any]:
    """A pair as a row that `train-reward-model` reads.

    Args:
        group: with both answers.
        chosen: index of the preferred one.
        rejected: of the other.
        **more: columns beside.
    """
    return {
        "prompt": group.prompt,
        "chosen": group.responses[chosen],
        "rejected": group.responses[rejected],
        "chosen_ended": group.ended[chosen],
        "rejected_ended": group.ended[rejected],
        **more,
    }


def pairs_by_ratings(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Pairs of answers whose ratings, the number `rating`, differ by more than their errors.

    Args:
        groups: with the numbers and cells that it needs.
        settings: those of the method.
    """
    built = Built()
    for number, group in enumerate(groups):
        errors = group.numbers.get("error")
        pairs, leads = pairs_from_ratings(
            torch.tensor(group.numbers["rating"], dtype=torch.float64),
            errors=None if errors is None else torch.tensor(errors, dtype=torch.float64),
            z=settings.z,
            best_share=settings.best_share,
        )
        built.counts["answers without a rating"] += sum(map(math.isnan, group.numbers["rating"]))
        built.counts["answers without an error"] += sum(map(math.isnan, errors or ()))
        found = [
            pair_row(group, one, other, margin=lead)
            for (one, other), lead in zip(pairs.tolist(), leads.tolist(), strict=True)
        ]
        _take(built, found, settings, number)
    return built


def pairs_by_factors(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Pairs by factors in the order of their importance, with thresholds over all answers.

    Args:
        groups: with the numbers and cells that it needs.
        settings: those of the method.
    """
    built = Built()
    if not settings.factors:
        raise ConfigError(
            "method 'factors' has no build.factors; expected names of columns, the most important "
            "first"
        )
    # (answers, factors), more for better ones.
    tables = [
        torch.tensor(
            [[_sign(name) * value for value in group.numbers[name.lstrip("-")]]
             for name in settings.factors],
            dtype=torch.float64,
        ).T
        for group in groups
    ]  # fmt: skip
    everyone = torch.cat(tables) if tables else torch.zeros(0, len(settings.factors))
    known = everyone[everyone.isfinite().all(-1)]
    spread = known.std(0, correction=0) if len(known) else torch.zeros(len(settings.factors))
    multiples = torch.tensor(settings.thresholds or [0.0] * len(settings.factors)).double()
    for number, (group, table) in enumerate(zip(groups, tables, strict=True)):
        there = table.isfinite().all(-1)
        built.counts["answers without all factors"] += int((~there).sum())
        both = [
            pair for pair in combinations(range(len(table)), 2) if bool(there[list(pair)].all())
        ]
        sides = table[torch.tensor(both, dtype=torch.long).view(-1, 2)]
        signs = ranked_preferences(sides, multiples * spread).tolist()
        built.counts["pairs that nothing decides"] += signs.count(0)
        found = [
            pair_row(group, *(pair if sign > 0 else pair[::-1]))
            for pair, sign in zip(both, signs, strict=True)
            if sign
        ]
        _take(built, found, settings, number)
    return built


def _sign(factor: str) -> float:
    return -1.0 if factor.startswith("-") else 1.0


def pairs_by_consensus(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """The best of the answers that say the same as most, and one that does not.

    Args:
        groups: with the numbers and cells that it needs.
        settings: those of the method.
    """
    built = Built()
    for number, group in enumerate(groups):
        same = group.cells.get("group") or [" ".join(one.casefold().split())
                                            for one in group.responses]  # fmt: skip
        numbers = list(dict.fromkeys(same))
        scores = group.numbers["score"]
        if any(map(math.isnan, scores)):
            built.counts["prompts with an answer without a score"] += 1
            continue
        pair = consensus_pairs(
            [numbers.index(one) for one in same], scores, least_share=settings.least_share
        )
        if pair is None:
            built.counts["prompts without a consensus, or with nothing else"] += 1
            continue
        best, others = pair
        other = random.Random(f"{settings.seed} {number}").choice(others)
        _take(built, [pair_row(group, best, other)], settings, number)
    return built


def pairs_by_design(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Pairs to ask people about, with what each adds in nats.

    Args:
        groups: with the numbers and cells that it needs.
        settings: those of the method.
    """
    built, pairs = Built(), []
    for group in groups:
        pairs += [(group, *pair) for pair in combinations(range(len(group.responses)), 2)]
    of = {id(group): _vectors(group.cells["features"]) for group in groups}
    gaps = [of[id(group)][one] - of[id(group)][other] for group, one, other in pairs]
    table = torch.stack(gaps) if gaps else torch.zeros(0, 1)
    chosen, gains = d_optimal_pairs(table, settings.count, ridge=settings.ridge)
    for at, gain in zip(chosen.tolist(), gains.tolist(), strict=True):
        group, one, other = pairs[at]
        built.rows.append(
            {
                "prompt": group.prompt,
                "responses": [group.responses[one], group.responses[other]],
                "ended": [group.ended[one], group.ended[other]],
                "gain": gain,
            }
        )
    asked = len(set(chosen.tolist()))
    built.counts["pairs that are asked again"] = len(chosen) - asked
    built.counts["pairs that are not asked"] = len(pairs) - asked
    return built


def pairs_by_contrast(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Pairs of the answers to a prompt and to the one that is most like it.

    Args:
        groups: with the numbers and cells that it needs.
        settings: those of the method.
    """
    built = Built()
    texts = [str(group.prompt) for group in groups]
    if all("features" in group.cells for group in groups):
        vectors = _vectors([group.cells["features"][0] for group in groups])
    else:
        vectors = word_vectors(texts)
    unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    pairs = contrast_instructions(
        unit @ unit.T, least=settings.least_likeness, most=settings.most_likeness
    )
    for one, other in pairs.tolist():
        here, there = groups[one], groups[other]
        if here.responses[0] == there.responses[0]:
            built.counts["prompts whose answers are the same"] += 1
            continue
        both = AnswerGroup(
            here.prompt, (here.responses[0], there.responses[0]), (here.ended[0], there.ended[0])
        )
        like = float(unit[one] @ unit[other])
        built.rows.append(pair_row(both, 0, 1, likeness=like, other_prompt=there.prompt))
    built.counts["prompts that are like no other"] = len(groups) - len(pairs)
    return built


def pairs_by_tree(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Pairs of responses with scores and `tokens`; without scores the responses of each prompt.

    Args:
        groups: with the numbers and cells that it needs.
        settings: those of the method.
    """
    built = Built()
    for number, group in enumerate(groups):
        tokens = group.cells["tokens"]
        if "score" not in group.numbers:  # for people, or a model, to judge
            built.rows.append(
                {
                    "prompt": group.prompt,
                    "responses": list(group.responses),
                    "ended": list(group.ended),
                }
            )
            continue
        scores, found = group.numbers["score"], []
        for one, other in combinations(range(len(scores)), 2):
            lead = scores[one] - scores[other]
            if lead == 0:
                built.counts["pairs of equal scores"] += 1
                continue
            better, worse = (one, other) if lead > 0 else (other, one)
            shared = _shared(tokens[one], tokens[other])
            found.append(pair_row(group, better, worse, margin=abs(lead), shared_tokens=shared))
        _take(built, found, settings, number)
    return built


def pairs_by_demonstration(groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Each demonstration against each response that a policy drew, by the cell `drawn`.

    Args:
        groups: with the cells that it needs.
        settings: those of the method.
    """
    built = Built()
    for number, group in enumerate(groups):
        drawn = group.cells["drawn"]
        shown = [at for at, one in enumerate(drawn) if not one]
        others = [at for at, one in enumerate(drawn) if one]
        found = [pair_row(group, one, other) for one in shown for other in others]
        _take(built, found, settings, number)
    return built


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two responses have in common before they part."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def _vectors(features: Sequence[Sequence[float]]) -> Float[Tensor, "vectors width"]:
    widths = sorted({len(one) for one in features})
    if len(widths) > 1:
        raise DataError(f"features have the lengths {widths[:5]}; expected vectors of one length")
    return torch.tensor(features, dtype=torch.float64)


def _take(
    built: Built,
    found: Sequence[dict[str, Any]],
    settings: BuilderSettings,
    number: int,
) -> None:
    """Add pairs of one prompt, those with different texts, as many as are wanted."""
    different = [row for row in found if row["chosen"] != row["rejected"]]
    built.counts["pairs of equal answers"] += len(found) - len(different)
    kept = list(_drawn(different, settings.most_pairs, f"{settings.seed} {number}"))
    built.counts["pairs beyond most_pairs"] += len(different) - len(kept)
    built.counts["prompts without a pair"] += not kept
    built.rows += kept


def _drawn(rows: Sequence[dict[str, Any]], most: int | None, seed: str) -> Iterator[dict[str, Any]]:
    """Some of the rows in their order."""
    if most is None or len(rows) <= most:
        return iter(rows)
    return (rows[at] for at in sorted(random.Random(seed).sample(range(len(rows)), most)))
