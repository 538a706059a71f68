import json

import pytest
from datasets import Dataset

from tokencredit.errors import DataError
from tokencredit.preference.hf_marked_texts import load_marked_texts
from tokencredit.preference.marked_texts import MarkedText

ROWS = [
    {"text": "a good film", "spans": [[2, 6]], "label": 1},
    {"prompt": "Q: ", "response": " no 日", "annotators": [[[1, 3]], [], [[4, 5], [1, 2]]]},
    {"prompt": [{"role": "user", "content": "Q"}], "response": "A", "spans": [], "label": None},
]
TEXTS = [
    MarkedText("", "a good film", (((2, 6),),), 1),
    MarkedText("Q: ", " no 日", (((1, 3),), (), ((4, 5), (1, 2)))),
    MarkedText([{"role": "user", "content": "Q"}], "A", ((),)),
]


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_every_form(tmp_path):
    path = save(tmp_path / "marked.jsonl", ROWS)
    assert load_marked_texts(path) == TEXTS
    assert load_marked_texts(path, limit=1) == TEXTS[:1]


def test_a_dataset_folder_fills_missing_columns_with_none(tmp_path):
    columns = ("text", "prompt", "response", "spans", "annotators", "label")
    rows = [{column: row.get(column) for column in columns} for row in ROWS[:2]]
    Dataset.from_list(rows).save_to_disk(tmp_path / "marked")
    assert load_marked_texts(tmp_path / "marked") == TEXTS[:2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"spans": [[0, 1]]}, "no column 'text'"),
        ({"text": " ", "spans": []}, "not empty"),
        ({"text": "a"}, "either 'spans' or 'annotators'"),
        ({"text": "a", "spans": [], "annotators": [[]]}, "either 'spans' or 'annotators'"),
        ({"text": "a", "spans": [[0]]}, r"\[0\] is no span"),
        ({"text": "a", "spans": [[0, 1.0]]}, "no span"),
        ({"text": "a", "spans": [3]}, "no span"),
        ({"text": "a", "spans": [[0, 2]]}, "row 1: the span"),
        ({"text": "a", "spans": 3}, "the spans are 3; expected a list"),
        ({"text": "a", "annotators": [3]}, "in 'annotators' a list of such lists"),
        ({"prompt": 3, "response": "a", "spans": []}, "column 'prompt': 3; expected text"),
        ({"text": "\ud800", "spans": []}, "lone surrogate"),
        ({"text": "a", "annotators": []}, "without annotators"),
        ({"text": "a", "spans": [], "label": "good"}, "'good'; expected a label"),
        ({"prompt": [{"role": "user"}], "response": "a", "spans": []}, "messages with 'role'"),
    ],
)
def test_rows_that_cannot_be(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_marked_texts(save(tmp_path / "bad.jsonl", [row]))


def test_no_file():
    with pytest.raises(DataError, match="nowhere"):
        load_marked_texts("./nowhere.jsonl")
