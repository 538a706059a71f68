"""Marked texts from a JSON-lines file, a dataset folder or the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.preference.hf_rows import Row, dataset_rows
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.text.alignment import Span


def load_marked_texts(
    path_or_id: str | Path, *, split: str = "train", limit: int | None = None
) -> list[MarkedText]:
    """Texts with the character spans that people marked.

    A row has `text`, or `prompt` (text or messages) and `response`; `spans`, a list of `[start,
    end]` in the text or response, or `annotators`, one such list for each of them; and may have
    `label`, 0 or 1.

    Args:
        path_or_id: a JSON-lines file (also `.gz` or `.xz`), a dataset folder, or a Hub id.
        split: of a folder or Hub id; a file has none.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: nothing is there, it cannot be read, or a row has no text or no marks, or marks
            or a label that cannot be.
    """
    return [_marked(row) for row in dataset_rows(path_or_id, split=split, limit=limit)]


def _marked(row: Row) -> MarkedText:
    values = row.values
    prompt = (row.value("prompt") if "prompt" in values else None) or ""
    response = row.value("text" if values.get("response") is None else "response")
    if not isinstance(response, str) or not response.strip():
        raise DataError(f"{row.place}: the text is {response!r}; expected text that is not empty")
    try:
        return MarkedText(_prompt(prompt), response, _annotators(values), _label(values))
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


def _label(values: Mapping[str, Any]) -> int | None:
    label = values.get("label")
    if label not in (None, 0, 1):
        raise DataError(f"label is {label!r}; expected 0 (bad), 1 (good) or none")
    return None if label is None else int(label)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    messages = [
        {"role": message["role"], "content": message["content"]}
        for message in (value if isinstance(value, list) else ())
        if isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    ]
    if not isinstance(value, list) or len(messages) < len(value):
        raise DataError(
            f"prompt is {value!r}; expected text, or messages with 'role' and 'content'"
        )
    return messages


def _annotators(values: Mapping[str, Any]) -> tuple[tuple[Span, ...], ...]:
    given = [values[name] for name in ("spans", "annotators") if values.get(name) is not None]
    if len(given) != 1:
        raise DataError(
            f"the columns are {list(values)}; expected either 'spans' or 'annotators', a list of "
            "spans for each of them"
        )
    lists = given if values.get("annotators") is None else given[0]
    if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        raise DataError(
            f"the spans are {given[0]!r}; expected a list of them, in 'annotators' a list of such "
            "lists"
        )
    return tuple(tuple(_span(span) for span in one) for one in lists)


def _span(value: Any) -> Span:
    is_pair = isinstance(value, Sequence) and len(value) == 2
    if not is_pair or not all(type(end) is int for end in value):
        raise DataError(f"{value!r} is no span; expected [start, end], two whole numbers")
    return value[0], value[1]
