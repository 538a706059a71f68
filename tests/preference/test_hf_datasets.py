import gzip
import json
import lzma
import math
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from tokencredit.errors import DataError
from tokencredit.preference.hf_datasets import (
    load_labelled_responses,
    load_multi_rated_responses,
    load_pairs,
    load_prompted_responses,
    load_prompts,
    load_rated_responses,
    load_texts,
)
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.preference.pairs import (
    LabelledResponse,
    MultiRatedResponse,
    PreferencePair,
    PromptedResponse,
    RatedResponse,
)

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
OTHER = {"role": "assistant", "content": "Ha"}


def jsonl(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    openers = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.xz", "rows.json"])
def test_texts_of_files(tmp_path, name):
    path = jsonl(tmp_path, {"text": "one"}, {"text": " two "}, name=name)
    assert load_texts(path) == ["one", " two "]
    assert load_texts(str(path), limit=1) == ["one"]


def test_line_ends_inside_texts_end_no_line(tmp_path):
    """U+0085 and U+2028 occur in reviews; str.splitlines would break there."""
    text = "good\x85bad\u2028end\x0cfeed"
    assert load_texts(jsonl(tmp_path, {"text": text}, {"text": "next"})) == [text, "next"]


def test_plain_lines(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("one\u2028still one\n\ntwo\n", encoding="utf-8")
    assert load_texts(path) == ["one\u2028still one", "two"]


def test_blank_lines_of_a_file_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n  \n{"text": "two"}\n')
    assert load_texts(path) == ["one", "two"]


def test_tables(tmp_path):
    rows = Dataset.from_dict({"text": ["one", "two"], "label": [1, 0]})
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_csv(tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        found = load_labelled_responses(tmp_path / name)
        assert found == [LabelledResponse("", "one", 1), LabelledResponse("", "two", 0)]


def test_saved_datasets_and_their_splits(tmp_path):
    train, test = Dataset.from_dict({"text": ["one"]}), Dataset.from_dict({"text": ["two"]})
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "single")
    assert load_texts(tmp_path / "both", split="test") == ["two"]
    assert load_texts(tmp_path / "single") == ["one"]
    with pytest.raises(DataError, match=r"splits \['train', 'test'\]; expected 'dev'"):
        load_texts(tmp_path / "both", split="dev")


def test_a_folder_of_data_files(tmp_path):
    jsonl(tmp_path, {"text": "one"}, name="train.jsonl")
    jsonl(tmp_path, {"text": "two"}, name="test.jsonl")
    assert load_texts(tmp_path, split="test") == ["two"]


def test_labels_with_prompts(tmp_path):
    path = jsonl(tmp_path, {"prompt": "Hi", "answer": "Ho", "good": True})
    found = load_labelled_responses(
        path, text_column="answer", label_column="good", prompt_column="prompt"
    )
    assert found == [LabelledResponse("Hi", "Ho", 1)]


def test_completions_as_text_and_as_messages(tmp_path):
    path = jsonl(
        tmp_path,
        {"prompt": "Hi", "completion": " Ho"},
        {"prompt": [USER], "completion": [ANSWER]},
    )
    assert load_prompted_responses(path) == [
        PromptedResponse("Hi", " Ho"),
        PromptedResponse([USER], "Ho"),
    ]


def test_pairs_with_and_without_a_prompt(tmp_path):
    path = jsonl(
        tmp_path,
        {"prompt": "Hi", "chosen": " Ho", "rejected": " Ha", "lead": 2},
        {"chosen": "Hi\n\nAssistant: Ho", "rejected": "Hi\n\nAssistant: Ha", "lead": 0.5},
        {"prompt": "Hi", "chosen": [ANSWER], "rejected": [OTHER], "lead": 0},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER], "lead": 0},
    )
    assert load_pairs(path, margin_column="lead") == [
        PreferencePair("Hi", " Ho", " Ha", 2.0),
        PreferencePair("Hi\n\nAssistant:", " Ho", " Ha", 0.5),
        PreferencePair([USER], "Ho", "Ha", 0.0),
        PreferencePair([USER], "Ho", "Ha", 0.0),
    ]


