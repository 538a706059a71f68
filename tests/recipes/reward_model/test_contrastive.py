"""Features of answers that are told apart by contrast, beside the loss of preferences."""

import pytest
import torch
from readings import training_reading
from tiny_reward_training import config, write_inputs
from transformers import AutoModelForSequenceClassification

from tokencredit.errors import ConfigError, ModelError
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.reward_model import train_reward_model as recipe
from tokencredit.recipes.reward_model.contrastive import TwoReadings, set_dropout
from tokencredit.recipes.reward_model.examples import SAID, judgements_of, reward_batch
from tokencredit.recipes.reward_model.head_settings import ContrastiveSettings, RegulariserSettings
from tokencredit.recipes.reward_model.reward_trainer import lesson_of
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.reward_model.losses.regularisers import contrastive_loss
from tokencredit.scorers.hf_fractions import counted_scores
from tokencredit.text.hf_token_rows import read_every_token

PAIRS = [
    PreferencePair("a film:", " good", " bad and slow"),
    PreferencePair("so", " it is very good", " bad"),
]
HALF = ContrastiveSettings(0.5, dropout=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def parts(folder, tmp_path, contrastive=HALF, **settings):
    """The lesson's two readings, the classifier, the rows, their batch and the settings."""
    chosen = config(folder, tmp_path / "rm", device="cpu", contrastive=contrastive, **settings)
    torch.manual_seed(0)
    model, tokenizer = recipe._model_to_train(chosen)
    rows = recipe._judged_rows(chosen, training_reading(chosen, tokenizer), PAIRS)
    batch = reward_batch(rows, pad_id=tokenizer.pad_token_id, read_at=read_every_token)
    return TwoReadings(chosen, model), model, rows, batch, chosen


def outputs(readings, model, batch):
    return readings.scores_and_features(model, **{n: batch[n] for n in batch if n not in SAID})


def test_two_readings_differ_by_dropout_alone(folder, tmp_path):
    readings, model, _, batch, _ = parts(folder, tmp_path)
    model.train()
    torch.manual_seed(1)
    scores, first, second = outputs(readings, model, batch)
    assert first.shape == (4, model.config.hidden_size)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.manual_seed(1)
    read = [batch[name] for name in ("input_ids", "attention_mask", "counted")]
    assert torch.equal(scores, counted_scores(model, *read))
    scores, first, second = outputs(readings, model.eval(), batch)
    assert torch.equal(first, second)
    whole = model.score(first)[:, 0].detach()
    last = batch["counted"].sum(-1)[:, None] - 1
    torch.testing.assert_close(scores.gather(-1, last)[:, 0].detach(), whole)


def test_padding_changes_no_feature(folder, tmp_path):
    readings, model, rows, batch, _ = parts(folder, tmp_path)
    together = outputs(readings, model.eval(), batch)[1].view(2, 2, -1)
    for at, row in enumerate(rows):
        alone = reward_batch([row], pad_id=7, read_at=read_every_token)
        found = outputs(readings, model, alone)[1]
        torch.testing.assert_close(found, together[:, at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["answers", "differences"])
def test_the_loss_is_that_of_the_pairs_and_the_contrast(folder, tmp_path, of):
    contrastive = ContrastiveSettings(2.0, temperature=0.5, of=of, dropout=0.5)
    readings, model, _, batch, chosen = parts(folder, tmp_path, contrastive)
    scores, first, second = outputs(readings, model.train(), batch)
    loss = readings.loss((scores, first, second), batch)
    plain = chosen.row.loss(judgements_of(scores, batch), chosen.loss)
    if of == "differences":
        first, second = (torch.cat([one[:2] - one[2:], one[2:] - one[:2]])
                         for one in (first, second))  # fmt: skip
    contrast = contrastive_loss(first, second, temperature=0.5)
    torch.testing.assert_close(loss, plain + 2.0 * contrast)
    loss.backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.abs().max() > 0


def test_weight_0_is_plain_training(folder, tmp_path):
    chosen = config(folder, tmp_path / "rm", device="cpu", contrastive=ContrastiveSettings())
    torch.manual_seed(0)
    model, tokenizer = recipe._model_to_train(chosen)
    lesson = lesson_of(chosen, model, tokenizer, [])
    assert lesson.scores_of is counted_scores
    assert lesson.shares_prefixes
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


def test_a_model_is_trained_by_it(folder, tmp_path):
    output = train_reward_model(
        config(folder, tmp_path / "rm", contrastive=HALF, max_steps=2, device="cpu")
    )
    trained = AutoModelForSequenceClassification.from_pretrained(output)
    assert trained.config.attention_dropout == 0.0


def test_what_has_no_contrast(folder, tmp_path):
    for other in ({"objective": "classification"}, {"positions": "pairs"},
                  {"positions": "segments"}):  # fmt: skip
        with pytest.raises(ConfigError, match=r"contrastive.weight is 0.5 .* bradley-terry"):
            config(folder, tmp_path / "rm", contrastive=HALF, **other)
    with pytest.raises(ConfigError, match="expected one of them alone"):
        config(folder, tmp_path / "rm", contrastive=HALF, regulariser=RegulariserSettings("sft"))
    for wrong in ({"weight": -1.0}, {"temperature": 0.0}, {"dropout": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match="contrastive"):
            ContrastiveSettings(**wrong)


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ModelError, match="has no dropout"):
        set_dropout(torch.nn.Linear(2, 2), 0.1)
