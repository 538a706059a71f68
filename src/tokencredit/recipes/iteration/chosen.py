"""From the answers of a round to the rows that `train-preferences` reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.policy.judged import judged_pair_signs
from tokencredit.policy.preferred import preferred_pairs, ranking_consistencies, win_rates
from tokencredit.policy.selection import kept_responses
from tokencredit.recipes.iteration.answers import Answer
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.policy.prompts import seeded

Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """Rows of a round, and what became of the others.

    Attributes:
        rows: as `train-preferences` reads them.
        counts: `rows`; `equal_groups`, prompts whose answers all have the same score or text, or
            none closer than is wanted; `unusable_answers`, empty or without a score; and, where
            rankings are compared, their mean `consistency`.
    """

    rows: list[Row]
    counts: dict[str, float]


@dataclass(frozen=True)
class _Candidates:
    """Answers that can be chosen, with what they are chosen by."""

    answers: list[Answer]
    scores: Float[Tensor, "answers"]
    group_ids: Int[Tensor, "answers"]
    passed: Tensor | None


def chosen_rows(config: IteratePreferencesConfig, answers: Sequence[Answer], number: int) -> Chosen:
    """The rows that a round learns from.

    Args:
        config: the settings.
        answers: of the round; those to a prompt stand together.
        number: of the round, from 0.
    """
    usable = [one for one in answers if one.response.strip() and _is_judged(config, one)]
    prompts = {one.group for one in answers}
    found = _candidates(config, usable)
    kind, counts = str(config.rows), {}
    if kind == "demonstration":
        rows = _against_demonstrations(usable)
    elif kind == "best":
        rows = _best(config, found)
    elif kind == "each":
        rows = [_single(found, at) for at, one in enumerate(found.answers) if one.own]
    elif kind == "list":
        rows = _lists(found)
    else:
        pairs = _pairs(config, found, number)
        rows = [_pair(found, better, worse) for better, worse in pairs]
        if config.loss == "cream":
            rows, counts["consistency"] = _with_consistencies(config, rows, found)
    groups = [row.pop("group") for row in rows]
    counts |= {
        "rows": float(len(rows)),
        "equal_groups": float(len(prompts - set(groups))),
        "unusable_answers": float(len(answers) - len(usable)),
    }
    return Chosen(rows, counts)


def _is_judged(config: IteratePreferencesConfig, one: Answer) -> bool:
    """Whether there is something to choose an answer by."""
    value = one.own_score if config.learns_from_own_ratio else one.score
    return config.judged_by == "nothing" or value is not None


def _candidates(config: IteratePreferencesConfig, answers: list[Answer]) -> _Candidates:
    group_ids = torch.tensor([one.group for one in answers], dtype=torch.long)
    values = [one.own_score if config.learns_from_own_ratio else one.score for one in answers]
    scores = _numbers(values)
    if config.judged_by == "win-rates":
        scores = win_rates(scores, group_ids)
    passed = torch.tensor([one.passed is not False for one in answers], dtype=torch.bool)
    return _Candidates(answers, scores, group_ids, passed if config.judges else None)


def _numbers(values: Sequence[float | None]) -> Float[Tensor, "values"]:
    return torch.tensor([math.nan if one is None else one for one in values])


def _pairs(
    config: IteratePreferencesConfig, found: _Candidates, number: int
) -> list[tuple[int, int]]:
    """Numbers of better and worse answers whose texts differ."""
    if found.passed is None:
        pairs = preferred_pairs(
            found.scores,
            found.group_ids,
            pairing=str(config.rows),
            least_gap=config.least_gap,
            rng=seeded(config.seed, number, 0),
        ).tolist()
    else:
        signs = judged_pair_signs(found.scores, found.passed, found.group_ids)
        chosen, rejected = (signs > 0).nonzero().flatten(), (signs < 0).nonzero().flatten()
        pairs = [
            (better, worse)
            for better, worse in zip(chosen.tolist(), rejected.tolist(), strict=True)
            if _differ(found, better, worse, config.least_gap)
        ]
    answers = found.answers
    return [(a, b) for a, b in pairs if answers[a].response != answers[b].response]


def _differ(found: _Candidates, better: int, worse: int, least_gap: float) -> bool:
    """Whether one passes and the other does not, or their scores are apart."""
    assert found.passed is not None
    gap = float(found.scores[better] - found.scores[worse])
    return bool(found.passed[better] != found.passed[worse]) or (gap > 0 and gap >= least_gap)


def _pair(found: _Candidates, better: int, worse: int) -> Row:
    chosen, rejected = found.answers[better], found.answers[worse]
    return _sides(chosen, rejected) | {
        "chosen_score": float(found.scores[better]),
        "rejected_score": float(found.scores[worse]),
    }


def _sides(chosen: Answer, rejected: Answer) -> Row:
    return {
        "group": chosen.group,
        "prompt": chosen.prompt,
        "chosen": chosen.response,
        "rejected": rejected.response,
        "chosen_ended": chosen.ended,
        "rejected_ended": rejected.ended,
    }


def _against_demonstrations(answers: Sequence[Answer]) -> list[Row]:
    """The demonstration of each prompt against each own response that says something else."""
    rows = []
    for _, group in groupby(answers, key=lambda one: one.group):
        some = list(group)
        rows += [
            _sides(shown, own)
            for shown in some
            for own in some
            if own.own and not shown.own and own.response != shown.response
        ]
    return rows


def _best(config: IteratePreferencesConfig, found: _Candidates) -> list[Row]:
    """The best answer to each prompt, of those that pass, unless all are as good."""
    if not found.answers:
        return []
    best = kept_responses(
        found.scores if found.passed is None else found.scores.masked_fill(~found.passed, math.nan),
        found.group_ids,
        keep="best" if config.samples != 1 else "all",
        rng=torch.Generator(),
    )
    rows = []
    for at in best.tolist():
        others = found.scores[found.group_ids == found.group_ids[at]]
        passes = found.passed is None or bool(found.passed[at])
        if passes and bool((others < found.scores[at]).any()):
            rows.append(_single(found, at))
    return rows


def _single(found: _Candidates, at: int) -> Row:
    one, score = found.answers[at], float(found.scores[at])
    row = {"group": one.group, "prompt": one.prompt, "response": one.response, "ended": one.ended}
    return row if math.isnan(score) else row | {"score": score}


def _lists(found: _Candidates) -> list[Row]:
    """All answers to each prompt from the best to the worst, unless all are as good."""
    rows = []
    for group in dict.fromkeys(found.group_ids.tolist()):
        numbers = (found.group_ids == group).nonzero().flatten()
        order = numbers[found.scores[numbers].argsort(descending=True, stable=True)]
        scores = found.scores[order].tolist()
        some = [found.answers[at] for at in order.tolist()]
        if scores[0] > scores[-1]:
            rows.append(
                {
                    "group": group,
                    "prompt": some[0].prompt,
                    "responses": [one.response for one in some],
                    "scores": scores,
                    "ended": [one.ended for one in some],
                }
            )
    return rows


def _with_consistencies(
    config: IteratePreferencesConfig, rows: list[Row], found: _Candidates
) -> tuple[list[Row], float]:
    """Pairs with how far the policy and the one before agree on them, and the mean of that.

    Where there was no policy before, its ranking is trusted: DPO.
    """
    earlier = [one.earlier_score for one in found.answers]
    groups = list(dict.fromkeys(found.group_ids.tolist()))
    if all(value is None for value in earlier):
        each = torch.ones(len(groups))
    else:
        each = ranking_consistencies(
            found.scores, _numbers(earlier), found.group_ids, agreement=config.agreement
        )
    mean = float(each.mean()) if len(each) else 1.0
    own = dict(zip(groups, each.tolist(), strict=True))
    labels = own if config.consistency == "per-prompt" else dict.fromkeys(own, mean)
    return [row | {"soft_label": labels[row["group"]]} for row in rows], mean
