import gzip
import json
import lzma
from pathlib import Path

import pytest

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.hf_comparisons import Comparison, load_comparisons
from tokencredit.preference.hf_rows import dataset_rows

PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_read_as_they_are(tmp_path):
    path = lines(tmp_path / "p.jsonl", PAIR, {**PAIR, "subset": "hard", "id": "x7"})
    assert load_comparisons(path) == [
        Comparison("Q", ("good",), ("bad",), "", 0),
        Comparison("Q", ("good",), ("bad",), "hard", "x7"),
    ]
    named = load_comparisons(
        lines(tmp_path / "n.jsonl", {**PAIR, "part": 3, "key": 1.5}),
        subset_column="part",
        name_column="key",
    )
    assert [(one.subset, one.name) for one in named] == [("3", "1.5")]


@pytest.mark.parametrize(("label", "chosen"), [(1, "A"), (2, "B"), ("1", "A"), ("second", "B")])
def test_a_label_says_which_of_two_columns_is_better(tmp_path, label, chosen):
    row = {"input": "Q", "first": "A", "second": "B"}
    path = lines(tmp_path / "p.jsonl", row | {"label": label}, row | {"label": 2})
    one, _ = load_comparisons(
        path,
        prompt_column="input",
        chosen_column="first",
        rejected_column="second",
        label_column="label",
    )
    assert one.chosen == (chosen,)
    assert set(one.chosen + one.rejected) == {"A", "B"}


@pytest.mark.parametrize("label", [3, None, "tie"])
def test_another_label_is_an_error(tmp_path, label):
    path = lines(tmp_path / "p.jsonl", {**PAIR, "label": label})
    with pytest.raises(DataError, match=r"column 'label'.*expected 'chosen' where the answer of"):
        load_comparisons(path, label_column="label")


@pytest.mark.parametrize("labels", [(0, 1), (1, 1), (1, 0, 2)])
def test_numbers_that_may_mean_either_answer_are_asked_about(tmp_path, labels):
    path = lines(tmp_path / "p.jsonl", *({**PAIR, "label": label} for label in labels))
    with pytest.raises(ConfigError, match=r"set columns\.label_values"):
        load_comparisons(path, label_column="label")


@pytest.mark.parametrize(("values", "better"), [((0, 1), "bad"), ((1, 0), "good")])
def test_what_a_label_means_can_be_said(tmp_path, values, better):
    path = lines(tmp_path / "p.jsonl", {**PAIR, "label": 1})
    (one,) = load_comparisons(path, label_column="label", label_values=values)
    assert one.chosen == (better,)
    with pytest.raises(DataError, match="drop ties"):
        load_comparisons(path, label_column="label", label_values=("a", "b"))


def test_lists_of_texts_are_answers_each(tmp_path):
    row = {"prompt": "Q", "chosen": ["good"], "rejected": ["bad", "worse", "bad"]}
    assert load_comparisons(lines(tmp_path / "p.jsonl", row)) == [
        Comparison("Q", ("good",), ("bad", "worse"), "", 0)
    ]


def test_conversations_are_answers_too(tmp_path):
    ask = {"role": "user", "content": "Q"}
    chats = {side: [ask, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    (one,) = load_comparisons(lines(tmp_path / "p.jsonl", chats))
    assert one == Comparison([ask], ("chosen",), ("rejected",), "", 0)


def test_several_files_are_parts(tmp_path):
    paths = [
        lines(tmp_path / "easy.jsonl", PAIR),
        lines(tmp_path / "hard.jsonl", PAIR, {**PAIR, "subset": "own"}),
    ]
    assert [one.subset for one in load_comparisons(paths)] == ["easy", "hard", "own"]
    assert [one.subset for one in load_comparisons(paths[0])] == [""]


@pytest.mark.parametrize(("suffix", "opened"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_a_file_may_be_one_list(tmp_path, suffix, opened):
    path = tmp_path / f"rows.json{suffix}"
    with opened(path, "wt", encoding="utf-8") as file:
        json.dump([PAIR, PAIR], file, indent=1)
    assert len(load_comparisons(path)) == 2
    assert len(load_comparisons(path, limit=1)) == 1
    assert [row.place for row in dataset_rows(path, split="", limit=None)][1].endswith("row 2")


def test_a_json_file_may_be_lines_too(tmp_path):
    assert len(load_comparisons(lines(tmp_path / "rows.json", PAIR, PAIR))) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PAIR, "rejected": "good"}, "both answers are the same"),
        ({**PAIR, "chosen": ["good", " "]}, "an answer is empty"),
        ({**PAIR, "rejected": []}, "expected an answer in each"),
        ({"chosen": ["an apple", "a pear"], "rejected": ["a plum"]}, r"name it in columns\.prompt"),
        ({"prompt": "Q", "chosen": "good"}, "no column 'rejected'"),
        ({**PAIR, "chosen": 3}, "expected two texts"),
    ],
)
def test_rows_that_say_nothing(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_comparisons(lines(tmp_path / "p.jsonl", row))


def test_unusable_rows_can_be_dropped(tmp_path):
    same = {**PAIR, "rejected": "good"}
    path = lines(tmp_path / "p.jsonl", same, PAIR)
    left_out = []
    assert [one.name for one in load_comparisons(path, left_out=left_out)] == [1]
    assert [one.row for one in left_out] == [1]
    with pytest.raises(DataError, match=r"no row of .* can be used; the first"):
        load_comparisons(lines(tmp_path / "q.jsonl", same), left_out=[])


def test_llmbar_is_read_as_it_is(shared_data):
    found = load_comparisons(
        sorted((shared_data / "llmbar").glob("*.json.xz")),
        prompt_column="input",
        chosen_column="output_1",
        rejected_column="output_2",
        label_column="label",
    )
    assert len(found) == 419
    assert {one.subset for one in found} >= {"natural", "adv_Neighbor"}
