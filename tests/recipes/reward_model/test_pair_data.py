import json

import pytest
from named_settings import configured
from tiny_reward_training import config, lines, write_inputs
from tiny_tokenizers import byte_level

from tokencredit.cli import recipe_of
from tokencredit.errors import DataError, TokenCreditWarning
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.text.hf_reading import Reading

LONG = " a good film and a good plot and a good scene and a good plot and a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    ends = [(" good", " bad")] * 4
    lines(
        folder / "equal.jsonl",
        [
            {"prompt": f"rate {row}:", "chosen": LONG + good, "rejected": LONG + bad}
            for row, (good, bad) in enumerate(ends)
        ],
    )
    short = {"prompt": "rate it:", "chosen": " good", "rejected": " bad"}
    some = (folder / "equal.jsonl").read_text() + json.dumps(short) + "\n"
    (folder / "some.jsonl").write_text(some)
    return folder


COMMANDS = {
    "train-reward-model": {"truncation": "response-end"},
    "train-vocabulary-reward": {"truncation": "response-end", "objective": "genarm"},
    "train-implicit-reward": {"truncation": "response-end"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_pairs_of_equal_tokens_are_left_out_and_counted(folder, tmp_path, command):
    if command == "train-implicit-reward":
        pytest.importorskip("trl", reason="TRL is an extra")
    recipe, kind = recipe_of(command)
    shared = {"model": str(folder / "lm"), "max_length": 16, "held_out": 0.0, "progress": False}

    def settings(data, output):
        paths = {"data": str(folder / data), "output": str(tmp_path / output)}
        return configured(kind, **paths, **shared, **COMMANDS[command])

    with pytest.warns(TokenCreditWarning, match="4 of 5 pairs have equal sides"):
        run = recipe(settings("some.jsonl", "some"))
    assert json.loads((run / "metrics.json").read_text())["equal_pairs"] == 4
    with pytest.raises(DataError, match=r"4 of 4 pairs have equal sides .* raise max_length"):
        recipe(settings("equal.jsonl", "equal"))
    assert not (tmp_path / "equal").exists()


def test_a_rewriter_learns_nothing_from_two_rows_that_became_one(folder, tmp_path):
    recipe, kind = recipe_of("train-rewriter")
    paths = {"data": str(folder / "some.jsonl"), "output": str(tmp_path / "run")}
    # What is read loses its start first: nothing of the answers is left but what ends the prompt.
    settings = {"model": str(folder / "lm"), "max_length": 3, "held_out": 0.0, "progress": False}
    with pytest.raises(DataError, match="5 of 5 pairs have equal sides"):
        recipe(configured(kind, **paths, **settings))


def test_held_out_pairs_that_say_nothing_are_left_out(folder, tmp_path):
    held_out = {"eval_data": str(folder / "some.jsonl"), "truncation": "response-end"}
    with pytest.warns(TokenCreditWarning, match="4 of 5 held-out pairs have equal sides"):
        run = train_reward_model(config(folder, tmp_path / "rm", max_length=24, **held_out))
    assert json.loads((run / "prefix_accuracy.json").read_text())[-1]["count"] == 1


@pytest.mark.parametrize("length", [34, 12, 3])
def test_both_answers_of_a_pair_keep_the_same_prompt(length):
    tokenizer = byte_level(bos=True)
    prompt = "the film is good and the plot is bad , a good film , a bad film"
    answers = " a good plot", " a very good plot then a good scene , a very good plot then a scene"
    reading = Reading(tokenizer, append_eos=True)
    sides, how = ([prompt], [answers[0]], [answers[1]]), {"truncation": "prompt-start"}
    ((one, other),) = reading.pairs(*sides, max_length=length, **how)
    assert one.input_ids[: one.start] == other.input_ids[: other.start]
    assert len(one) <= len(other) == length
    ((whole, _),) = reading.pairs(*sides, max_length=500, **how)
    assert whole.input_ids[: whole.start] != one.input_ids[: one.start]
