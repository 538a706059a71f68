"""Responses made of steps, each called good or bad: what process reward models learn from."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from tokencredit.alignment import Span
from tokencredit.errors import DataError
from tokencredit.preference.pairs import Prompt


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
        """The whole response: steps, each with the separator behind it."""
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
        step_separator: what stands behind every step.

    Returns:
        Numbers from 0, never falling: `segment_ids` of one response.

    Raises:
        DataError: a token lies behind the last step, or no token ends in a step that others follow.

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
