import json
from pathlib import Path

import pytest
from datasets import Dataset

from tokencredit.errors import DataError
from tokencredit.preference.hf_labels import (
    load_edits,
    load_error_spans,
    load_labelled_spans,
    load_step_labels,
)
from tokencredit.preference.labels import (
    EditedResponse,
    LabelledSpan,
    SpanLabelledResponse,
    StepLabels,
)

CHAT = [{"role": "user", "content": "Hi"}]


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_edits(tmp_path):
    path = jsonl(
        tmp_path,
        {"rejected": "a bad film", "edited": "a good film"},
        {"prompt": CHAT, "rejected": "No.", "edited": "Yes."},
    )
    assert load_edits(path) == [
        EditedResponse("", "a bad film", "a good film"),
        EditedResponse(CHAT, "No.", "Yes."),
    ]
    other = jsonl(tmp_path, {"ask": "Q", "worse": "a", "better": "b", "prompt": "not this"})
    named = load_edits(
        other, prompt_column="ask", rejected_column="worse", edited_column="better", limit=1
    )
    assert named == [EditedResponse("Q", "a", "b")]


def test_an_edit_that_changes_nothing_is_an_error(tmp_path):
    path = jsonl(tmp_path, {"rejected": "a", "edited": "b"}, {"rejected": "a", "edited": "a"})
    with pytest.raises(DataError, match=r"row 2: 'rejected' and 'edited' hold the same text"):
        load_edits(path)


def test_spans(tmp_path):
    path = jsonl(
        tmp_path,
        {"text": "so bad", "spans": [{"start": 3, "end": 6, "label": "major"}]},
        {"text": "fine", "spans": []},
    )
    expected = SpanLabelledResponse("", "so bad", (LabelledSpan(3, 6, "major"),))
    assert load_labelled_spans(path) == [expected, SpanLabelledResponse("", "fine", ())]


def test_spans_of_a_dataset_folder(tmp_path):
    rows = [{"q": "Q", "a": "so bad", "marks": [{"start": 0, "end": 2, "label": "minor"}]}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    loaded = load_labelled_spans(
        tmp_path / "data", prompt_column="q", text_column="a", spans_column="marks"
    )
    assert loaded == [SpanLabelledResponse("Q", "so bad", (LabelledSpan(0, 2, "minor"),))]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 3, "end": 3, "label": "major"}, "row 1, column 'spans': the span .* holds no"),
        ({"start": -1, "end": 3, "label": "major"}, "expected 0 <= start < end"),
        ({"start": 0.5, "end": 3, "label": "major"}, "expected an object with whole 'start'"),
        ({"start": 0, "end": 3}, "expected an object with whole 'start'"),
        ([0, 3], "expected an object with whole 'start'"),
    ],
)
def test_spans_that_are_none(tmp_path, span, message):
    with pytest.raises(DataError, match=message):
        load_labelled_spans(jsonl(tmp_path, {"text": "so bad", "spans": [span]}))


FOOD = {"text": "food", "start": 3, "end": 8, "severity": "minor", "confidence": 0.4}
ROWS = [
    {"src": "Essen", "mt": "my food", "COMET": 0.9, "errors": [FOOD]},
    {"src": "Ja", "mt": "Yes"},
]
MARKED = [
    SpanLabelledResponse("Essen", "my food", (LabelledSpan(3, 8, "minor"),)),
    SpanLabelledResponse("Ja", "Yes", ()),
]


def test_errors_as_comet_score_writes_them(tmp_path):
    """Rows of each file of translations, under its name, indented."""
    path = tmp_path / "errors.json"
    path.write_text(json.dumps({"a.txt": ROWS, "b.txt": ROWS[1:]}, indent=4))
    assert load_error_spans(path) == [*MARKED, MARKED[1]]
    assert load_error_spans(path, limit=1) == MARKED[:1]


def test_errors_in_rows(tmp_path):
    assert load_error_spans(jsonl(tmp_path, *ROWS)) == MARKED
    unsure = SpanLabelledResponse("Essen", "my food", ())
    assert load_error_spans(jsonl(tmp_path, *ROWS), least_confidence=0.5) == [unsure, MARKED[1]]
    none = [ROWS[1] | {"errors": None}, ROWS[1] | {"errors": []}]
    assert load_error_spans(jsonl(tmp_path, *none)) == [MARKED[1]] * 2
    prompted = jsonl(tmp_path, ROWS[1] | {"prompt": CHAT})
    assert load_error_spans(prompted) == [SpanLabelledResponse(CHAT, "Yes", ())]
    assert load_error_spans(prompted, prompt_column="src") == MARKED[1:]
    other = jsonl(tmp_path, {"q": "Essen", "a": "my food", "marks": [FOOD]})
    named = load_error_spans(
        other, prompt_column="q", translation_column="a", errors_column="marks"
    )
    assert named == MARKED[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"errors": [FOOD | {"start": "3"}]}, "row 1, column 'errors': .* is no error span"),
        ({"errors": FOOD}, "row 1, column 'errors': .*expected a list"),
        ({"errors": [], "mt": " "}, "column 'mt'.*expected text"),
    ],
)
def test_errors_that_are_none(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_error_spans(jsonl(tmp_path, ROWS[1] | row))


def test_a_row_of_errors_without_a_source(tmp_path):
    with pytest.raises(DataError, match="row 1 has no column 'src'"):
        load_error_spans(jsonl(tmp_path, {"mt": "Yes"}))


def test_steps(tmp_path):
    path = jsonl(
        tmp_path,
        {"prompt": "add", "completions": ["a", "b"], "labels": [True, False]},
        {"completions": ["c"], "labels": [1]},
    )
    assert load_step_labels(path) == [
        StepLabels("add", ("a", "b"), (True, False)),
        StepLabels("", ("c",), (True,)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a", "b"], "labels": [1]}, "row 1: labels holds 1 and completions 2"),
        ({"completions": ["a"], "labels": [1, 0]}, "row 1: labels holds 2 and completions 1"),
        ({"completions": ["a"], "labels": [2]}, "expected a list of 0 .bad. and 1 .good."),
        ({"completions": ["a"], "labels": 1}, "column 'labels': 1; expected a list"),
        ({"completions": [1], "labels": [1]}, "expected a list of texts"),
        ({"completions": [], "labels": []}, "expected at least one step"),
        ({"labels": [1]}, "no column 'completions'"),
    ],
)
def test_steps_that_are_none(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_step_labels(jsonl(tmp_path, row))
