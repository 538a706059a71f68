import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_reward_training import WORDS, config, lines, write_inputs
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tokencredit.errors import ConfigError, DataError, ModelError, TokenCreditWarning
from tokencredit.models.hf_loading import load_model
from tokencredit.recipes.reward_model.settings import JudgementColumns
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.recipes.training.trainer import SupervisedTrainer
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import reward_model_output

OBJECTIVE = "multi-objective-regression"
NAMES = ("good", "long")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    rows = [
        {
            "text": f"the {WORDS[row % 2]} film {row} {'a ' * (row % 5)}",
            "good": (90, 10)[row % 2] if row % 5 else None,
            "long": row % 5 if row % 7 else "N/A",
        }
        for row in range(60)
        if row % 35
    ]
    lines(folder / f"{OBJECTIVE}.jsonl", rows)
    return folder


def several(folder, output, names=NAMES, **settings):
    columns = JudgementColumns(ratings=names)
    return config(folder, output, OBJECTIVE, columns=columns, **settings)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("positions", ["every", "last"])
def test_a_score_of_each_objective_in_its_unit(folder, tmp_path, positions):
    settings = {"epochs": 10.0, "learning_rate": 1e-2, "positions": positions}
    output = train_reward_model(several(folder, tmp_path / "rm", **settings))
    model = load_model(AutoModelForSequenceClassification, output)
    assert model.config.id2label == {0: "good", 1: "long"}
    assert model.config.problem_type == "regression"
    assert len(model.config.rating_mean) == len(model.config.rating_standard_deviation) == 2
    tokenizer = AutoTokenizer.from_pretrained(output)
    texts = ["the good film 30 a <eos>", "the bad film 41 a <eos>"]
    texts = tokenizer(texts, return_tensors="pt", padding=True)
    found = reward_model_output(model, **texts, every_output=True).sequence_scores
    predicted = found + torch.tensor(model.config.rating_mean)
    assert predicted[0, 0] > 70
    assert predicted[1, 0] < 30
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["held_out_accuracy/good"] == 1.0
    assert "root_mean_squared_error/long" in metrics
    by_part = json.loads((output / "prefix_accuracy.json").read_text())
    assert list(by_part) == list(NAMES)
    assert (output / "calibration.png").is_file()


def test_one_objective_is_regression(folder, tmp_path):
    """Bit for bit until scores are brought into the unit of the ratings."""
    data = lines(
        folder / "one.jsonl",
        [
            {"text": f"the {WORDS[row % 2]} film {row}", "rating": (90, 10)[row % 2] + row}
            for row in range(20)
        ],
    )
    rated = config(folder, tmp_path / "rated", "regression")
    rated = train_reward_model(replace(rated, data=str(data)))
    one = several(folder, tmp_path / "one", ("rating",))
    one = train_reward_model(replace(one, data=str(data)))
    mine, theirs = weights(one), weights(rated)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if not key.startswith("score"))
    torch.testing.assert_close(mine["score.weight"], theirs["score.weight"], rtol=1e-6, atol=0)
    load_reward_model(one)  # a model of one objective says one score


def test_two_objectives_are_no_two_classes(folder, tmp_path):
    output = train_reward_model(several(folder, tmp_path / "rm"))
    with pytest.raises(
        ModelError, match=r"2 outputs, a score for each of good, long; .*'folder#good'"
    ):
        load_reward_model(output)
    with pytest.raises(ConfigError, match=r"the same in the same order"):
        train_reward_model(several(folder, tmp_path / "b", NAMES[::-1], model=str(output)))
    train_reward_model(several(folder, tmp_path / "again", model=str(output)))
    with pytest.warns(TokenCreditWarning, match="another size and is not used"):
        train_reward_model(config(folder, tmp_path / "pairs", model=str(output)))


def test_adapters_learn_several_objectives(folder, tmp_path):
    output = train_reward_model(several(folder, tmp_path / "rm", lora_rank=2))
    model = load_model(AutoModelForSequenceClassification, output)
    assert model.config.id2label == {0: "good", 1: "long"}
    assert not (output / "adapter_config.json").exists()


def test_what_cannot_be_learnt(folder, tmp_path):
    def rows(**ratings):
        path = tmp_path / "rows.jsonl"
        lines(path, [{"text": f"film {i}", "good": i, **ratings} for i in range(20)])
        return replace(several(folder, tmp_path / "rm"), data=str(path))

    with pytest.raises(DataError, match="the objective 'long' is never rated"):
        train_reward_model(rows(long=None))
    with pytest.raises(DataError, match="the objective 'long' is rated 3 in all of"):
        train_reward_model(rows(long=3))
    with pytest.raises(DataError, match="no column 'long'"):
        train_reward_model(rows())
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize(
    ("objective", "columns", "message"),
    [
        (OBJECTIVE, {}, "one of each objective"),
        (OBJECTIVE, {"ratings": ("a", "a")}, "each column once"),
        (OBJECTIVE, {"ratings": ("a=b",)}, "each column once"),
        (OBJECTIVE, {"ratings": ("a",), "rating_scale": (4.0, 0.0)}, "its least number"),
        ("regression", {"rating_scale": (0.0, 4.0)}, "neither with another objective"),
        ("regression", {"ratings": ("a",)}, "neither with another objective"),
    ],
)
def test_settings_that_contradict_each_other(folder, tmp_path, objective, columns, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "rm", objective, columns=JudgementColumns(**columns))


class Killed(Exception):
    """In the place of a signal that nothing can catch."""


def test_a_killed_run_ends_as_if_nobody_had_killed_it(folder, tmp_path, monkeypatch):
    settings = {"epochs": 2.0, "log_every": 3, "checkpoint_every": 5, "device": "cpu"}
    whole = train_reward_model(several(folder, tmp_path / "whole", **settings))
    real, seen = SupervisedTrainer.training_step, []

    def step(self, *arguments, **keywords):
        seen.append(1)
        if len(seen) == 8:
            raise Killed
        return real(self, *arguments, **keywords)

    killed = several(folder, tmp_path / "killed", **settings)
    with monkeypatch.context() as patched:
        patched.setattr(SupervisedTrainer, "training_step", step)
        with pytest.raises(Killed):
            train_reward_model(killed)
    assert list(tmp_path.glob("killed/checkpoint*"))
    mine, theirs = weights(train_reward_model(killed)), weights(whole)
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