def test_answers_that_were_cut_off(tmp_path):
    pair = {"prompt": "Hi", "chosen": " Ho", "rejected": " Ha"}
    path = jsonl(tmp_path, pair, {**pair, "chosen_ended": False}, {**pair, "rejected_ended": False})
    assert [one.ended for one in load_pairs(path)] == [(True, True), (False, True), (True, False)]
    judged = {"text": "Ho", "label": 1, "rating": 2, "ended": False}
    path = jsonl(tmp_path, judged, {**judged, "ended": True})
    for load in (load_labelled_responses, load_rated_responses):
        assert [one.ended for one in load(path)] == [False, True]
    several = load_multi_rated_responses(path, rating_columns=["rating", "label"])
    assert [one.ended for one in several] == [False, True]
    with pytest.raises(DataError, match="column 'chosen_ended': 'no'; expected true, or false"):
        load_pairs(jsonl(tmp_path, {**pair, "chosen_ended": "no"}))


def test_prompts(tmp_path):
    assert load_prompts(jsonl(tmp_path, {"prompt": "Hi"})) == ["Hi"]
    assert load_prompts(jsonl(tmp_path, {"prompt": [USER]})) == [[USER]]


def test_empty_fields_of_message_tables_go(tmp_path):
    """Parquet gives every message every field that any message has."""
    path = jsonl(tmp_path, {"prompt": [USER | {"tool_calls": None}]})
    assert load_prompts(path) == [[USER]]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"chosen": " Ho", "rejected": " "}, "an answer is empty"),
        ({"chosen": " Ho", "rejected": " Ho"}, "both answers are the same"),
    ],
)
def test_unusable_pairs(tmp_path, row, fault):
    usable = {"prompt": "Hi", "chosen": " Ho", "rejected": " Ha"}
    path = jsonl(tmp_path, usable, {"prompt": "Hi"} | row)
    with pytest.raises(DataError, match=rf"row 2: {fault}.*drop the row"):
        load_pairs(path)
    left_out = []
    assert len(load_pairs(path, left_out=left_out)) == 1
    assert [(one.row, fault in one.reason) for one in left_out] == [(2, True)]
    with pytest.raises(DataError, match=r"no row of .* can be used; the first"):
        load_pairs(jsonl(tmp_path, {"prompt": "Hi"} | row), left_out=[])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": [ANSWER], "rejected": "Ha"}, "hold list and str"),
        ({"prompt": "Hi", "chosen": [USER], "rejected": [OTHER]}, "to be the assistant's"),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, USER, OTHER]},
            "conversations differ before their last answer",
        ),
        ({"chosen": "Ho", "rejected": "Ha", "lead": "much"}, "expected a finite number"),
        ({"chosen": "Ho", "rejected": "Ha", "lead": float("nan")}, "expected a finite number"),
        ({"chosen": "Ho", "rejected": "Ha", "strength": 0}, "expected a strength above 0"),
        ({"chosen": "Ho", "rejected": "Ha", "share": 1.5}, "'share': 1.5; expected the probab"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, row, message):
    path = jsonl(tmp_path, {"lead": 0, "strength": 1, "share": 1} | row)
    with pytest.raises(DataError, match=message):
        load_pairs(path, margin_column="lead", strength_column="strength", preferred_column="share")


def test_how_strong_preferences_are(tmp_path):
    rows = [{"prompt": "Hi", "chosen": " Ho", "rejected": " Ha", "strength": s} for s in (3, 0.5)]
    path = jsonl(tmp_path, *rows)
    pairs = load_pairs(path, strength_column="strength")
    assert [pair.strength for pair in pairs] == [3.0, 0.5]
    assert [pair.strength for pair in load_pairs(path)] == [1.0, 1.0]


