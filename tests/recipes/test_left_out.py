"""Bad rows are left out with the reason, from the command to the file."""

import json

import pytest
from saved_models import save_reward_model
from tiny_policy import write_models
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.cli import main
from tokencredit.errors import DataError
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.recipes.run.left_out import encodable, tell_left_out
from tokencredit.recipes.training.supervised import held_out_rows


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


def reasons(path):
    return [json.loads(line)["reason"] for line in path.open()]


def strictly(arguments, capsys):
    """What a command says that is to end with the first bad row."""
    capsys.readouterr()
    assert main([*arguments, "--dataset.bad_rows", "error"]) == 1
    return capsys.readouterr().err


LONG = "a long film " * 60


def test_an_answer_that_cannot_be_read_ends_no_evaluation(tmp_path, capsys):
    save_reward_model(tmp_path / "model", byte_level())
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    bad = {"chosen": chat, "rejected": [*chat[:1], {"role": "assistant", "content": "B"}]}
    data = write(tmp_path / "pairs.jsonl", [bad, *PAIRS])
    judge = ["evaluate-reward-model", "--reward_model", str(tmp_path / "model"), "--data", data]
    judge += ["--progress", "false", "--show_example", "true"]
    assert main([*judge, "--output", str(tmp_path / "judged")]) == 0
    found = json.loads((tmp_path / "judged/evaluation.json").read_text())
    assert found["accuracy"]["count"] == 4
    names = [json.loads(line)["name"] for line in (tmp_path / "judged/pairs.jsonl").open()]
    assert names == [1, 2, 3, 4]
    (reason,) = reasons(tmp_path / "judged/skipped.jsonl")
    assert "prompts are conversations" in reason
    assert "prompts are conv" in strictly([*judge, "--output", str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()


def test_a_marked_text_that_one_model_cannot_read_is_compared_by_none(tmp_path, capsys):
    save_reward_model(tmp_path / "model", byte_level())
    good = {"text": "a very good film", "spans": [[7, 11]], "label": 1}
    marked = [{**good, "text": LONG}, good, {**good, "label": None}, good]
    texts = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}, {"text": "bad", "label": 7}]
    compare = ["compare-credit", "--reward_model", str(tmp_path / "model")]
    compare += ["--marked", write(tmp_path / "marked.jsonl", marked), "--methods", '["uniform"]']
    compare += ["--baselines.texts", write(tmp_path / "texts.jsonl", texts), "--resamples", "5"]
    compare += ["--faithfulness_documents", "1", "--heatmaps", "0", "--progress", "false"]
    assert main([*compare, "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/comparison.json").read_text())["rows"]
    assert {row["method"]: row["documents"] for row in rows}["uniform"] == 2
    unlabelled, of_baseline, long = reasons(tmp_path / "out/skipped.jsonl")
    assert "direction is 'label' and a marked text has no label" in unlabelled
    assert "texts.jsonl, row 3" in of_baseline
    assert "expected at most 128, what the model can read" in long
    compare += ["--output", str(tmp_path / "new")]
    assert "has no label" in strictly(compare, capsys)
    write(tmp_path / "marked.jsonl", [good])
    assert "texts.jsonl, row 3" in strictly(compare, capsys)
    write(tmp_path / "texts.jsonl", texts[:2])
    write(tmp_path / "marked.jsonl", marked[:2])
    assert "expected at most 128" in strictly(compare, capsys)
    assert not (tmp_path / "new").exists()


