"""Answers to prompts with what is known of each, from rows of one answer or of a list of them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.preference.cells import Row, ended_cell, rating_cell, text_cell
from tokencredit.preference.hf_answers import LISTS
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import pair_of_row, row_answer, row_prompt
from tokencredit.preference.pair_making import AnswerGroup
from tokencredit.preference.rankings import aspect_mean, aspect_ratings

_WHOLE = DatasetSettings()


@dataclass(frozen=True)
class GroupColumns:
    """Names of the columns of answers, one a row or a list of them."""

    prompt: str | None = None
    """Prompts, texts or lists of chat messages. None takes `prompt` or another usual name. An empty
    name is for answers without a prompt, which are then all compared."""
    response: str = "response"
    """Single answers; the rows of the same prompt stand together."""
    responses: str | None = None
    """Lists of answers; None takes the usual names, or a pair as a list of two. Ratings, scores and
    the like are then lists too."""
    rating: str = "rating"
    """Ratings, more for better answers."""
    error: str = "error"
    """Standard errors of ratings."""
    score: str = "score"
    """Scores by a reward model."""
    group: str = "group"
    """Groups of answers that mean the same: a text or a number."""
    features: str = "features"
    """Vectors of answers, or of prompts for `contrast`."""
    scale: tuple[float, float] | None = None
    """Lowest and highest rating, such as `[1, 5]`; a row outside cannot be used. None allows every
    number."""


@dataclass
class _Answer:
    """One answer, with the key of its prompt."""

    prompt: Prompt
    response: str
    ended: bool
    numbers: dict[str, float] = field(default_factory=dict)
    cells: dict[str, Any] = field(default_factory=dict)


def load_answer_groups(
    path_or_id: str | Path,
    *,
    columns: GroupColumns,
    numbers: Mapping[str, str],
    cells: Mapping[str, str] | None = None,
    optional: Sequence[str] = (),
    split: str = "train",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[AnswerGroup]:
    """Answers grouped by their prompt, in the order in which prompts come first.

    Args:
        path_or_id: as in `load_texts`.
        columns: their names.
        numbers: of the columns of numbers to read, by the names that groups have for them.
        cells: of the columns of other things.
        optional: of these names, those whose column need not be there.
        split: of a folder or Hub id.
        limit: read only this many first rows; None reads all.
        dataset: as in `load_texts`.
        left_out: as there.

    Raises:
        DataError: a column is not there, a list has another length than the answers, a number is
            none or lies outside the scale.
        ConfigError: several columns could be the prompt.
    """
    named = {**numbers, **(cells or {})}

    def answers(row: Row) -> list[_Answer]:
        there = {
            name: column
            for name, column in named.items()
            if name not in optional or row.values.get(column) is not None
        }
        return [
            _Answer(
                prompt,
                text,
                ended,
                {
                    name: rating_cell(cell, column, scale=_scale(columns, name))
                    for name, column in there.items()
                    if name in numbers
                },
                {n: _cell(cell, column) for n, column in there.items() if n not in numbers},
            )
            for prompt, text, ended, cell in _answers(row, columns, there.values())
        ]

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    made = made_rows(answers, rows, name=path_or_id, left_out=left_out)
    return _grouped([answer for some in made for answer in some])


def load_aspect_groups(
    path_or_id: str | Path,
    *,
    columns: GroupColumns,
    split: str = "train",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[AnswerGroup]:
    """Answers of UltraFeedback, with the mean of their aspects as `rating` and each aspect by name.

    Args:
        path_or_id: rows of an instruction and `completions`, objects with `response` and
            `annotations`.
        columns: their scale is that of every aspect; None is 1 to 5.
        split: as in `load_answer_groups`.
        limit: as there.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: a row has no such completions, or a rating lies outside the scale.
    """
    low, high = columns.scale or (1.0, 5.0)

    def answers(row: Row) -> list[_Answer]:
        given = row.value("completions")
        if not isinstance(given, list) or not all(
            isinstance(one, Mapping) and isinstance(one.get("annotations"), Mapping)
            for one in given
        ):
            raise DataError(
                f"{row.place}, column 'completions': {given!r:.200}; expected a list of objects "
                "with 'response' and 'annotations', as UltraFeedback has it"
            )
        prompt = row_prompt(row, columns.prompt, apart=("completions",)) or ""
        found = []
        for at, one in enumerate(given):
            cell = Row(f"{row.place}, completion {at}", one)
            said = {
                name: value if isinstance(value, Mapping) else {}
                for name, value in one["annotations"].items()
            }
            ratings = aspect_ratings(said)
            for name, rating in ratings.items():
                if not (math.isnan(rating) or low <= rating <= high):
                    raise DataError(
                        f"{cell.place}, aspect {name!r}: {rating:g}; expected a rating from "
                        f"{low:g} to {high:g}: mend the row, or set columns.scale"
                    )
            numbers = {"rating": aspect_mean(said), **ratings}
            found.append(_Answer(prompt, text_cell(cell, "response"), ended_cell(cell), numbers))
        return found

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    made = made_rows(answers, rows, name=path_or_id, left_out=left_out)
    return _grouped([answer for some in made for answer in some])


def _answers(
    row: Row, columns: GroupColumns, names: Iterable[str]
) -> list[tuple[Prompt, str, bool, Row]]:
    """Prompt, text and end of each answer of a row, and a row of what is known of it alone."""
    lists = columns.responses or next(
        (name for name in LISTS if isinstance(row.values.get(name), list)), None
    )
    pair = None
    if lists is None and "chosen" in row.values and columns.response not in row.values:
        pair = pair_of_row(row, columns.prompt, "chosen", "rejected", "")
        lists = "chosen"
    if lists is None:
        asked = "prompt" if columns.prompt is None else columns.prompt
        return [(*row_answer(row, asked, columns.response), ended_cell(row), row)]
    texts = row.value(lists) if pair is None else [pair.chosen, pair.rejected]
    parts = {name: row.value(name) for name in names}
    parts["ended"] = row.values.get("ended", True)
    if isinstance(parts["ended"], bool) and isinstance(texts, list):
        parts["ended"] = [parts["ended"]] * len(texts)
    for name, values in {lists: texts, **parts}.items():
        if not isinstance(values, list) or len(values) != len(texts) or not values:
            raise DataError(
                f"{row.place}, column {name!r}: {values!r:.200}; expected a list with one entry "
                f"for each answer in {lists!r}"
            )
    prompt = pair.prompt if pair else row_prompt(row, columns.prompt, apart=(lists, *LISTS)) or ""
    if pair:
        parts["ended"] = list(pair.ended)
    found = []
    for at, text in enumerate(texts):
        place = f"{row.place}, answer {at}"
        cell = Row(place, {lists: text, **{name: values[at] for name, values in parts.items()}})
        found.append((prompt, text_cell(cell, lists), ended_cell(cell), cell))
    return found


def _scale(columns: GroupColumns, name: str) -> tuple[float, float] | None:
    """Only ratings have a scale: errors, scores and factors have units of their own."""
    return columns.scale if name == "rating" else None


def _cell(row: Row, column: str) -> Any:
    """A vector of numbers, or a text or whole number that tells groups apart."""
    value = row.value(column)
    if isinstance(value, list) and value:
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in value):
            raise DataError(
                f"{row.place}, column {column!r}: {value!r:.200}; expected finite numbers"
            )
        return tuple(map(float, value))
    if not isinstance(value, str | int):
        raise DataError(
            f"{row.place}, column {column!r}: {value!r:.200}; expected a vector of numbers, a text "
            "or a whole number"
        )
    return value


def _grouped(answers: Sequence[_Answer]) -> list[AnswerGroup]:
    groups: dict[str, list[_Answer]] = {}
    for answer in answers:
        groups.setdefault(json.dumps(answer.prompt), []).append(answer)
    return [_group(some) for some in groups.values()]


def _group(answers: Sequence[_Answer]) -> AnswerGroup:
    names = dict.fromkeys(name for one in answers for name in one.numbers)
    shared = dict.fromkeys(name for one in answers for name in one.cells)
    for name in shared:
        without = sum(name not in one.cells for one in answers)
        if without:
            raise DataError(
                f"{without} of {len(answers)} answers to {str(answers[0].prompt)[:80]!r} have no "
                f"{name}; expected one for each of them, or for none"
            )
    return AnswerGroup(
        answers[0].prompt,
        tuple(one.response for one in answers),
        tuple(one.ended for one in answers),
        {name: tuple(one.numbers.get(name, math.nan) for one in answers) for name in names},
        {name: tuple(one.cells[name] for one in answers) for name in shared},
    )
