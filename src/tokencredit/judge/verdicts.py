"""Verdicts read from the replies of a judge; one that cannot be read is NaN with a reason."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokencredit.errors import DataError

# What answers that were not listed may add, as a share of those that were.
_UNSEEN_SHARE = 1e-3
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Reply:
    """What a judge answers.

    Attributes:
        text: that it wrote.
        logprobs: of the answers that were asked for, by the answer in lower case, all tokens that
            spell it together, in nats; a common constant makes no difference.
        ended: whether it came to its end, and was not cut off.
        bound: no answer that is not in `logprobs` has a higher log-probability per token; minus
            infinity where all answers are there.
        problem: why there is no answer, a content filter for example; empty where there is one.
    """

    text: str = ""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    ended: bool = True
    bound: float = -math.inf
    problem: str = ""


@dataclass(frozen=True)
class CriterionVerdict:
    """What a judge says by one criterion.

    Attributes:
        name: of the criterion.
        score: of the response by it.
        share: of the score in that of the response; all shares together are 1.
        quotes: from the response, as the judge writes them.
    """

    name: str
    score: float
    share: float
    quotes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A number, or why there is none.

    Attributes:
        score: NaN where the reply cannot be read.
        reason: why; empty where there is a score.
        criteria: that the score is the mean of, where the judge quotes evidence for each.
    """

    score: float
    reason: str = ""
    criteria: tuple[CriterionVerdict, ...] = field(default=(), repr=False)

    @property
    def readable(self) -> bool:
        """Whether there is a score."""
        return not self.reason


def pooled_answers(
    spelled: Iterable[tuple[str, float]], answers: Sequence[str]
) -> dict[str, float]:
    """Log-probabilities of answers: that of all tokens together which spell the same one.

    Args:
        spelled: texts of tokens and their log-probabilities.
        answers: in lower case; others are left out.

    >>> pooled_answers([(" Yes", 0.0), ("yes", 0.0), ("No", -1.0), ("Yet", 5.0)], ["yes", "no"])
    {'yes': 0.6931471805599453, 'no': -1.0}
    """
    found: dict[str, list[float]] = {}
    for text, logprob in spelled:
        answer = text.strip().lower()
        if answer in answers:
            found.setdefault(answer, []).append(logprob)
    return {answer: _logsumexp(found[answer]) for answer in answers if answer in found}


def two_way_verdict(reply: Reply, first: str, second: str) -> Verdict:
    """How much likelier one answer of one token is than another.

        s = log Σ_{v spells first} p(v) − log Σ_{v spells second} p(v)

    The normaliser cancels, so logits serve as well, and a restriction of what may be answered
    changes nothing.

    Args:
        reply: with the log-probabilities of both.
        first: speaks for the response, `yes` for example.
        second: speaks against it.

    Returns:
        In nats.

    Source: RLBFF, Wang et al. 2025, arXiv 2509.21319: log p(Yes) − log p(No).

    >>> two_way_verdict(Reply(logprobs={"yes": -0.5, "no": -2.5}), "yes", "no").score
    2.0
    """
    if reply.problem:
        return unreadable(reply.problem)
    missing = [name for name in (first, second) if name not in reply.logprobs]
    if missing:
        return unreadable(f"no log-probability of {missing[0]!r}")
    return _finite(reply.logprobs[first] - reply.logprobs[second])


def expected_digit_verdict(reply: Reply, digits: Sequence[str]) -> Verdict:
    """The rating that a judge expects to give, over ratings of one digit.

        s = Σ_v v · softmax(log p)_v

    Digits that the judge did not list are left out if together they can have a thousandth of the
    others at most.

    Args:
        reply: with log-probabilities of digits.
        digits: the ratings that there are.

    Returns:
        In ratings.

    >>> even = {"1": 0.0, "2": 0.0, "3": 0.0}
    >>> round(expected_digit_verdict(Reply(logprobs=even), ["1", "2", "3"]).score, 6)
    2.0
    """
    if reply.problem:
        return unreadable(reply.problem)
    there = [digit for digit in digits if digit in reply.logprobs]
    if not there:
        return unreadable("no log-probability of a digit")
    total = _logsumexp([reply.logprobs[digit] for digit in there])
    unseen = len(digits) - len(there)
    # Without a bound nothing says that what is missing is small.
    small = reply.bound - total + math.log(unseen or 1) <= math.log(_UNSEEN_SHARE)
    if unseen and (reply.bound == -math.inf or not small):
        return unreadable(f"no log-probability of {unseen} digits that may matter")
    return _finite(sum(int(digit) * math.exp(reply.logprobs[digit] - total) for digit in there))


def tagged_choice_verdict(reply: Reply, *, window: int = 80) -> Verdict:
    """Which of two responses a judge names at the end of its text, as [[A]] or [[B]].

    Args:
        reply: with a text.
        window: characters at its end that count.

    Returns:
        1 for A and -1 for B. A text that names both there, or neither, or that was cut off, cannot
        be read.

    Source: RM-R1, Chen et al. 2025, arXiv 2505.02387, whose code looks at the last 80 characters
    and takes a text that it cannot read for a wrong one.

    >>> tagged_choice_verdict(Reply("B is longer, A is right. [[A]]"))
    Verdict(score=1.0, reason='')
    >>> tagged_choice_verdict(Reply("[[A]] or [[B]]")).reason
    'both [[A]] and [[B]] are named'
    """
    if without := _without_text(reply):
        return unreadable(without)
    named = set(re.findall(r"\[\[([AB])\]\]", reply.text[-window:]))
    if len(named) != 1:
        return unreadable(f"{'both' if named else 'neither'} [[A]] and [[B]] are named")
    return Verdict(1.0 if named == {"A"} else -1.0)