def test_a_response_that_cannot_be_scored_ends_no_fit(tmp_path, capsys):
    save_reward_model(tmp_path / "model", byte_level())
    good = [{"prompt": f"film {n}", "response": " is good"} for n in range(3)]
    fit = ["fit-credit", "--reward_model", str(tmp_path / "model"), "--show_example", "true"]
    fit += ["--data", write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": LONG}, *good])]
    fitted = ["--output", str(tmp_path / "fitted.json")]
    assert main([*fit, *fitted]) == 0
    assert "fitted on 3 responses" in capsys.readouterr().out
    (reason,) = reasons(tmp_path / "fitted.skipped.jsonl")
    assert "expected at most 128, what the model can read" in reason
    means = json.loads((tmp_path / "fitted.json").read_text())["length_means"]
    write(tmp_path / "rows.jsonl", good)
    assert main([*fit, *fitted]) == 0
    alone = json.loads((tmp_path / "fitted.json").read_text())["length_means"]
    assert means == pytest.approx(alone, abs=1e-5)
    assert not (tmp_path / "fitted.skipped.jsonl").exists()
    write(tmp_path / "rows.jsonl", [*good, {"prompt": "a", "response": LONG}])
    new = ["--output", str(tmp_path / "new.json")]
    assert "expected at most 128" in strictly([*fit, *new], capsys)
    write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": LONG}] * 2)
    assert main([*fit, *new]) == 1
    assert "no row can be used; the first: row 0 has" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("method", ["pargs", "best-of-n"])
def test_prompts_that_leave_no_room_are_not_answered(tmp_path, capsys, method):
    models = write_models(tmp_path)
    save_reward_model(tmp_path / "short", byte_level(), max_position_embeddings=100)
    prompts = ["the " * 60, "the plot is", "comedy " * 30, "this film"]
    data = write(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    ask = ["generate", "--policy", str(models / "policy"), "--reward_model", str(models / "short")]
    ask += ["--prompts", data, "--method", method, "--sampling.max_new_tokens", "6"]
    ask += ["--progress", "false"] + (["--n", "2"] if method == "best-of-n" else [])
    assert main([*ask, "--output", str(tmp_path / "out")]) == 0
    answered = [json.loads(line)["prompt"] for line in (tmp_path / "out/responses.jsonl").open()]
    assert [prompt.strip() for prompt in answered] == [prompts[1], prompts[3]]
    of_policy, of_reward = reasons(tmp_path / "out/skipped.jsonl")
    assert "LlamaForCausalLM reads at most 64" in of_policy
    assert "at most 100" in of_reward
    assert "at most 64" in strictly([*ask, "--output", str(tmp_path / "new")], capsys)


def test_a_prompt_that_leaves_no_room_ends_no_training(tmp_path, capsys):
    models = write_models(tmp_path)
    prompts = [{"prompt": "the " * 60}, {"prompt": "the plot is"}, {"prompt": "this film"}]
    train = ["train-policy", "--policy", str(models / "policy"), "--steps", "1"]
    train += ["--reward_model", str(models / "reward"), "--batch_size", "4"]
    train += ["--prompts", write(tmp_path / "prompts.jsonl", prompts), "--machine.device", "cpu"]
    train += ["--sampling.max_new_tokens", "5", "--record.progress", "false"]
    assert main([*train, "--output", str(tmp_path / "out")]) == 0
    (reason,) = reasons(tmp_path / "out/skipped.jsonl")
    assert "reads at most 64" in reason
    assert "at most 64" in strictly([*train, "--output", str(tmp_path / "new")], capsys)
    cut = ["--data.tokens", "[2, 4]", "--output", str(tmp_path / "cut")]
    assert main([*train, *cut]) == 0  # of which 4 tokens are used, and fit
    assert not (tmp_path / "cut/skipped.jsonl").exists()


REFUSING = "{% if 'refuse' in messages[0].content %}{{ raise_exception('no') }}{% endif %}"


def test_the_only_row_that_is_held_out_is_bad(tmp_path, capsys):
    tokenizer = byte_level(chat_template=REFUSING + CHAT_TEMPLATE)
    save_reward_model(tmp_path / "model", tokenizer)
    rows = [*PAIRS, {**PAIRS[0], "prompt": "refuse this"}]
    prompts = [row["prompt"] for row in rows]
    seed = next(
        seed
        for seed in range(50)
        if held_out_rows(prompts, prompts, fraction=0.2, seed=seed)[1] == [4]
    )
    train = ["train-reward-model", "--model", str(tmp_path / "model"), "--max_length", "64"]
    train += ["--device", "cpu", "--progress", "false", "--seed", str(seed)]
    share = ["--data", write(tmp_path / "pairs.jsonl", rows), "--evaluation.share", "0.2"]
    assert main([*train, *share, "--output", str(tmp_path / "run")]) == 0
    assert "refuse this" in reasons(tmp_path / "run/skipped.jsonl")[0]
    assert not (tmp_path / "run/prefix_accuracy.json").exists()
    apart = ["--data", write(tmp_path / "good.jsonl", PAIRS)]
    apart += ["--evaluation.data", write(tmp_path / "bad.jsonl", rows[4:])]
    capsys.readouterr()
    assert main([*train, *apart, "--output", str(tmp_path / "new")]) == 1
    assert "no row can be used; the first: the chat template" in capsys.readouterr().err


def test_one_conversation_among_texts_is_left_out_of_training(tmp_path, capsys):
    save_reward_model(tmp_path / "model", byte_level())
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    other = {"chosen": chat, "rejected": [*chat[:1], {"role": "assistant", "content": "B"}]}
    train = ["train-reward-model", "--model", str(tmp_path / "model"), "--max_length", "64"]
    train += ["--data", write(tmp_path / "pairs.jsonl", [other, *PAIRS]), "--device", "cpu"]
    train += ["--evaluation.share", "0", "--progress", "false"]
    assert main([*train, "--output", str(tmp_path / "run")]) == 0
    (reason,) = reasons(tmp_path / "run/skipped.jsonl")
    assert "is a conversation, as 1 of 5 prompts are" in reason
    said = strictly([*train, "--output", str(tmp_path / "new")], capsys)
    assert "is a conversation, as 1 of 5 prompts are" in said
    held = ["--evaluation.data", write(tmp_path / "chats.jsonl", [other] * 2)]
    del train[-4:-2]
    assert main([*train, *held, "--output", str(tmp_path / "new")]) == 1
    assert "expected one kind only in data and evaluation.data" in capsys.readouterr().err
