"""Files as people have them: byte order marks, CSV cells, lines cut in two."""

import gzip
import json

import pytest

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.files import file_rows
from tokencredit.preference.hf_datasets import (
    load_labelled_responses,
    load_pairs,
    load_prompts,
    load_texts,
)
from tokencredit.preference.hf_labels import load_step_labels

MARK = b"\xef\xbb\xbf"


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "cell", ["None", "NA", "null", "nan", "42", "007", "1e5", "true", "[1, 2]"]
)
def test_a_cell_of_a_csv_file_is_a_text(tmp_path, cell):
    path = file(tmp_path, "rows.csv", f'text\n"{cell}"\n')
    assert load_texts(path) == [cell]


def test_cells_of_a_folder_of_csv_files_are_texts_too(tmp_path):
    file(tmp_path, "train.csv", "text\n007\nNA\n")
    file(tmp_path, "test.csv.gz", gzip.compress(b"text\n1e5\n"))
    assert load_texts(tmp_path) == ["007", "NA"]
    assert load_texts(tmp_path, split="test") == ["1e5"]


def test_numbers_and_lists_of_csv_files_are_read_where_they_are_asked_for(tmp_path):
    path = file(tmp_path, "rows.csv", "text,label\ngood,1\nbad,False\n")
    assert [row.label for row in load_labelled_responses(path)] == [1, 0]
    steps = file(tmp_path, "steps.csv", 'completions,labels\n"[""a"", ""b""]","[1, 0]"\n')
    assert load_step_labels(steps)[0].labels == (True, False)


@pytest.mark.parametrize("written", [json.dumps, str])
def test_messages_in_a_cell_are_messages(tmp_path, written):
    chat = [{"role": "user", "content": "it's slow"}]
    path = tmp_path / "rows.csv"
    path.write_text('prompt\n"' + written(chat).replace('"', '""') + '"\n')
    assert load_prompts(path) == [chat]


def test_long_cells_and_line_breaks_in_cells(tmp_path):
    text = "a good film\n" * 30_000
    assert load_texts(file(tmp_path, "rows.csv", f'text\n"{text}"\n')) == [text]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", b"the film\n"),
        ("rows.jsonl", b'{"text": "the film"}\n'),
        ("rows.json", b'[{"text": "the film"}]'),
        ("rows.csv", b"text\nthe film\n"),
        ("rows.jsonl.gz", b'{"text": "the film"}\n'),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    whole = MARK + content
    path = file(tmp_path, name, gzip.compress(whole) if name.endswith(".gz") else whole)
    assert load_texts(path) == ["the film"]


def test_a_line_cut_inside_a_character_is_one_bad_row(tmp_path):
    good = json.dumps({"text": "日本"}, ensure_ascii=False).encode()
    path = file(tmp_path, "rows.jsonl", good + b"\n" + good[:-3])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2 cannot be read.*expected UTF-8"):
        load_texts(path)
    left_out = []
    assert load_texts(path, left_out=left_out) == ["日本"]
    assert [one.row for one in left_out] == [2]


def test_a_byte_of_another_encoding_spoils_its_row_alone(tmp_path):
    path = file(tmp_path, "rows.csv", b"text\ncaf\xe9\ngood\n")
    left_out = []
    assert load_texts(path, left_out=left_out) == ["good"]
    assert "row 1, column 'text'" in left_out[0].reason


def test_a_row_of_a_table_with_too_many_cells(tmp_path):
    path = file(tmp_path, "rows.csv", "text,label\na, b,1\nc,0\n")
    left_out = []
    assert [row.response for row in load_labelled_responses(path, left_out=left_out)] == ["c"]
    assert "line 2 has more cells" in left_out[0].reason


def test_a_file_that_ends_too_soon_is_an_error_whatever_the_rows(tmp_path):
    packed = gzip.compress(b"".join(b'{"text": "a film %d"}\n' % n for n in range(9999)))
    path = file(tmp_path, "rows.jsonl.gz", packed[:-200])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz cannot be read after row \d+"):
        load_texts(path, left_out=[])


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = file(tmp_path, "rows.jsonl", b"{}")
    monkeypatch.setattr("tokencredit.preference.files.open", refuse, raising=False)
    with pytest.raises(DataError, match=r"cannot be read after row 0: .*Permission denied"):
        list(file_rows(path))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_no_rows(tmp_path, limit):
    path = file(tmp_path, "rows.txt", "a\n")
    with pytest.raises(ConfigError, match=f"limit is {limit}; expected at least 1"):
        load_texts(path, limit=limit)


def test_parts_of_a_file_are_refused(tmp_path):
    path = file(tmp_path, "rows.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert len(load_pairs(path, split="test")) == 1  # a file has no splits
    with pytest.raises(ConfigError, match=r"split is 'train\[:1\]', and .* is a file"):
        load_pairs(path, split="train[:1]")