def test_probabilities_of_pairs_are_read_where_a_column_is_named(tmp_path):
    rows = [
        {"prompt": "Hi", "chosen": " Ho", "rejected": " Ha", "preferred": p} for p in (1, "0.2")
    ]
    path = jsonl(tmp_path, *rows)
    pairs = load_pairs(path, preferred_column="preferred")
    assert [pair.preferred for pair in pairs] == [1.0, 0.2]
    assert [pair.preferred for pair in load_pairs(path)] == [1.0, 1.0]


def test_ratings(tmp_path):
    path = jsonl(
        tmp_path,
        {"text": "good", "rating": 9, "q": "Hi"},
        {"text": "bad", "rating": -1.5, "q": "x"},
    )
    assert load_rated_responses(path) == [
        RatedResponse("", "good", 9.0),
        RatedResponse("", "bad", -1.5),
    ]
    asked = load_rated_responses(path, prompt_column="q", limit=1)
    assert asked == [RatedResponse("Hi", "good", 9.0)]
    with pytest.raises(DataError, match="expected a finite number"):
        load_rated_responses(jsonl(tmp_path, {"text": "good", "rating": "nine"}))


def test_several_ratings_of_which_some_are_missing(tmp_path):
    path = jsonl(
        tmp_path,
        {"text": "good", "help": 4, "true": None, "short": "N/A", "q": "Hi"},
        {"text": "bad", "help": "1.5", "true": 0, "short": float("nan"), "q": "x"},
    )
    names = ("help", "true", "short")
    found = load_multi_rated_responses(path, rating_columns=names, rating_scale=(0.0, 4.0))
    assert [(one.prompt, one.response) for one in found] == [("", "good"), ("", "bad")]
    nan = pytest.approx(math.nan, nan_ok=True)
    assert [list(one.ratings) for one in found] == [[4.0, nan, nan], [1.5, 0.0, nan]]
    asked = load_multi_rated_responses(path, rating_columns=["help"], prompt_column="q", limit=1)
    assert asked == [MultiRatedResponse("Hi", "good", (4.0,))]


def test_several_ratings_that_cannot_be_used(tmp_path):
    path = jsonl(tmp_path, {"text": "good", "help": 5, "true": None})
    with pytest.raises(DataError, match=r"'help': 5; expected a rating from 0 to 4"):
        load_multi_rated_responses(path, rating_columns=["help"], rating_scale=(0.0, 4.0))
    with pytest.raises(DataError, match=r"no column 'short'; expected it among .*'help'"):
        load_multi_rated_responses(path, rating_columns=["help", "short"])
    with pytest.raises(DataError, match=r"nothing is rated in \['true'\]"):
        load_multi_rated_responses(path, rating_columns=["true"])
    infinite = jsonl(tmp_path, {"text": "good", "help": "inf"}, {"text": "bad", "help": "great"})
    left_out: list[LeftOut] = []
    with pytest.raises(DataError, match="'inf'; expected a finite number"):
        load_multi_rated_responses(infinite, rating_columns=["help"])
    mixed = jsonl(tmp_path, {"text": "a", "help": "great"}, {"text": "b", "help": 2})
    kept = load_multi_rated_responses(mixed, rating_columns=["help"], left_out=left_out)
    assert [one.response for one in kept] == ["b"]
    assert len(left_out) == 1


def test_a_prompt_column_that_is_named_must_be_there(tmp_path):
    path = jsonl(tmp_path, {"chosen": "Hi\nHo", "rejected": "Hi\nHa"})
    with pytest.raises(DataError, match="no column 'question'"):
        load_pairs(path, prompt_column="question")


@pytest.mark.parametrize("label", [2, "good", None, -1])
def test_labels_are_zero_or_one(tmp_path, label):
    path = jsonl(tmp_path, {"text": "one", "label": label})
    with pytest.raises(DataError, match=r"row 1, column 'label'.*expected a label 0 \(bad\) or 1"):
        load_labelled_responses(path)


@pytest.mark.parametrize("text", ["", " \n", None, 3])
def test_empty_text(tmp_path, text):
    path = jsonl(tmp_path, {"text": "one"}, {"text": text})
    with pytest.raises(DataError, match=r"row 2, column 'text'.*expected text that is not empty"):
        load_texts(path)