def tagged_number_verdict(reply: Reply, *, least: float, most: float) -> Verdict:
    """The number in the last `<answer>` of a text.

    Args:
        reply: with a text.
        least: the smallest number that can be meant.
        most: the largest one.

    Returns:
        The number. A text without one that can be meant, or that was cut off, cannot be read.

    Source: Think-RM, Hong et al. 2025, arXiv 2505.16265, whose code takes 0 for such a text.

    >>> said = Reply("<answer>1</answer> no, <answer> -2 </answer>")
    >>> tagged_number_verdict(said, least=-3.0, most=3.0).score
    -2.0
    """
    if without := _without_text(reply):
        return unreadable(without)
    found = _ANSWER.findall(reply.text)
    number = found[-1].strip() if found else ""
    if not _NUMBER.fullmatch(number):
        return unreadable("no number in an <answer>")
    value = float(number)
    if not least <= value <= most:
        return unreadable(f"the number is not in [{least:g}, {most:g}]")
    return Verdict(value)


def json_verdicts(
    reply: Reply, names: Sequence[str], *, least: float, most: float
) -> list[Verdict]:
    """One number for each name, from the JSON object that closes a text.

    Nothing is repaired. What stands before the object does not count, JSON that the judge quotes
    neither; after it only the end of a code block may stand.

    Args:
        reply: with a text.
        names: of the numbers: responses or criteria.
        least: the smallest number that can be meant.
        most: the largest one.

    Returns:
        A verdict for each name; all of them cannot be read where the text was cut off, does not
        close with an object, or where the object has other names, or one of them twice.

    Source: RewardAnything, Yu et al. 2025, arXiv 2506.03637, asks for such scores of a list.

    >>> text = 'The second is off topic. {"1": 5, "2": 1.5}'
    >>> [verdict.score for verdict in json_verdicts(Reply(text), ["1", "2"], least=1.0, most=5.0)]
    [5.0, 1.5]
    """
    try:
        values = closing_object(reply, names)
    except DataError as error:
        return [unreadable(str(error))] * len(names)
    return [number_verdict(values[name], least, most) for name in names]


def rubric_verdict(
    reply: Reply, weights: Mapping[str, float], *, least: float, most: float
) -> Verdict:
    """The weighted mean of what a judge says of the criteria of a rubric.

        s = Σ_c w_c s_c / Σ_c w_c

    Args:
        reply: with a JSON object as `json_verdicts` reads it.
        weights: w, of each criterion by its name.
        least: the smallest number of a criterion.
        most: the largest one.

    Returns:
        The mean; unreadable where one criterion is.

    Raises:
        DataError: the weights are no positive numbers.

    >>> said = Reply('{"true": 1, "short": 0}')
    >>> rubric_verdict(said, {"true": 3.0, "short": 1.0}, least=0.0, most=1.0).score
    0.75
    """
    if not weights or not all(0 < weight < math.inf for weight in weights.values()):
        raise DataError(f"the weights of criteria are {dict(weights)}; expected positive numbers")
    verdicts = json_verdicts(reply, list(weights), least=least, most=most)
    for verdict in verdicts:
        if not verdict.readable:
            return verdict
    products = (
        weight * verdict.score for weight, verdict in zip(weights.values(), verdicts, strict=True)
    )
    return Verdict(sum(products) / sum(weights.values()))


def _without_text(reply: Reply) -> str:
    """Why a reply has no whole text; empty where it has one."""
    return reply.problem or ("" if reply.ended else "the reply was cut off")


def closing_object(reply: Reply, names: Sequence[str]) -> dict[str, Any]:
    """The JSON object that closes a text.

    Args:
        reply: with a text.
        names: that it has, each once, and no others.

    Raises:
        DataError: there is no such object; the message is the reason.
    """
    if without := _without_text(reply):
        raise DataError(without)
    text = reply.text.rstrip()
    if text.endswith("```"):
        text = text[:-3].rstrip()
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    for start in (found.start() for found in re.finditer(r"\{", text)):
        try:
            values, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if end == len(text):
            break
    else:
        raise DataError("no JSON object closes the reply")
    if values is None or set(values) != set(names):
        raise DataError(f"the JSON object has not just the names {sorted(names)}")
    return dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """None for an object that says a name twice: which one is meant is not known."""
    values = dict(pairs)
    return values if len(values) == len(pairs) else None


def number_verdict(value: Any, least: float, most: float) -> Verdict:
    """A value of JSON as a verdict, where it is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return unreadable("a value is no number")
    if not least <= value <= most:
        return unreadable(f"a number is not in [{least:g}, {most:g}]")
    return Verdict(float(value))


def _finite(score: float) -> Verdict:
    return Verdict(score) if math.isfinite(score) else unreadable("the score is not finite")


def unreadable(reason: str) -> Verdict:
    """A verdict that is none, and why."""
    return Verdict(math.nan, reason)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    if not math.isfinite(top):
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
