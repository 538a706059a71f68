"""Edits, labelled spans and labelled steps from a JSON-lines file, a dataset folder or the Hub.

Spans may also be the errors that xCOMET found in translations.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokencredit.errors import DataError
from tokencredit.preference.cells import Row, text_cell
from tokencredit.preference.error_spans import labelled_error_spans
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.labels import (
    EditedResponse,
    LabelledSpan,
    SpanLabelledResponse,
    StepLabels,
)
from tokencredit.preference.layouts import row_prompt

_WHOLE = DatasetSettings()


def load_edits(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    rejected_column: str = "rejected",
    edited_column: str = "edited",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[EditedResponse]:
    """Responses and better versions of them that differ as little as possible.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        prompt_column: of texts or lists of chat messages; None takes `prompt` or another usual
            name where one is there, and else the texts stand alone.
        rejected_column: of the responses as they were.
        edited_column: of the better versions.
        limit: as in `load_texts`.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, or both texts of a row are the same.
    """

    def edit(row: Row) -> EditedResponse:
        rejected, edited = text_cell(row, rejected_column), text_cell(row, edited_column)
        if rejected == edited:
            raise DataError(
                f"{row.place}: {rejected_column!r} and {edited_column!r} hold the same text; "
                "expected an edit: drop the row"
            )
        prompt = row_prompt(row, prompt_column, apart=(rejected_column, edited_column))
        return EditedResponse(prompt or "", rejected, edited)

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(edit, rows, name=path_or_id, left_out=left_out))


def load_labelled_spans(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    text_column: str = "text",
    spans_column: str = "spans",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[SpanLabelledResponse]:
    """Texts with labels on pieces of them.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        prompt_column: of what the text answers; None takes `prompt` or another usual name where one
            is there, and else the text stands alone.
        text_column: of the texts.
        spans_column: of lists of objects with `start`, `end` (in characters of the text, the end
            exclusive) and `label`; an empty list where all of the text is fine.
        limit: as in `load_texts`.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, or a span holds no character.
    """

    def labelled(row: Row) -> SpanLabelledResponse:
        prompt = row_prompt(row, prompt_column, apart=(text_column,))
        spans = tuple(_span(row, spans_column, span) for span in _list(row, spans_column))
        return SpanLabelledResponse(prompt or "", text_cell(row, text_column), spans)

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(labelled, rows, name=path_or_id, left_out=left_out))


def load_error_spans(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    translation_column: str = "mt",
    errors_column: str = "errors",
    least_confidence: float = 0.0,
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[SpanLabelledResponse]:
    """Translations with the errors that xCOMET found in them, labelled with their severities.

    The file is what `comet-score --to_json` writes, an object with a list of rows for each file of
    translations, or rows of the same form in any layout of `load_texts`. A row without errors may
    lack the column.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        prompt_column: of what the translation answers; None takes `prompt` or another usual name
            where one is there, and else `src`, the text that was translated.
        translation_column: of the translations.
        errors_column: of lists of error spans, as in `labelled_error_spans`.
        least_confidence: spans that xCOMET is less sure of are left out.
        limit: as in `load_texts`.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, or a span is none.
    """

    def labelled(row: Row) -> SpanLabelledResponse:
        found = row.values.get(errors_column) is not None
        spans = _list(row, errors_column) if found else []
        try:
            errors = labelled_error_spans(spans, least_confidence=least_confidence)
        except DataError as error:
            raise DataError(f"{row.place}, column {errors_column!r}: {error}") from error
        text = text_cell(row, translation_column)
        prompt = row_prompt(row, prompt_column, apart=(translation_column,))
        prompt = row_prompt(row, "src") if prompt is None else prompt
        return SpanLabelledResponse(prompt or "", text, errors)

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(labelled, rows, name=path_or_id, left_out=left_out))


def load_step_labels(
    path_or_id: str | Path,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    completions_column: str = "completions",
    labels_column: str = "labels",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[StepLabels]:
    """Responses in steps, each step called good or bad: TRL's stepwise supervision.

    Args:
        path_or_id: as in `load_texts`.
        split: of a folder or Hub id.
        prompt_column: of texts or lists of chat messages; None takes `prompt` or another usual
            name where one is there, and else the steps stand alone.
        completions_column: of lists of steps.
        labels_column: of lists of 0, 1, false or true, one per step.
        limit: as in `load_texts`.
        dataset: as there.
        left_out: as there.

    Raises:
        DataError: as in `load_texts`, a label is something else, or labels and steps differ in
            number.
    """

    def steps(row: Row) -> StepLabels:
        completions, labels = _list(row, completions_column), _list(row, labels_column)
        if not all(isinstance(step, str) for step in completions):
            raise _unexpected(row, completions_column, completions, "a list of texts")
        if not all(label in (0, 1) for label in labels):
            raise _unexpected(row, labels_column, labels, "a list of 0 (bad) and 1 (good)")
        prompt = row_prompt(row, prompt_column, apart=(completions_column, labels_column)) or ""
        try:
            return StepLabels(prompt, tuple(completions), tuple(map(bool, labels)))
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from error

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(steps, rows, name=path_or_id, left_out=left_out))


def _list(row: Row, column: str) -> list[Any]:
    value = row.value(column)
    if isinstance(value, str):  # of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _unexpected(row, column, value, "a list, in a table as JSON") from None
    if not isinstance(value, list):
        raise _unexpected(row, column, value, "a list")
    return value


def _span(row: Row, column: str, span: Any) -> LabelledSpan:
    fields = span if isinstance(span, Mapping) else {}
    start, end, label = (fields.get(name) for name in ("start", "end", "label"))
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(label, str):
        raise _unexpected(row, column, span, "an object with whole 'start' and 'end', and 'label'")
    try:
        return LabelledSpan(start, end, label)
    except DataError as error:
        raise DataError(f"{row.place}, column {column!r}: {error}") from error


def _unexpected(row: Row, column: str, value: Any, expected: str) -> DataError:
    return DataError(f"{row.place}, column {column!r}: {value!r}; expected {expected}")
