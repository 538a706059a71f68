"""Marked texts from a JSON-lines file, a dataset folder or the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokencredit.errors import DataError
from tokencredit.preference.cells import Row, label_cell, text_cell
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import row_prompt
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.text.alignment import Span

_WHOLE = DatasetSettings()


def load_marked_texts(
    path_or_id: str | Path,
    *,
    split: str = "train",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[MarkedText]:
    """Texts with the character spans that people marked.

    A row has `text`, or `prompt` (text or messages) and `response`; `spans`, a list of `[start,
    end]` in the text or response, or `annotators`, one such list for each of them; and may have
    `label`, 0 or 1.

    Args:
        path_or_id: a JSON-lines file (also `.gz` or `.xz`), a dataset folder, or a Hub id.
        split: of a folder or Hub id; a file has none.
        limit: as in `load_texts`.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: nothing is there, it cannot be read, or a row has no text or no marks, or marks
            or a label that cannot be.
    """
    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(_marked, rows, name=path_or_id, left_out=left_out))


def _marked(row: Row) -> MarkedText:
    values = row.values
    response = text_cell(row, "text" if values.get("response") is None else "response")
    alone = "prompt" in values and not values["prompt"]
    prompt = None if alone else row_prompt(row, None, apart=("text", "response"))
    label = None if values.get("label") in (None, "") else label_cell(row, "label")
    try:
        return MarkedText(prompt or "", response, _annotators(values), label)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


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
