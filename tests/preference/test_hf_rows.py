"""Datasets by configuration, split and slice; rows that are streamed."""

import json

import pytest
from datasets import Dataset, DatasetDict

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.hf_datasets import load_texts
from tokencredit.preference.hf_rows import DatasetSettings

README = """---
configs:
- config_name: films
  data_files:
  - split: train
    path: films/*.jsonl
- config_name: books
  data_files:
  - split: train
    path: books/train.jsonl
  - split: test
    path: books/test.jsonl
---
"""


@pytest.fixture
def folder(tmp_path):
    files = {"films/train": 3, "books/train": 2, "books/test": 1}
    for name, count in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = (json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(count))
        path.write_text("".join(rows))
    (tmp_path / "README.md").write_text(README)
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_configuration_and_a_split_of_a_folder(folder, streaming):
    films, books = (DatasetSettings(config=c, streaming=streaming) for c in ("films", "books"))
    assert load_texts(folder, dataset=films, limit=2) == ["films/train 0", "films/train 1"]
    assert load_texts(folder, dataset=books, split="test") == ["books/test 0"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (None, "train", r"'films', 'books'|'books', 'films'"),
        ("music", "train", r"'films', 'books'|'books', 'films'"),
        ("books", "dev", r"'train', 'test'"),
    ],
)
def test_an_error_says_which_there_are(folder, config, split, streaming, message):
    with pytest.raises(DataError, match=message):
        load_texts(folder, split=split, dataset=DatasetSettings(config, streaming=streaming))


def test_slices(folder, tmp_path):
    films = DatasetSettings("films")
    assert load_texts(folder, split="train[1:]", dataset=films) == [
        "films/train 1",
        "films/train 2",
    ]
    with pytest.raises(ConfigError, match=r"split is 'train\[1:\]' and dataset.streaming true"):
        load_texts(folder, split="train[1:]", dataset=DatasetSettings("films", streaming=True))
    both = DatasetDict(train=Dataset.from_dict({"text": list("abcd")}))
    both.save_to_disk(tmp_path / "saved")
    assert load_texts(tmp_path / "saved", split="train[:50%]") == ["a", "b"]
    both["train"].save_to_disk(tmp_path / "single")
    assert load_texts(tmp_path / "single", split="train[-1:]") == ["d"]


def test_parts_that_such_data_do_not_have(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.revision is 'main'.* is a folder"):
        load_texts(folder, dataset=DatasetSettings("films", revision="main"))
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"dataset\.config is 'films'"):
        load_texts(tmp_path / "saved", dataset=DatasetSettings("films"))


def test_a_saved_folder_that_is_damaged(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot load a dataset"):
        load_texts(tmp_path)
