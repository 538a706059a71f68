"""Labels of pieces of a text, handed to the tokens that hold those pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tokencredit.alignment import Span, spans_of_words
from tokencredit.errors import DataError
from tokencredit.preference.pairs import Prompt

Overlapping = Literal["worst", "error"]


@dataclass(frozen=True)
class LabelledSpan:
    """A piece of a text and what was said of it.

    Attributes:
        start: first character.
        end: character behind the last one.
        label: a severity, say.

    Raises:
        DataError: the start is negative, or not before the end.
    """

    start: int
    end: int
    label: str

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise DataError(
                f"the span ({self.start}, {self.end}) of {self.label!r} holds no character; "
                "expected 0 <= start < end, the end exclusive"
            )


@dataclass(frozen=True)
class SpanLabelledResponse:
    """A response with labels on pieces of it.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that the spans are about.
        spans: its labelled pieces, in any order; none where all of it is fine.
    """

    prompt: Prompt
    response: str
    spans: tuple[LabelledSpan, ...]


def token_span_labels(
    text: str,
    labelled_spans: Sequence[LabelledSpan],
    token_spans: Sequence[Span],
    *,
    severities: Sequence[str],
    overlapping: Overlapping = "worst",
) -> list[int]:
    """The number of the label of each token: 0 outside all spans, k for the k-th severity.

    A token belongs to every span that it shares a character with. The space that many tokenizers
    join to the word behind it does not count, so that a span that ends before a space leaves the
    next word alone. Spans are never moved to fit: one that no token shares a character with labels
    nothing.

    Args:
        text: that the spans are about.
        labelled_spans: in characters of `text`, in any order.
        token_spans: of each token, in characters of `text`, end exclusive; an empty one (a special
            token) is in no span.
        severities: the names of the labels, from the mildest to the worst.
        overlapping: where two spans share characters or a token: the "worst" label wins, or it is
            an "error" for two spans to share characters (a token between two spans still takes the
            worse label).

    Returns:
        One number in [0, len(severities)] per token.

    Raises:
        DataError: a span ends behind the text, its label is none of `severities`, or two spans
            share characters and that is an error.

    Source: Ramos et al. 2024, arXiv 2411.05986 (severity of the span that a token overlaps); the
    worst label wins as a choice of ours, and so does leaving out leading spaces.

    >>> spans = [LabelledSpan(4, 7, "minor")]
    >>> token_span_labels("not so bad", spans, [(0, 3), (3, 6), (6, 10)], severities=["minor"])
    [0, 1, 0]
    """
    _check_spans(text, labelled_spans, severities, overlapping)
    numbers = {label: number for number, label in enumerate(severities, start=1)}
    return [
        max(
            (
                numbers[span.label]
                for span in labelled_spans
                if max(start, span.start) < min(end, span.end)
            ),
            default=0,
        )
        for start, end in spans_of_words(token_spans, text)
    ]


def _check_spans(
    text: str,
    labelled_spans: Sequence[LabelledSpan],
    severities: Sequence[str],
    overlapping: Overlapping,
) -> None:
    for span in labelled_spans:
        if span.end > len(text):
            raise DataError(
                f"the span ({span.start}, {span.end}) of {span.label!r} ends behind the text, "
                f"which has {len(text)} characters; expected spans inside it: count characters, "
                "not bytes or tokens, of the very text that is given"
            )
        if span.label not in severities:
            raise DataError(
                f"the span ({span.start}, {span.end}) has the label {span.label!r}; expected one "
                f"of {list(severities)}"
            )
    if overlapping == "error":
        _require_apart(labelled_spans)


def _require_apart(labelled_spans: Sequence[LabelledSpan]) -> None:
    ordered = sorted(labelled_spans, key=lambda span: (span.start, span.end))
    for one, other in pairwise(ordered):
        if other.start < one.end:
            raise DataError(
                f"the spans ({one.start}, {one.end}) of {one.label!r} and ({other.start}, "
                f"{other.end}) of {other.label!r} share characters; expected spans apart from "
                "each other, or overlapping='worst'"
            )
