"""Texts, labels, pairs and prompts from a JSON-lines file, a dataset folder or the Hub.

The shapes are TRL's: a text; a text and a label; prompt and completion; prompt, chosen and
rejected, or chosen and rejected alone; a prompt. Prompts may be texts or lists of chat messages.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.preference.hf_rows import (
    Row,
    dataset_rows,
    label_cell,
    messages_cell,
    number_cell,
    prompt_cell,
    strength_cell,
    text_cell,
)
from tokencredit.preference.pairs import (
    LabelledResponse,
    PreferencePair,
    PromptedResponse,
    RatedResponse,
    conversation_and_answer,
    without_common_prompt,
)


def load_texts(
    path_or_id: str | Path, *, split: str = "train", column: str = "text", limit: int | None = None
) -> list[str]:
    """Plain texts.

    Args:
        path_or_id: a file (`.jsonl` or `.txt` with one text a line, also `.gz` or `.xz`; `.csv`,
            `.parquet`), a dataset folder, or a Hub id.
        split: of a folder or Hub id; a file has none.
        column: that holds the texts.
        limit: read only this many first rows; None reads all.

    Returns:
        Texts as they were, none of them blank.

    Raises:
        DataError: nothing is there, it cannot be read, it has no rows or not that column, or a text
            is empty.
    """
    return [text_cell(row, column) for row in dataset_rows(path_or_id, split=split, limit=limit)]


def load_labelled_responses(
    path_or_id: str | Path,
    *,
    split: str = "train",
    text_column: str = "text",
    label_column: str = "label",
    prompt_column: str | None = None,
    limit: int | None = None,
) -> list[LabelledResponse]:
    """Texts called good (1) or bad (0).

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        text_column: that holds the judged texts.
        label_column: that holds 0, 1, false or true.
        prompt_column: of what the text answers; None where it stands alone.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: as in `load_texts`, or a label is something else.
    """
    return [
        LabelledResponse(
            "" if prompt_column is None else prompt_cell(row, prompt_column),
            text_cell(row, text_column),
            label_cell(row, label_column),
        )
        for row in dataset_rows(path_or_id, split=split, limit=limit)
    ]


def load_rated_responses(
    path_or_id: str | Path,
    *,
    split: str = "train",
    text_column: str = "text",
    rating_column: str = "rating",
    prompt_column: str | None = None,
    limit: int | None = None,
) -> list[RatedResponse]:
    """Texts with a number each, more for better ones.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        text_column: that holds the rated texts.
        rating_column: that holds the numbers.
        prompt_column: of what the text answers; None where it stands alone.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: as in `load_texts`, or a rating is no finite number.
    """
    return [
        RatedResponse(
            "" if prompt_column is None else prompt_cell(row, prompt_column),
            text_cell(row, text_column),
            number_cell(row, rating_column),
        )
        for row in dataset_rows(path_or_id, split=split, limit=limit)
    ]


def load_prompted_responses(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    response_column: str = "completion",
    limit: int | None = None,
) -> list[PromptedResponse]:
    """Prompts with their answers; a column `ended` says which of these were not cut off.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        prompt_column: of texts or lists of chat messages.
        response_column: of texts, or of lists of messages that end with the assistant's.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: as in `load_texts`, messages do not end with the assistant's, or `ended` is
            neither true nor false.
    """
    return [
        PromptedResponse(
            *_answered(row, prompt_cell(row, prompt_column), response_column),
            ended=_ended(row),
        )
        for row in dataset_rows(path_or_id, split=split, limit=limit)
    ]


def _ended(row: Row) -> bool:
    """Whether the answer of a row ended, as its column `ended` says."""
    ended = row.values.get("ended", True)
    if ended not in (True, False):
        raise DataError(
            f"{row.place}, column 'ended': {ended!r}; expected true, or false for an answer that "
            "was cut off"
        )
    return bool(ended)


def load_pairs(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    margin_column: str | None = None,
    strength_column: str | None = None,
    unusable: Literal["error", "drop"] = "error",
    limit: int | None = None,
) -> list[PreferencePair]:
    """Pairs of responses, the first of each preferred.

    Where there is no prompt column, the prompt is what both texts or conversations begin with, up
    to the last turn that they share.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        prompt_column: of texts or lists of chat messages; None takes `prompt` where it is there.
        chosen_column: of preferred answers: texts, or messages that end with the assistant's.
        rejected_column: of the other answers.
        margin_column: of numbers, in nats, by how much the chosen one is better; None for none.
        strength_column: of numbers above 0, how strong each preference is; None for 1.
        unusable: what to do with a pair that holds an empty answer or the same answer twice.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: as in `load_texts`; an unusable pair; two conversations that differ before their
            last answer; a margin that is no number; a strength that is not above 0.
    """
    pairs = []
    for row in dataset_rows(path_or_id, split=split, limit=limit):
        pair = pair_of_row(row, prompt_column, chosen_column, rejected_column, margin_column)
        pair = replace(pair, strength=strength_cell(row, strength_column))
        fault = fault_of_pair(pair)
        if fault is None:
            pairs.append(pair)
        elif unusable == "error":
            raise DataError(
                f"{row.place}: {fault}; expected two different answers: mend the row, or drop "
                "such pairs (unusable='drop')"
            )
    if not pairs:
        raise DataError(f"{path_or_id}: no usable pair; expected two different answers in each")
    return pairs


def load_prompts(
    path_or_id: str | Path,
    *,
    split: str = "train",
    column: str = "prompt",
    limit: int | None = None,
) -> list[Prompt]:
    """Prompts to answer: texts, or lists of chat messages.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        column: that holds the prompts.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: as in `load_texts`.
    """
    return [prompt_cell(row, column) for row in dataset_rows(path_or_id, split=split, limit=limit)]


def _answered(row: Row, prompt: Prompt, column: str) -> tuple[Prompt, str]:
    """Prompt and answer; an answer in messages makes the prompt a list of messages too."""
    if isinstance(row.value(column), list):
        try:
            return conversation_and_answer(prompt, messages_cell(row, column))
        except DataError as error:
            raise DataError(f"{row.place}, column {column!r}: {error}") from error
    return prompt, text_cell(row, column)


def pair_of_row(
    row: Row, prompt_at: str | None, chosen_at: str, rejected_at: str, margin_at: str | None
) -> PreferencePair:
    """The pair of a row, texts or messages, as `load_pairs` says."""
    chosen, rejected = row.value(chosen_at), row.value(rejected_at)
    margin = 0.0 if margin_at is None else number_cell(row, margin_at)
    if prompt_at is None and "prompt" in row.values:
        prompt_at = "prompt"
    given = None if prompt_at is None else prompt_cell(row, prompt_at)
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen_text = _answered(row, given or "", chosen_at)
        other_prompt, rejected_text = _answered(row, given or "", rejected_at)
        if prompt != other_prompt:
            raise DataError(
                f"{row.place}: the conversations differ before their last answer; expected the "
                "same messages up to there"
            )
        return PreferencePair(prompt, chosen_text, rejected_text, margin)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise DataError(
            f"{row.place}: {chosen_at!r} and {rejected_at!r} hold {type(chosen).__name__} and "
            f"{type(rejected).__name__}; expected two texts or two lists of messages"
        )
    if given is not None:
        return PreferencePair(given, chosen, rejected, margin)
    return PreferencePair(*without_common_prompt(chosen, rejected), margin)


def fault_of_pair(pair: PreferencePair) -> str | None:
    """Why nothing can be learnt from a pair."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "an answer is empty"
    return "both answers are the same" if pair.chosen == pair.rejected else None
