"""Scores of responses from a judge: which questions are asked, and what the verdicts sum to."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError, NumericError
from tokencredit.judge.comparisons import both_orders, group_wins, order_consistency
from tokencredit.judge.questions import LETTERS, Question, judge_question, shown_order
from tokencredit.judge.setups import JudgeSetup
from tokencredit.judge.verdicts import CriterionVerdict, Reply, Verdict

Judge = Callable[[Sequence[Question]], Sequence[Reply]]
"""What answers questions: a local model, an endpoint, or a function in a test."""


@dataclass(frozen=True)
class JudgedScores:
    """What a judge says of the responses to some prompts.

    Attributes:
        scores: of the responses to each prompt; NaN where no verdict could be read.
        verdicts: how many were asked for.
        unreadable: how many of them could not be read, by the reason.
        consistency: the share of comparisons in which both orders prefer the same response; NaN
            where there is none.
        asked_again: how many questions were asked again since a reply could not be read.
        criteria: of the responses to each prompt, what the judge says by each criterion, where the
            set-up has criteria; nothing where no verdict could be read.
        reasons: of the responses to each prompt, why there is no score; empty where there is one.
    """

    scores: list[Float[Tensor, "_responses"]]
    verdicts: int
    unreadable: Mapping[str, int]
    consistency: float
    asked_again: int = 0
    criteria: list[list[tuple[CriterionVerdict, ...]]] = field(default_factory=list)
    reasons: list[list[str]] = field(default_factory=list)


def judged_scores(
    judge: Judge,
    setup: JudgeSetup,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    *,
    references: Sequence[str] = (),
    principle: str = "",
    rubrics: Sequence[str] = (),
    seed: int = 0,
    most_unreadable: float = 0.05,
    ask_again: int = 0,
) -> JudgedScores:
    """Scores of responses as a set-up asks for them.

    Equal questions are asked once. The order in which responses are shown is drawn for each row by
    its texts and the seed.

    Args:
        judge: from questions to replies, in their order.
        setup: a row of `JUDGE_SETUPS`, or one of your own.
        prompts: what was asked.
        responses: to each prompt, one or more.
        references: one per prompt, for a set-up that compares with it.
        principle: for a template that has one.
        rubrics: one per prompt, likewise.
        seed: of the orders.
        most_unreadable: the share of verdicts that may be unreadable.
        ask_again: how often a question whose reply cannot be read is asked again, as another draw;
            of use with a judge that draws its replies.

    Raises:
        ConfigError: references, rubrics or responses are not there as the set-up needs them.
        DataError: the judge does not give one reply per question.
        NumericError: more verdicts than `most_unreadable` cannot be read.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> def judge(questions):
    ...     return [Reply(logprobs={"yes": 1.5, "no": 0.5})] * len(questions)
    >>> setup = JUDGE_SETUPS["rlbff"]
    >>> judged_scores(judge, setup, ["Why?"], [["So."]], principle="It is polite.").scores
    [tensor([1.])]
    """
    _require_as_many(setup, prompts, responses, references, rubrics)
    rubric_of = list(rubrics) or [""] * len(prompts)
    shown: list[tuple[int, tuple[int, ...]]] = []
    texts = [list(group) for group in responses]
    if setup.asks == "reference":
        texts = [[*group, one] for group, one in zip(texts, references, strict=True)]
    for row, group in enumerate(texts):
        key = [str(prompts[row]), *group]
        for places in _compared(setup, len(group)):
            if setup.both_orders and len(places) == 2:
                shown += [(row, places), (row, places[::-1])]
                continue
            own = [key[0], *(group[place] for place in places)]
            order = [place for place in shown_order(own, seed=seed) if place]
            shown.append((row, tuple(places[place - 1] for place in order)))
    questions = [
        judge_question(
            setup.template,
            prompts[row],
            [texts[row][place] for place in places],
            labels=response_labels(setup, len(places)),
            principle=principle,
            rubric=rubric_of[row],
            answers=setup.answers,
        )
        for row, places in shown
    ]
    read, again = asked_verdicts(
        judge, setup, questions, [len(places) for _, places in shown], ask_again
    )
    verdicts = [verdict for some in read for verdict in some]
    unreadable = Counter(verdict.reason for verdict in verdicts if not verdict.readable)
    _require_readable(unreadable, len(verdicts), most_unreadable)
    scores, consistency = _scores(setup, texts, shown, read)
    criteria = _criteria(texts, shown, read) if setup.criteria else []
    reasons = _reasons(setup, scores, shown, read)
    return JudgedScores(
        scores, len(verdicts), dict(unreadable), consistency, again, criteria, reasons
    )


def _compared(setup: JudgeSetup, count: int) -> list[tuple[int, ...]]:
    """Which texts of a row stand in one question; the reference is the last of them."""
    match setup.asks:
        case "each":
            return [(place,) for place in range(count)]
        case "reference":
            return [(place, count - 1) for place in range(count - 1)]
        case "group":
            return [(one, other) for one in range(count) for other in range(one + 1, count)]
    return [tuple(range(count))]


def response_labels(setup: JudgeSetup, count: int) -> list[str]:
    """What responses are called in a question: nothing, numbers or letters.

    Args:
        setup: that is asked by.
        count: of the responses.
    """
    if setup.asks == "each":
        return []
    return [str(n + 1) for n in range(count)] if setup.asks == "list" else list(LETTERS[:count])


def asked_verdicts(
    judge: Judge,
    setup: JudgeSetup,
    questions: Sequence[Question],
    counts: Sequence[int],
    ask_again: int = 0,
) -> tuple[list[list[Verdict]], int]:
    """What is read of the reply to each question, and how many were asked again.

    Args:
        judge: from questions to replies, in their order; equal questions are asked once.
        setup: that reads the replies.
        questions: any number.
        counts: of the responses in each.
        ask_again: how often a question whose reply cannot be read is asked again.

    Raises:
        DataError: the judge does not give one reply per question.
    """
    found: list[list[Verdict]] = [[] for _ in questions]
    rows, again = list(range(len(questions))), 0
    for draw in range(ask_again + 1):
        replies = _replies(judge, [replace(questions[row], draw=draw) for row in rows])
        for row, reply in zip(rows, replies, strict=True):
            found[row] = setup.read(reply, counts[row])
        rows = [row for row in rows if not all(verdict.readable for verdict in found[row])]
        if not rows:
            break
        if draw < ask_again:
            again += len({(str(questions[row].messages)) for row in rows})
    return found, again


def _replies(judge: Judge, questions: Sequence[Question]) -> list[Reply]:
    """One reply per question; equal ones are asked once."""
    keys = [(str(question.messages), question.answers) for question in questions]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    rows = sorted(first.values())
    found = list(judge([questions[row] for row in rows]))
    if len(found) != len(rows):
        raise DataError(
            f"the judge gives {len(found)} replies to {len(rows)} questions; expected one for each"
        )
    by_row = dict(zip(rows, found, strict=True))
    return [by_row[first[key]] for key in keys]


def _scores(
    setup: JudgeSetup,
    texts: Sequence[Sequence[str]],
    shown: Sequence[tuple[int, tuple[int, ...]]],
    read: Sequence[Sequence[Verdict]],
) -> tuple[list[Float[Tensor, "_responses"]], float]:
    """Scores from the verdicts on what was shown, and how consistent the orders are."""
    scores = [torch.full((len(group),), torch.nan) for group in texts]
    margins = [torch.full((len(group), len(group)), torch.nan) for group in texts]
    firsts: list[Tensor] = []
    seconds: list[Tensor] = []
    for (row, places), verdicts in zip(shown, read, strict=True):
        if setup.asks in ("each", "list"):
            scores[row][list(places)] = torch.tensor([verdict.score for verdict in verdicts])
        else:
            margins[row][places] = verdicts[0].score
    if setup.asks in ("each", "list"):
        return scores, float("nan")
    for row, wins in enumerate(margins):
        if setup.both_orders:
            pairs = torch.tensor(_compared(setup, len(wins)), dtype=torch.long).view(-1, 2).T
            firsts.append(wins[pairs[0], pairs[1]])
            seconds.append(wins[pairs[1], pairs[0]])
            wins = both_orders(wins, wins.T)
        else:
            wins = wins.where(wins.isfinite(), -wins.T)  # each pair was shown in one order
        scores[row] = group_wins(wins) if setup.asks == "group" else wins[:-1, -1]
    if not firsts:
        return scores, float("nan")
    return scores, float(order_consistency(torch.cat(firsts), torch.cat(seconds)))


def _criteria(
    texts: Sequence[Sequence[str]],
    shown: Sequence[tuple[int, tuple[int, ...]]],
    read: Sequence[Sequence[Verdict]],
) -> list[list[tuple[CriterionVerdict, ...]]]:
    """What was said of each response by criteria, where each was shown by itself."""
    found: list[list[tuple[CriterionVerdict, ...]]] = [[()] * len(group) for group in texts]
    for (row, places), verdicts in zip(shown, read, strict=True):
        found[row][places[0]] = verdicts[0].criteria
    return found


def _reasons(
    setup: JudgeSetup,
    scores: Sequence[Float[Tensor, "_responses"]],
    shown: Sequence[tuple[int, tuple[int, ...]]],
    read: Sequence[Sequence[Verdict]],
) -> list[list[str]]:
    """Why responses have no score: the first reason among the verdicts on each."""
    found: list[dict[int, str]] = [{} for _ in scores]
    for (row, places), verdicts in zip(shown, read, strict=True):
        each = verdicts if setup.asks == "list" else [verdicts[0]] * len(places)
        for place, verdict in zip(places, each, strict=True):
            if not verdict.readable:
                found[row].setdefault(place, verdict.reason)
    return [
        [why.get(place, "") if score != score else "" for place, score in enumerate(some.tolist())]
        for why, some in zip(found, scores, strict=True)
    ]


def _require_readable(unreadable: Counter[str], count: int, most: float) -> None:
    failed = unreadable.total()
    if failed > most * count:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in unreadable.most_common(3))
        raise NumericError(
            f"{failed} of {count} verdicts cannot be read: {reasons}; expected at most "
            f"{most:.0%}: look at the replies of the judge, or allow more with most_unreadable"
        )


def _require_as_many(
    setup: JudgeSetup,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str],
    rubrics: Sequence[str],
) -> None:
    counts = {"groups of responses": len(responses)}
    if setup.asks == "reference":
        counts["references"] = len(references)
    elif references:
        raise ConfigError(
            f"there are {len(references)} references and the set-up compares "
            f"{setup.asks!r}; expected none: it does not read them"
        )
    if "{rubric}" in setup.template:
        counts["rubrics"] = len(rubrics)
    for name, count in counts.items():
        if count != len(prompts):
            raise ConfigError(
                f"there are {count} {name} and {len(prompts)} prompts; expected one for each"
            )
    least = 2 if setup.asks == "group" else 1
    if any(len(group) < least for group in responses):
        raise ConfigError(
            f"a prompt has fewer than {least} responses; expected at least {least} for a set-up "
            f"that asks for {setup.asks!r}"
        )
