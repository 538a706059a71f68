"""Texts, labels, pairs and prompts from a JSON-lines file, a dataset folder or the Hub.

The shapes are TRL's: a text; a text and a label; prompt and completion; prompt, chosen and
rejected, or chosen and rejected alone; a prompt. Prompts may be texts or lists of chat messages.
Names that columns have elsewhere are known (`layouts`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.preference.cells import (
    Row,
    ended_cell,
    label_cell,
    number_cell,
    probability_cell,
    rating_cell,
    strength_cell,
    text_cell,
    user_cell,
)
from tokencredit.preference.hf_rows import (
    DatasetSettings,
    LeftOut,
    dataset_rows,
    made_rows,
    of_one_kind,
)
from tokencredit.preference.layouts import (
    CONVERSATIONS,
    judged_answer,
    pair_of_row,
    row_answer,
    row_prompt,
)
from tokencredit.preference.pairs import (
    LabelledResponse,
    MultiRatedResponse,
    PreferencePair,
    PromptedResponse,
    RatedResponse,
)

_WHOLE = DatasetSettings()


def load_texts(
    path_or_id: str | Path,
    *,
    split: str = "train",
    column: str = "text",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[str]:
    """Plain texts.

    Args:
        path_or_id: a file (`.jsonl`, `.json`, `.txt` or `.csv`, also `.gz` or `.xz`; `.parquet`,
            `.arrow`), a dataset folder, or a Hub id.
        split: of a folder or Hub id, or a slice such as `train[:1000]`; a file has none.
        column: that holds the texts.
        limit: read only this many first rows; None reads all.
        dataset: which configuration and revision is read, and whether it is streamed.
        left_out: takes rows that cannot be used, with the reason; None makes the first of them an
            error.

    Returns:
        Texts as they were, none of them blank.

    Raises:
        DataError: nothing is there, it cannot be read, it has no rows or not that column, or a text
            is empty.
        ConfigError: a setting names a part that such data do not have.
    """

    def text(row: Row) -> str:
        return text_cell(row, column)

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(text, rows, name=path_or_id, left_out=left_out))


def load_labelled_responses(
    path_or_id: str | Path,
    *,
    split: str = "train",
    text_column: str = "text",
    label_column: str = "label",
    prompt_column: str | None = None,
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[LabelledResponse]:
    """Texts called good (1) or bad (0).

    Args:
        path_or_id: as in `load_texts`.
        split: as there.
        text_column: that holds the judged texts; `text` also finds the usual names of answers.
        label_column: that holds 0, 1, false or true.
        prompt_column: of what the text answers; None takes `prompt` or another usual name where
            one is there; an empty name where texts stand alone.
        limit: as there.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, or a label is something else.
        ConfigError: as in `load_texts`, or several columns could be the prompt.
    """

    def labelled(row: Row) -> LabelledResponse:
        prompt, text = judged_answer(row, prompt_column, text_column)
        return LabelledResponse(prompt, text, label_cell(row, label_column), ended_cell(row))

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(labelled, rows, name=path_or_id, left_out=left_out))


def load_rated_responses(
    path_or_id: str | Path,
    *,
    split: str = "train",
    text_column: str = "text",
    rating_column: str = "rating",
    prompt_column: str | None = None,
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[RatedResponse]:
    """Texts with a number each, more for better ones.

    Args:
        path_or_id: as in `load_texts`.
        split: as there.
        text_column: that holds the rated texts; `text` also finds the usual names of answers.
        rating_column: that holds the numbers.
        prompt_column: as in `load_labelled_responses`.
        limit: as there.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, or a rating is no finite number.
        ConfigError: as in `load_labelled_responses`.
    """

    def rated(row: Row) -> RatedResponse:
        prompt, text = judged_answer(row, prompt_column, text_column)
        return RatedResponse(prompt, text, number_cell(row, rating_column), ended_cell(row))

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(rated, rows, name=path_or_id, left_out=left_out))


def load_multi_rated_responses(
    path_or_id: str | Path,
    *,
    rating_columns: Sequence[str],
    rating_scale: tuple[float, float] | None = None,
    split: str = "train",
    text_column: str = "text",
    prompt_column: str | None = None,
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[MultiRatedResponse]:
    """Texts with a number for each of several objectives, of which some may be missing.

    Args:
        path_or_id: as in `load_texts`.
        rating_columns: one of each objective. A number is missing where a cell is empty, null, NaN
            or a text such as `N/A`.
        rating_scale: the least and the greatest rating; None takes every number.
        split: as in `load_texts`.
        text_column: as in `load_rated_responses`.
        prompt_column: as in `load_labelled_responses`.
        limit: as in `load_texts`.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, a column is not there, a rating is no finite number or
            outside the scale, or a row has none at all.
        ConfigError: as in `load_labelled_responses`.
    """

    def rated(row: Row) -> MultiRatedResponse:
        prompt, text = judged_answer(row, prompt_column, text_column)
        ratings = tuple(rating_cell(row, name, scale=rating_scale) for name in rating_columns)
        if all(map(math.isnan, ratings)):
            raise DataError(
                f"{row.place}: nothing is rated in {list(rating_columns)}; expected a number in at "
                "least one of these columns: drop the row"
            )
        return MultiRatedResponse(prompt, text, ratings, ended_cell(row))

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(rated, rows, name=path_or_id, left_out=left_out))


def load_prompted_responses(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    response_column: str = "completion",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[PromptedResponse]:
    """Prompts with their answers; a column `ended` says which of these were not cut off.

    Args:
        path_or_id: as in `load_texts`.
        split: as there.
        prompt_column: of texts or lists of chat messages; `prompt` also finds other usual names.
        response_column: of texts, or of lists of messages that end with the assistant's;
            `completion` and `response` also find other usual names, and whole conversations.
        limit: as there.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, messages do not end with the assistant's, or `ended` is
            neither true nor false.
        ConfigError: as in `load_labelled_responses`.
    """

    def answered(row: Row) -> PromptedResponse:
        answer = row_answer(row, prompt_column, response_column)
        return PromptedResponse(*answer, ended=ended_cell(row))

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(answered, rows, name=path_or_id, left_out=left_out))


def load_pairs(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    margin_column: str | None = None,
    strength_column: str | None = None,
    preferred_column: str | None = None,
    user_column: str | None = None,
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[PreferencePair]:
    """Pairs of responses, the first of each preferred.

    Where there is no prompt column, the prompt is what both texts or conversations begin with, up
    to the last turn that they share. A prompt that both answers repeat is taken off them.

    Args:
        path_or_id: as in `load_texts`.
        split: as there.
        prompt_column: of texts or lists of chat messages; None takes `prompt` or another usual name
            where one is there; an empty name for answers that stand alone.
        chosen_column: of preferred answers: texts, or messages that end with the assistant's.
            Where there is no `chosen`, the columns of `PAIR_LAYOUTS` are known.
        rejected_column: of the other answers.
        margin_column: of numbers, in nats, by how much the chosen one is better; None takes
            `margin` where it is there; an empty name for none.
        strength_column: of numbers above 0, how strong each preference is; None for 1.
        preferred_column: of the probabilities that chosen answers are the better ones; None for 1.
        user_column: of names or numbers of those who prefer; None for nobody.
        limit: as there.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`; an answer is empty, or both are the same; two conversations
            that differ before their last answer; a margin that is no number; a strength that is not
            above 0; a probability outside [0, 1]; a user without a name.
        ConfigError: as in `load_texts`, or the prompt may stand in several columns, or in one of
            another name.
    """

    def pair(row: Row) -> PreferencePair:
        made = pair_of_row(row, prompt_column, chosen_column, rejected_column, margin_column)
        require_two_answers(row, made)
        return replace(
            made,
            strength=strength_cell(row, strength_column),
            preferred=probability_cell(row, preferred_column),
            user=user_cell(row, user_column),
        )

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(pair, rows, name=path_or_id, left_out=left_out))


def require_two_answers(row: Row, pair: PreferencePair) -> None:
    """Raise DataError if nothing can be learnt from a pair."""
    empty = not pair.chosen.strip() or not pair.rejected.strip()
    if empty or pair.chosen == pair.rejected:
        fault = "an answer is empty" if empty else "both answers are the same"
        raise DataError(f"{row.place}: {fault}; expected two different answers: drop the row")


def load_prompts(
    path_or_id: str | Path,
    *,
    split: str = "train",
    column: str = "prompt",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[Prompt]:
    """Prompts to answer: all of them texts, or all of them lists of chat messages.

    Args:
        path_or_id: as in `load_texts`.
        split: as there.
        column: that holds the prompts; `prompt` also finds other usual names, and conversations,
            whose last answer is left out.
        limit: as there.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, or some prompts are texts and some are messages.
        ConfigError: as in `load_labelled_responses`.
    """

    def numbered(row: Row) -> tuple[Row, Prompt]:
        return row, _prompt(row, column)

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    found = of_one_kind(
        list(made_rows(numbered, rows, name=path_or_id, left_out=left_out)),
        prompt=lambda one: one[1],
        place=lambda one: (one[0].number, one[0].place),
        left_out=left_out,
    )
    return [prompt for _, prompt in found]


def _prompt(row: Row, column: str) -> Prompt:
    if column in row.values or column != "prompt":
        found = row_prompt(row, column)
    else:
        found = row_prompt(row, None)
        whole = next((name for name in CONVERSATIONS if row.values.get(name)), None)
        if found is None and whole is not None:
            found = row_answer(row, "prompt", whole)[0]
    if found is None:
        row.value(column)  # is not there, which the error says with the columns that are
    return found or text_cell(row, column)
