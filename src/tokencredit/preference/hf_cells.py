"""Cells of rows, read as what they should be, or an error that names the place."""

import math
from collections.abc import Mapping

from tokencredit.errors import DataError
from tokencredit.preference.hf_rows import Row
from tokencredit.preference.pairs import Prompt


def text_cell(row: Row, column: str) -> str:
    """Text of a column, not blank."""
    value = row.value(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected text that is not empty: drop the "
            "row"
        )
    return value


def messages_cell(row: Row, column: str) -> list[dict[str, str]]:
    """Messages of a column, without the empty fields that tables of messages carry."""
    value = row.value(column)
    good = all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    )
    if not value or not good:
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected messages with 'role' and "
            "'content'"
        )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def prompt_cell(row: Row, column: str) -> Prompt:
    """A prompt: a text, or a list of messages."""
    value = row.value(column)
    return messages_cell(row, column) if isinstance(value, list) else text_cell(row, column)


def label_cell(row: Row, column: str) -> int:
    """A label 0 or 1."""
    value = row.value(column)
    if value not in (0, 1):
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected a label 0 (bad) or 1 (good)"
        )
    return int(value)


def number_cell(row: Row, column: str) -> float:
    """A finite number."""
    value = row.value(column)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{row.place}, column {column!r}: {value!r}; expected a finite number")
    return number


def strength_cell(row: Row, column: str | None) -> float:
    """How much a preference counts; 1 where there is no column."""
    strength = 1.0 if column is None else number_cell(row, column)
    if strength <= 0:
        raise DataError(
            f"{row.place}, column {column!r}: {strength}; expected a strength above 0: exchange "
            "the answers of a preference the other way round, drop a pair without one"
        )
    return strength
