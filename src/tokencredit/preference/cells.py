"""Cells of rows read as what they should be, or an error that names the place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokencredit.batch import Message, Prompt
from tokencredit.errors import DataError


@dataclass(frozen=True)
class Row:
    """One row of a dataset.

    Attributes:
        place: where it stands, for messages.
        values: by column.
        number: counted from 1.
        fault: why it could not even be read; None where it could.
    """

    place: str
    values: Mapping[str, Any]
    number: int = 0
    fault: DataError | None = None

    def value(self, column: str) -> Any:
        """What stands in a column.

        Raises:
            DataError: there is no such column, or a text in it has half a character, which no
                tokenizer reads.
        """
        if column not in self.values:
            raise DataError(
                f"{self.place} has no column {column!r}; expected it among {list(self.values)}: "
                "name the right one"
            )
        value = self.values[column]
        if _has_half_characters(value):
            raise DataError(
                f"{self.place}, column {column!r}: {value!r:.200} holds a lone surrogate, half of "
                "a character; expected Unicode text, in a file UTF-8: mend or drop the row"
            )
        return value


def _has_half_characters(value: Any) -> bool:
    """Whether a text, or one inside lists and objects, cannot be written as UTF-8."""
    if isinstance(value, str):
        try:
            return not (value.isascii() or value.encode())
        except UnicodeEncodeError:
            return True
    parts = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(parts, list) and any(map(_has_half_characters, parts))


def text_cell(row: Row, column: str) -> str:
    """Text of a column, not blank."""
    value = row.value(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.place}, column {column!r}: {value!r:.500}; expected text that is not empty: "
            "drop the row"
        )
    return value


def messages_cell(row: Row, column: str) -> list[Message]:
    """Messages of a column, as `read_messages` reads them."""
    value = row.value(column)
    try:
        return read_messages(value)
    except DataError as error:
        raise DataError(f"{row.place}, column {column!r}: {error}") from error


def prompt_cell(row: Row, column: str) -> Prompt:
    """A prompt: a text, or a list of messages."""
    value = row.value(column)
    return messages_cell(row, column) if isinstance(value, list) else text_cell(row, column)


# Who speaks, by the names of ShareGPT.
_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# What a template may render beside the content; other fields say something about the turn.
_RENDERED = ("tool_calls", "tool_call_id", "function_call", "reasoning_content")


def read_messages(value: Any) -> list[Message]:
    """Messages with "role" and "content", from those forms in which they are written.

    Fields that a chat template may render stay: `tool_calls`, `tool_call_id`, `function_call`,
    `reasoning_content`, and the `name` of a tool. Empty fields go, as tables of messages carry
    them, and so does what else is said about a turn.

    Args:
        value: a list of objects with `role` and `content`, or with `from` and `value` (ShareGPT).
            Content may be a list of parts, of which all are texts; they are joined.

    Raises:
        DataError: it is none, or a part is an image or another thing that is no text.

    >>> read_messages([{"from": "human", "value": "Hi"}])
    [{'role': 'user', 'content': 'Hi'}]
    >>> read_messages([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    if not isinstance(value, list) or not value:
        raise _no_messages(value)
    return [_message(one, value) for one in value]


def _message(one: Any, all_of_them: Any) -> Message:
    if not isinstance(one, Mapping):
        raise _no_messages(all_of_them)
    role, content = one.get("role"), one.get("content")
    if role is None and isinstance(one.get("from"), str):
        speaker, content = one["from"], one.get("value")
        role = _SHAREGPT.get(speaker.lower())
        if role is None:
            raise DataError(
                f"a turn from {speaker!r}; expected one of {', '.join(_SHAREGPT)}: calls of tools "
                "belong into 'tool_calls' of a message with 'role'"
            )
    kept = {name: one[name] for name in _RENDERED if one.get(name) not in (None, "", [], {})}
    if role == "tool" and one.get("name"):
        kept["name"] = one["name"]
    if content is None and ("tool_calls" in kept or "function_call" in kept):
        content = ""
    text = _joined_parts(content)
    if not isinstance(role, str) or text is None:
        raise _no_messages(all_of_them)
    return {"role": role, "content": text, **kept}


def _joined_parts(content: Any) -> str | None:
    """The text of a message; None where it is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" or not isinstance(text, str):
            raise DataError(
                f"a part of a message is {part!r:.200}, of the type {kind!r}; expected text alone: "
                "images and sounds are not read"
            )
        texts.append(text)
    return "".join(texts)


def _no_messages(value: Any) -> DataError:
    return DataError(f"{value!r:.500}; expected messages with 'role' and 'content'")


def ended_cell(row: Row, column: str = "ended") -> bool:
    """Whether the answer of a row ended; True where no column says otherwise.

    Raises:
        DataError: the column holds neither true nor false.
    """
    ended = row.values.get(column, True)
    if ended not in (True, False):
        raise DataError(
            f"{row.place}, column {column!r}: {ended!r}; expected true, or false for an answer "
            "that was cut off"
        )
    return bool(ended)


def label_cell(row: Row, column: str) -> int:
    """A label 0 or 1, also as a text of a table."""
    value = row.value(column)
    written = {"0": 0, "1": 1, "false": 0, "true": 1}
    label = written.get(value.strip().lower()) if isinstance(value, str) else value
    if label not in (0, 1):
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected a label 0 (bad) or 1 (good)"
        )
    return int(label)


def number_cell(row: Row, column: str) -> float:
    """A finite number, also as a text of a table."""
    value = row.value(column)
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except OverflowError:
        number = math.inf
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{row.place}, column {column!r}: {value!r}; expected a finite number")
    return number


_MISSING = ("", "-", "n/a", "na", "nan", "none", "null")


def rating_cell(row: Row, column: str, *, scale: tuple[float, float] | None = None) -> float:
    """A number within a scale; NaN where nothing, NaN or a word for nothing stands.

    Args:
        row: that has the column.
        column: of the rating.
        scale: its least and its greatest number; None takes every number.

    Raises:
        DataError: there is no such column, or something else in it.
    """
    value = row.value(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, str) and value.strip().lower() in _MISSING:
        return math.nan
    rating = number_cell(row, column)
    if scale is not None and not scale[0] <= rating <= scale[1]:
        raise DataError(
            f"{row.place}, column {column!r}: {rating:g}; expected a rating from {scale[0]:g} to "
            f"{scale[1]:g}, the scale in the settings: mend the row, or set another scale"
        )
    return rating


def probability_cell(row: Row, column: str | None) -> float:
    """The probability that the chosen answer is the better one; 1 where there is no column."""
    probability = 1.0 if column is None else number_cell(row, column)
    if not 0 <= probability <= 1:
        raise DataError(
            f"{row.place}, column {column!r}: {probability:g}; expected the probability that the "
            "chosen response is the better one, from 0 to 1"
        )
    return probability


def user_cell(row: Row, column: str | None) -> str | None:
    """Who says it, by a name or a whole number; None where there is no column.

    Raises:
        DataError: the cell is neither, or empty.
    """
    if column is None:
        return None
    value = row.value(column)
    named = isinstance(value, str) and value.strip()
    if not named and (isinstance(value, bool) or not isinstance(value, int)):
        raise DataError(
            f"{row.place}, column {column!r}: {value!r:.200}; expected the name or the number of a "
            "user: name the right column, or drop the row"
        )
    return str(value)


def strength_cell(row: Row, column: str | None) -> float:
    """How much a preference counts; 1 where there is no column."""
    strength = 1.0 if column is None else number_cell(row, column)
    if strength <= 0:
        raise DataError(
            f"{row.place}, column {column!r}: {strength}; expected a strength above 0: exchange "
            "the answers of a preference the other way round, drop a pair without one"
        )
    return strength
