"""A judge trained on labelled pairs, asked afterwards as it was trained."""

import json
import sys

import pytest
import torch
from tiny_policy import write_models
from transformers import AutoModelForCausalLM

from tokencredit.cli import main
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.recipes.judge.train_judge import TrainJudgeConfig, answer_logits, train_judge
from tokencredit.recipes.settings import settings_from

SETUPS = """
from functools import partial
from tokencredit.judge.setups import JudgeSetup
from tokencredit.judge.verdicts import two_way_verdict


def read(reply, count):
    return [two_way_verdict(reply, "good", "bad")]


def each():
    return JudgeSetup("one", "", "each", "{responses} this film is", read, ("good", "bad"))


def two():
    return JudgeSetup("two", "", "group", "{responses} this film is", read, ("good", "bad"))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_models(tmp_path, max_position_embeddings=256)
    (tmp_path / "setups_in_training.py").write_text(SETUPS)
    monkeypatch.syspath_prepend(tmp_path)
    # Which response is better, one word says.
    rows = [
        {"prompt": f"the {name} is", "chosen": f" superb{end}.", "rejected": f" dull{end}."}
        for name in ("plot", "film", "cast", "lead", "music", "story", "script", "scene")
        for end in ("", ", and long", " and old")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield tmp_path
    sys.modules.pop("setups_in_training", None)


def settings(folder, setup, **changes):
    usual = {
        "data": str(folder / "pairs.jsonl"),
        "model": str(folder / "policy"),
        "output": str(folder / "judge"),
        "judge.setup": f"setups_in_training:{setup}",
        "max_length": 256,
        "training.learning_rate": 0.01,
        "training.max_steps": 40,
        "training.batch_size": 8,
        "evaluation.share": 0.25,
        "device": "cpu",
        "progress": False,
    }
    return settings_from(TrainJudgeConfig, usual | changes)


@pytest.mark.parametrize(("setup", "lora"), [("each", 0), ("two", 0), ("each", 4)])
def test_it_learns_to_judge_and_the_commands_ask_it_as_it_was_trained(folder, setup, lora):
    train_judge(settings(folder, setup, **{"lora.rank": lora}))
    metrics = json.loads((folder / "judge" / "metrics.json").read_text())
    assert metrics["held_out_pair_accuracy"] == 1.0
    assert metrics["held_out_loss"] < 0.6
    assert ("held_out_turns" in metrics) == (setup == "two")
    asked = ["--judge.setup", f"setups_in_training:{setup}", "--output", str(folder / "found")]
    asked += ["--data", str(folder / "pairs.jsonl")]
    assert main(["evaluate-judge", "--model", str(folder / "judge"), *asked]) == 0
    found = json.loads((folder / "found" / "evaluation.json").read_text())
    assert found["accuracy"]["share"] == 1.0


def test_the_logit_is_that_of_the_next_token_whatever_the_padding(folder):
    model = load_model(AutoModelForCausalLM, folder / "policy")
    tokenizer = load_tokenizer(folder / "policy")
    rows = [tokenizer(text).input_ids for text in ("the plot is", "a very long film is")]
    width = max(map(len, rows)) + 2
    answers = ([5, 7], [9])
    for pad in (0, 3):
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        found = answer_logits(model, ids, mask, answers=answers)
        for value, row in zip(found, rows, strict=True):
            last = model(torch.tensor([row])).logits[0, -1]
            expected = torch.logaddexp(last[5], last[7]) - last[9]
            assert value.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_loss_is_cross_entropy_over_both_answers(folder):
    model = load_model(AutoModelForCausalLM, folder / "policy")
    ids = torch.tensor([[4, 5, 6]])
    logit = answer_logits(model, ids, torch.ones_like(ids), answers=([5], [9]))
    last = model(ids).logits[0, -1]
    expected = torch.nn.functional.cross_entropy(last[[5, 9]][None], torch.tensor([1]))
    assert torch.nn.functional.softplus(logit).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"judge.setup": ""}, r"judge\.setup is empty"),
        ({"judge.setup": "think-rm"}, "answers with a text"),
        ({"judge.setup": "rlbff"}, "asks for a principle"),
        (
            {"judge.setup": "rewardanything", "judge.principle": "short"},
            "two answers of one token",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(folder, setup, said):
    with pytest.raises(ConfigError, match=said):
        train_judge(settings(folder, "each", **setup))
