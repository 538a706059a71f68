"""Bad rows are left out with the reason, from the command to the file."""

import json

import pytest
from saved_models import save_reward_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.cli import main
from tokencredit.errors import DataError
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.recipes.left_out import encodable, tell_left_out


def longer_than_two(texts: list[str]) -> list[int]:
    for text in texts:
        if len(text) < 3:
            raise DataError(f"{text} is too short")
    return [len(text) for text in texts]


@pytest.mark.parametrize("bad", [(0,), (9,), (3, 4), (1, 5, 8)])
def test_rows_that_cannot_be_encoded_take_no_others_with_them(bad):
    texts = ["a" if at in bad else "a" * (at + 3) for at in range(10)]
    left_out = []
    assert encodable(longer_than_two, texts, left_out) == [
        at + 3 for at in range(10) if at not in bad
    ]
    assert len(left_out) == len(bad)
    assert all(one.row is None and "a is too short" in one.reason for one in left_out)


def test_the_first_bad_row_is_an_error_where_that_is_asked_for():
    with pytest.raises(DataError, match="b is too short"):
        encodable(longer_than_two, ["aaa", "b"], None)


def test_no_good_row_is_an_error():
    with pytest.raises(DataError, match="too short"):
        encodable(longer_than_two, ["a", "b"], [])


def test_reasons_go_to_the_file_and_away_again(tmp_path, capsys):
    path = tmp_path / "skipped.jsonl"
    tell_left_out([LeftOut(3, "row 3: no"), LeftOut(5, "row 5: no")], path)
    assert [json.loads(line)["row"] for line in path.open()] == [3, 5]
    said = capsys.readouterr().err
    assert "left out 2 rows" in said
    assert "row 3: no" in said
    assert "row 5" not in said
    tell_left_out([], path)
    assert not path.exists()
    tell_left_out([LeftOut(3, "row 3: no"), LeftOut(5, "row 5: no")], None)
    assert "row 5: no" in capsys.readouterr().err


PAIRS = [{"prompt": f"film {n}", "chosen": f" good {n}", "rejected": " bad"} for n in range(4)]
BAD = [{"prompt": "x", "chosen": "a", "rejected": "a"}, {"prompt": "x"}]


def write(path, rows, *, cut=b""):
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + cut)
    return str(path)


def test_bad_rows_of_a_training_and_an_evaluation(tmp_path, capsys):
    save_reward_model(tmp_path / "model", byte_level())
    data = write(tmp_path / "pairs.jsonl", [*PAIRS, *BAD], cut=b'{"prompt": "\xe6\x97')
    train = ["train-reward-model", "--data", data, "--model", str(tmp_path / "model")]
    train += ["--max_length", "64", "--device", "cpu", "--progress", "false"]
    assert main([*train, "--output", str(tmp_path / "run")]) == 0
    assert len((tmp_path / "run/skipped.jsonl").read_text().splitlines()) == 3
    assert "left out 3 rows" in capsys.readouterr().err
    strict = ["--dataset.bad_rows", "error", "--output", str(tmp_path / "strict")]
    assert main([*train, *strict]) == 1
    assert "row 5: both answers are the same" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()
    judge = ["evaluate-reward-model", "--reward_model", str(tmp_path / "model"), "--data", data]
    assert main([*judge, "--output", str(tmp_path / "judged"), "--progress", "false"]) == 0
    found = json.loads((tmp_path / "judged/evaluation.json").read_text())
    assert found["accuracy"]["count"] == 4
    assert len((tmp_path / "judged/skipped.jsonl").read_text().splitlines()) == 3


def test_a_conversation_that_the_template_refuses_ends_no_training(tmp_path, capsys):
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = byte_level(bos=False, chat_template=template + CHAT_TEMPLATE)
    save_reward_model(tmp_path / "model", tokenizer)
    rows = [
        {side: [{"role": role, "content": f"Q{n}"}, {"role": "assistant", "content": side}]
         for side in ("chosen", "rejected")}
        for n, role in enumerate(["user", "system", "user", "user"])
    ]  # fmt: skip
    train = ["train-reward-model", "--data", write(tmp_path / "chats.jsonl", rows)]
    train += ["--model", str(tmp_path / "model"), "--max_length", "64", "--device", "cpu"]
    train += ["--evaluation.share", "0", "--progress", "false", "--output", str(tmp_path / "run")]
    assert main(train) == 0
    (reason,) = map(json.loads, (tmp_path / "run/skipped.jsonl").open())
    assert "refuses messages with the roles ['system', 'assistant']" in reason["reason"]
    assert "Q1" in reason["reason"]
    capsys.readouterr()
