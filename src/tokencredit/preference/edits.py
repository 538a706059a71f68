"""Which tokens an edit took out of a response, and which it put in."""

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from tokencredit.errors import DataError
from tokencredit.preference.pairs import Prompt


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
