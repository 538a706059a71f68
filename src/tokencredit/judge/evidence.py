"""Verdicts by criteria with quoted evidence, and where in a response the quotes stand."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokencredit.errors import ConfigError, DataError
from tokencredit.judge.questions import harmless_places, harmless_text
from tokencredit.judge.verdicts import (
    CriterionVerdict,
    Reply,
    Verdict,
    closing_object,
    number_verdict,
    unreadable,
)
from tokencredit.text.alignment import Span

NOWHERE = "a quote stands nowhere in the response"
EMPTY = "a quote is empty"
WITHOUT = "a criterion has no quote"


@dataclass(frozen=True)
class Criterion:
    """What a judge is to score a response by, and to quote evidence for."""

    name: str
    """Name in the reply and in metrics, with anything but line breaks, quotation marks and
    braces."""
    text: str = ""
    """What it means, for the judge, in a line without braces."""
    weight: float = 1.0
    """Weight of its score in the mean over criteria; positive."""

    def __post_init__(self) -> None:
        odd = re.search(r'[\n"\\{}]', self.name) or re.search(r"[\n{}]", self.text)
        if not self.name.strip() or odd or not 0 < self.weight < math.inf:
            raise ConfigError(
                f"a criterion has the name {self.name!r}, the text {self.text!r} and the weight "
                f"{self.weight}; expected a name and a text in a line each, without braces, and a "
                "positive weight"
            )


@dataclass(frozen=True)
class QuotedCriterion:
    """What a judge says of a response by one criterion, and where it sees that.

    Attributes:
        name: of the criterion.
        score: of the response by it.
        share: of the score in that of the response; all shares together are 1.
        spans: characters of the response that are quoted, end exclusive; empty where no quote
            could be found.
    """

    name: str
    score: float
    share: float
    spans: tuple[Span, ...] = ()


def evidence_verdict(
    reply: Reply, criteria: Sequence[Criterion], *, least: float, most: float
) -> Verdict:
    """The weighted mean of what a judge says of criteria, with the quotes that it gives.

        s = Σ_c w_c s_c / Σ_c w_c

    Args:
        reply: with a text that closes with a JSON object: from the name of each criterion to an
            object with `score`, a number, and `quotes`, a list of texts, which may be empty.
        criteria: that were asked about.
        least: the smallest score of a criterion.
        most: the largest one.

    Returns:
        The mean, with score, share and quotes of each criterion under `criteria`. It cannot be
        read where the object has other names, or one criterion cannot be read.

    Source: Wang et al. 2025, arXiv 2509.21319 (RLBFF), whose judges quote evidence for each
    principle.

    >>> said = '{"true": {"score": 2, "quotes": ["on the Danube"]}}'
    >>> verdict = evidence_verdict(Reply(said), [Criterion("true")], least=-3.0, most=3.0)
    >>> verdict.score, verdict.criteria[0].quotes
    (2.0, ('on the Danube',))
    """
    try:
        values = closing_object(reply, [one.name for one in criteria])
    except DataError as error:
        return unreadable(str(error))
    total = math.fsum(one.weight for one in criteria)
    found = []
    for one in criteria:
        said = values[one.name]
        if not isinstance(said, dict) or set(said) != {"score", "quotes"}:
            return unreadable("a criterion has not just a score and quotes")
        quotes = said["quotes"]
        if not isinstance(quotes, list) or not all(isinstance(text, str) for text in quotes):
            return unreadable("quotes are no list of texts")
        score = number_verdict(said["score"], least, most)
        if not score.readable:
            return score
        found.append(CriterionVerdict(one.name, score.score, one.weight / total, tuple(quotes)))
    return Verdict(math.fsum(one.share * one.score for one in found), criteria=tuple(found))


def quote_spans(text: str, quote: str) -> list[Span]:
    """Where a quote stands in a text: as it is, and where it is not, but for case and white space.

    A quote that stands there several times marks every place, since nobody has said which is
    meant. Places at which it begins or ends inside a word count only where there are no others.
    Marks that are broken in questions (`harmless_text`) may be quoted as they were shown.

    Args:
        text: a response.
        quote: what is said to stand in it; white space around it does not count.

    Returns:
        Character spans, end exclusive, in order; none where it stands nowhere.

    >>> quote_spans("It is in Ulm. Ulm is small.", "Ulm")
    [(9, 12), (14, 17)]
    >>> quote_spans("A Very  good film", "very good"), quote_spans("good", "bad")
    ([(2, 12)], [])
    """
    quote = quote.strip()
    shown, places = harmless_text(text), harmless_places(text)
    folded, folded_places = _folded(shown)
    forms = (
        (text, range(len(text)), quote),
        (shown, places, quote),
        (folded, [places[at] for at in folded_places], _folded(quote)[0]),
    )
    for said, place_of, wanted in forms:
        if not wanted:
            return []
        starts = _starts(said, wanted)
        spans = [(place_of[at], place_of[at + len(wanted) - 1] + 1) for at in starts]
        if spans:
            return [span for span in spans if not _cuts_words(text, span)] or spans
    return []


def quoted_criteria(
    response: str, criteria: Sequence[CriterionVerdict]
) -> tuple[tuple[QuotedCriterion, ...], dict[str, int]]:
    """What a judge says of a response by each criterion, with its quotes as places.

    Args:
        response: that is judged.
        criteria: of a verdict on it.

    Returns:
        The criteria in their order, and how many quotes could not be found, by the reason. A
        criterion without quotes counts among them too.

    >>> said = CriterionVerdict("true", 2.0, 1.0, ("Ulm", "Bonn"))
    >>> found, lost = quoted_criteria("In Ulm.", [said])
    >>> found[0].spans, lost
    (((3, 6),), {'a quote stands nowhere in the response': 1})
    """
    found, lost = [], Counter[str]()
    for one in criteria:
        places = [quote_spans(response, quote) for quote in one.quotes]
        for quote, spans in zip(one.quotes, places, strict=True):
            if not spans:
                lost[NOWHERE if quote.strip() else EMPTY] += 1
        lost[WITHOUT] += not one.quotes
        marked = tuple(sorted({span for spans in places for span in spans}))
        found.append(QuotedCriterion(one.name, one.score, one.share, marked))
    return tuple(found), dict(+lost)


def _folded(text: str) -> tuple[str, list[int]]:
    """A text in one case and with single spaces, and the place that each character comes from."""
    characters: list[tuple[str, int]] = []
    for place, character in enumerate(text):
        if not character.isspace():
            characters += [(one, place) for one in character.casefold()]
        elif not characters or characters[-1][0] != " ":
            characters.append((" ", place))
    return "".join(one for one, _ in characters), [place for _, place in characters]


def _starts(text: str, wanted: str) -> Iterator[int]:
    """Every place at which a text begins in another, places that overlap too."""
    at = text.find(wanted)
    while at >= 0:
        yield at
        at = text.find(wanted, at + 1)


def _cuts_words(text: str, span: Span) -> bool:
    """Whether a span begins or ends between two letters or digits."""
    return any(0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum() for at in span)
