"""Labels of pieces of a text, handed to the tokens that hold those pieces.

The pieces are spans that people marked, what an edit took out or put in, or steps that were called
good or bad.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from rapidfuzz.distance import Levenshtein

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.text.alignment import Span, spans_of_words

Overlapping = Literal["worst", "error"]


@dataclass(frozen=True)
class LabelledSpan:
    """A piece of a text and what was said of it.

    Attributes:
        start: first character.
        end: the first character after it.
        label: a severity, for example.

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
    join to the word after it does not count, so that a span that ends before a space leaves the
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
        DataError: a span ends after the text, its label is none of `severities`, or two spans
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
                f"the span ({span.start}, {span.end}) of {span.label!r} ends after the text, "
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


@dataclass(frozen=True)
class EditedResponse:
    """A response and a better version of it that differs as little as possible.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the texts stand alone.
        rejected: the response as it was.
        edited: the better version.

    Raises:
        DataError: both texts are the same, so that nothing is learnt from them.
    """

    prompt: Prompt
    rejected: str
    edited: str

    def __post_init__(self) -> None:
        if self.rejected == self.edited:
            raise DataError(
                f"rejected and edited are both {self.rejected!r}; expected two different texts: "
                "drop the row"
            )


def edit_labels(
    rejected_ids: Sequence[int], edited_ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What a shortest edit says of every token: put in +1, taken out -1, kept 0.

    The edit is a Levenshtein alignment: the fewest insertions, deletions and substitutions of
    tokens. A substitution takes one token out and puts one in. Where several edits are as short,
    one of them is taken, always the same. The labels depend on the tokenizer.

    Args:
        rejected_ids: tokens of the response as it was.
        edited_ids: tokens of the better version.

    Returns:
        Labels of the edited tokens, in {0, 1}, and of the rejected ones, in {-1, 0}. What is kept
        on one side is, in the same order, what is kept on the other.

    Source: Yoon et al. 2024, arXiv 2407.16574 (TLCR), where an external language model writes the
    edited version.

    >>> edit_labels([5, 6, 7, 8], [5, 9, 7])
    ([0, 1, 0], [0, -1, 0, -1])
    """
    edited, rejected = [0] * len(edited_ids), [0] * len(rejected_ids)
    for edit in Levenshtein.opcodes(list(rejected_ids), list(edited_ids)):
        if edit.tag != "equal":
            rejected[edit.src_start : edit.src_end] = [-1] * (edit.src_end - edit.src_start)
            edited[edit.dest_start : edit.dest_end] = [1] * (edit.dest_end - edit.dest_start)
    return edited, rejected


@dataclass(frozen=True)
class StepLabels:
    """A response in steps, and for each step whether it is good.

    The fields are those of the dataset type "stepwise supervision" of TRL.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        completions: the steps, in order.
        labels: True on good steps.

    Raises:
        DataError: there is no step, a step is empty, or steps and labels differ in number.
    """

    prompt: Prompt
    completions: tuple[str, ...]
    labels: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.completions or not all(self.completions):
            raise DataError(
                f"completions is {list(self.completions)}; expected at least one step, and text "
                "in each: drop the row, or join the empty step to its neighbour"
            )
        if len(self.labels) != len(self.completions):
            raise DataError(
                f"labels holds {len(self.labels)} and completions {len(self.completions)} steps; "
                "expected one label per step"
            )

    def response(self, *, step_separator: str) -> str:
        """The whole response: steps, each with the separator after it."""
        return "".join(step + step_separator for step in self.completions)


def step_segment_ids(
    completions: Sequence[str], token_spans: Sequence[Span], *, step_separator: str
) -> list[int]:
    r"""The number of the step that each token belongs to.

    A separator belongs to the step before it, so that a step is judged once it is closed. A token
    with characters of two steps belongs to the later one: the earlier one must not be judged by
    what comes after it. A token without characters (an end of sequence) belongs to the step that
    ends where it stands.

    Args:
        completions: the steps, in order.
        token_spans: of each token, in characters of the response that the steps make, in order and
            end exclusive. May stop early, where a response was cut.
        step_separator: what stands after every step.

    Returns:
        Numbers from 0, never falling: `segment_ids` of one response.

    Raises:
        DataError: a token lies after the last step, or no token ends in a step that others follow.

    >>> step_segment_ids(["a b", "c"], [(0, 1), (1, 3), (3, 4), (4, 5)], step_separator="\n")
    [0, 0, 0, 1]
    """
    ends = list(accumulate(len(step) + len(step_separator) for step in completions))
    numbers: list[int] = []
    for _, end in token_spans:
        if end > ends[-1]:
            raise DataError(
                f"a token ends at character {end} and the {len(ends)} steps at {ends[-1]}; "
                "expected token_spans of the response that completions and step_separator make"
            )
        numbers.append(bisect_left(ends, end))
    _require_no_gap(numbers)
    return numbers


def _require_no_gap(numbers: Sequence[int]) -> None:
    for before, after in pairwise([-1, *numbers]):
        if after > before + 1:
            raise DataError(
                f"no token ends in step {before + 1} of completions; expected at least one token "
                "in each step: join the step to its neighbour, or set another step_separator"
            )
