import json

import pytest
import torch
from tiny_models import tiny_model
from tiny_reward_training import config, lines, write_inputs

from tokencredit.errors import DataError
from tokencredit.recipes.reward_model.examples import (
    JudgedRow,
    require_an_order,
    scale_scores,
    standardised_rows,
)
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.hf_token_rows import EncodedText, sequence_start
from tokencredit.text.reading_settings import ReadingSettings

ROW = EncodedText([4, 5], [False, True])


def rated(*ratings: float) -> list[JudgedRow]:
    return [JudgedRow((ROW,), rating) for rating in ratings]


def test_ratings_are_learnt_standardised_rows():
    model = tiny_model("llama")
    judged = standardised_rows(model, rated(2.0, 4.0, 6.0, 8.0))
    targets = torch.tensor([one.target for one in judged])
    assert targets.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert targets.std(correction=0).item() == pytest.approx(1.0)
    spread = model.config.rating_standard_deviation
    restored = [model.config.rating_mean + spread * target for target in targets.tolist()]
    assert restored == pytest.approx([2.0, 4.0, 6.0, 8.0])


def test_ratings_that_are_all_the_same_teach_nothing():
    with pytest.raises(DataError, match="all 3 ratings are 5"):
        standardised_rows(tiny_model("llama"), rated(5.0, 5.0, 5.0))
    with pytest.raises(DataError, match=r"all of them rated alike.*evaluation.share=0"):
        require_an_order(rated(5.0, 5.0))
    require_an_order(rated(5.0, 6.0))
    require_an_order([])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "roberta", "distilbert"])
def test_every_score_is_multiplied(architecture):
    model = tiny_model(architecture).eval()
    ids = torch.randint(3, 30, (2, 5))
    attention_mask = torch.ones_like(ids)
    before = model(ids, attention_mask=attention_mask).logits
    scale_scores(model, 2.5)
    torch.testing.assert_close(model(ids, attention_mask=attention_mask).logits, 2.5 * before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_scores_come_out_in_the_unit_of_the_ratings(folder, tmp_path):
    """90 for good films and 10 for bad ones: a score is about 40 above or below the mean.

    Held out are three good films and one bad one. Training leaves errors of 1 there, and of 2.3
    on the texts below; a score in standard deviations, or without the mean, would be 40 off.
    """
    settings = {"epochs": 24.0, "learning_rate": 1e-2, "reading": ReadingSettings(append_eos=False)}
    output = train_reward_model(config(folder, tmp_path / "rm", "regression", **settings))
    model, tokenizer = load_reward_model(output)
    assert model.config.rating_mean == pytest.approx((7 * 90 + 9 * 10) / 16)
    assert model.config.rating_standard_deviation == pytest.approx(80 * (7 * 9) ** 0.5 / 16)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["root_mean_squared_error"] < 1.5
    assert metrics["held_out_accuracy"] == 1.0
    texts = ["the good film 30 ", "the bad film 40 "]
    encoded = encode_responses(tokenizer, [sequence_start(tokenizer)] * 2, texts)
    scores = score_responses(model, encoded.batch, attention_mask=encoded.attention_mask)
    predicted = scores.sequence_scores + model.config.rating_mean
    assert predicted.tolist() == [pytest.approx(90, abs=3), pytest.approx(10, abs=3)]
    calibration = json.loads((output / "calibration.json").read_text())
    assert calibration[-1]["root_mean_squared_error"] == metrics["root_mean_squared_error"]
    assert calibration[-1]["curve"][-1]["predicted"] == pytest.approx(90, abs=2)


def test_held_out_ratings_that_are_alike_are_refused_before_training(folder, tmp_path):
    same = lines(tmp_path / "same.jsonl", [{"text": f"film {i}", "rating": 1} for i in range(3)])
    with pytest.raises(DataError, match="3 held-out responses"):
        train_reward_model(config(folder, tmp_path / "rm", "regression", eval_data=str(same)))
    assert not (tmp_path / "rm").exists()