@pytest.mark.parametrize("prompt", [[], [{"role": "user"}], ["Hi"], [{"content": "Hi"}]])
def test_broken_messages(tmp_path, prompt):
    path = jsonl(tmp_path, {"prompt": prompt})
    with pytest.raises(DataError, match="expected messages with 'role' and 'content'"):
        load_prompts(path)


def test_a_missing_column_names_those_that_are_there(tmp_path):
    path = jsonl(tmp_path, {"review": "one", "stars": 3})
    with pytest.raises(DataError, match=r"no column 'text'; expected it among \['review', 'stars'"):
        load_texts(path)


def test_lists_in_one_indented_object(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"a": [{"text": "one"}], "b": [{"text": "two"}]}, indent=1))
    assert load_texts(path) == ["one", "two"]
    path.write_text(json.dumps({"a": [{"text": "one"}], "b": 3}, indent=1))
    with pytest.raises(DataError, match="holds one object, and not all in it are lists; expected"):
        load_texts(path)
    path.write_text("{\n  not json")
    with pytest.raises(DataError, match="is not JSON that can be read"):
        load_texts(path)


@pytest.mark.parametrize("name", ["absent.jsonl", "/absent/folder", "./absent", "a/b/c", "x.csv"])
def test_a_missing_file_is_not_sought_on_the_hub(name):
    with pytest.raises(DataError, match=r"there is no file or folder .*expected a \.jsonl file"):
        load_texts(name)


def test_an_unknown_hub_id(tmp_path):
    with pytest.raises(DataError, match="cannot load a dataset from 'nobody/nothing'"):
        load_texts("nobody/nothing")


def test_a_folder_without_data(tmp_path):
    with pytest.raises(DataError, match="cannot load a dataset"):
        load_texts(tmp_path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.touch()
    with pytest.raises(DataError, match="has no rows"):
        load_texts(path)


LINES = {
    "cut": '{"text": ',
    "no JSON": "not json",
    "text": '"a string"',
    "list": "[1]",
    "digits": "9" * 5000,
    "brackets": "[" * 9999 + "]" * 9999,
    "levels": "[" * 200 + "]" * 200,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_lines_that_are_no_objects(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"(line 2 is not JSON|row 2.*expected a JSON object)"):
        load_texts(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"text": "\xff"}\n'),
        ("rows.jsonl.gz", b"not gzip"),
        ("rows.jsonl.xz", b"not xz"),
        ("rows.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 9, mtime=0)[:-9]),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_texts(tmp_path / name)


def test_hh_rlhf_has_the_faults_it_is_known_for(shared_data):
    """36 pairs of equal answers and 11 with an empty last turn among 8,552."""
    found, rows = [], 0
    for path in sorted((shared_data / "hh_rlhf").glob("*.jsonl.gz")):
        found += load_pairs(path, left_out=[])
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += sum(1 for _ in file)
    assert rows - len(found) == 36 + 11
    assert all(pair.prompt.endswith("\n\nAssistant:") for pair in found)
    assert not any("\n\nHuman:" in pair.chosen for pair in found)


@pytest.mark.parametrize("cell", ["\ud800", "🙂 \udfff", ["a", {"content": "\ud800"}]])
def test_half_of_a_character_is_refused_where_it_is_read(tmp_path, cell):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "other": cell}) + "\n")
    assert load_texts(path) == ["a"]
    with pytest.raises(DataError, match=r"row 1, column 'other'.*lone surrogate"):
        load_texts(path, column="other")


def test_a_number_beyond_all_floats_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "rating": 10**400}) + "\n")
    with pytest.raises(DataError, match="expected a finite number"):
        load_rated_responses(path)


def test_a_compressed_file_with_a_wrong_byte(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    packed = bytearray(gzip.compress(b'{"text": "a good film"}\n' * 50))
    packed[12:16] = b"\xff" * 4
    path.write_bytes(packed)
    with pytest.raises(DataError, match="cannot be read"):
        load_texts(path)
