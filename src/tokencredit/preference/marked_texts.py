"""Texts in which people marked the words that matter, and those marks word by word.

A word is a run of characters without white space, as most people who mark texts are shown them. It
is marked if any of its characters is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.text.alignment import Span


@dataclass(frozen=True)
class MarkedText:
    """A response and what each annotator marked in it.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that was marked.
        annotators: of each annotator the character spans in the response, ends exclusive, in any
            order; none for one who marked nothing.
        label: 1 if the marks say why the text is good, 0 if they say why it is bad; None where
            nothing is said.

    Raises:
        DataError: there is no annotator, a span lies outside the response or is empty, or the
            label is neither 0 nor 1.
    """

    prompt: Prompt
    response: str
    annotators: tuple[tuple[Span, ...], ...]
    label: int | None = None

    def __post_init__(self) -> None:
        if not self.annotators:
            raise DataError("a text without annotators; expected the spans of at least one")
        for start, end in (span for spans in self.annotators for span in spans):
            if not 0 <= start < end <= len(self.response):
                raise DataError(
                    f"the span ({start}, {end}) of a response of {len(self.response)} characters; "
                    "expected 0 <= start < end <= the number of characters: counts are of "
                    "characters, not bytes, and the end is the first character that is not marked"
                )
        if self.label not in (None, 0, 1):
            raise DataError(f"label is {self.label!r}; expected 0 (bad), 1 (good) or none")


def words_of(text: str) -> list[Span]:
    """Where the words of a text stand: its runs of characters without white space.

    Args:
        text: any.

    Returns:
        Character spans in order, ends exclusive; none of them empty.

    >>> words_of(" not good, though")
    [(1, 4), (5, 10), (11, 17)]
    """
    return [match.span() for match in re.finditer(r"\S+", text)]


def marked_words(words: Sequence[Span], marks: Sequence[Span]) -> list[bool]:
    """Which words hold a marked character.

    Args:
        words: character spans.
        marks: character spans in the same text, in any order; they may overlap.

    Returns:
        One entry per word.

    >>> marked_words([(0, 3), (4, 9)], [(7, 12)])
    [False, True]
    """
    return [any(a < end and b > start for a, b in marks) for start, end in words]


def marks_of_annotators(text: MarkedText) -> list[list[bool]]:
    """Which words of the response each annotator marked.

    Args:
        text: with its marks.

    >>> marks_of_annotators(MarkedText("", "a fine film", (((2, 6),), ())))
    [[False, True, False], [False, False, False]]
    """
    words = words_of(text.response)
    return [marked_words(words, spans) for spans in text.annotators]


def marked_by_half(marks: Sequence[Sequence[bool]]) -> list[bool]:
    """Which words at least half of the annotators marked.

    Args:
        marks: one list of equal length per annotator.

    Raises:
        DataError: there is no annotator.

    >>> marked_by_half([[True, True, False], [True, False, False]])
    [True, True, False]
    """
    if not marks:
        raise DataError("the marks of no annotator; expected those of at least one")
    return [2 * sum(votes) >= len(votes) for votes in zip(*marks, strict=True)]
