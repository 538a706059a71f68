import math

import pytest
import torch
from readings import training_reading
from safetensors.torch import load_file
from tiny_reward_training import config, save_start, write_inputs
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.reward_model import train_reward_model as recipe
from tokencredit.recipes.reward_model.examples import SAID, judgements_of, reward_batch
from tokencredit.recipes.reward_model.regularised import KeptHead
from tokencredit.recipes.reward_model.settings import RegulariserSettings
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.scorers.hf_fractions import counted_scores
from tokencredit.text.hf_token_rows import read_every_token, response_batch

PAIRS = [
    PreferencePair("a film:", " good", " bad and slow"),
    PreferencePair("so", " it is very good", " bad"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def parts(folder, tmp_path, **settings):
    """The kept head, the classifier, the rows and their batch."""
    chosen = config(folder, tmp_path / "rm", device="cpu", **settings)
    torch.manual_seed(0)
    model, tokenizer = recipe._model_to_train(chosen)
    rows = recipe._judged_rows(chosen, training_reading(chosen, tokenizer), PAIRS)
    kept = KeptHead(chosen, tokenizer, rows)
    batch = reward_batch(rows, pad_id=tokenizer.pad_token_id, read_at=read_every_token)
    return kept, model, rows, batch | kept.columns(rows, [0, 1]), chosen


def outputs(kept, model, batch):
    read = {name: batch[name] for name in batch if name not in (*SAID, "references")}
    return kept.scores_and_likelihoods(model, **read)


@pytest.mark.parametrize("form", ["sft", "dpo"])
def test_likelihoods_are_those_of_the_language_model_that_training_starts_from(
    folder, tmp_path, form
):
    kept, model, rows, batch, chosen = parts(
        folder, tmp_path, regulariser=RegulariserSettings(form)
    )
    scores, likelihoods = outputs(kept, model, batch)
    plain = counted_scores(model, *(batch[n] for n in ("input_ids", "attention_mask", "counted")))
    assert torch.equal(scores, plain)
    language_model = AutoModelForCausalLM.from_pretrained(chosen.model)
    texts = [one.responses[side] for side in (0, 1) for one in rows]
    logprobs = response_logprobs(language_model, response_batch(texts, pad_id=0))
    masks = [torch.tensor(text.response_mask[text.start :]) for text in texts]
    expected = torch.stack(
        [row[: len(mask)][mask].sum() for row, mask in zip(logprobs, masks, strict=True)]
    )
    if form == "sft":
        expected[2:] = 0.0  # nobody asks for them
    torch.testing.assert_close(likelihoods, expected, rtol=1e-4, atol=1e-4)
    if form == "dpo":
        references = torch.tensor(kept.references)
        torch.testing.assert_close(references.T.reshape(-1), expected, rtol=1e-4, atol=1e-4)
        loss = kept.loss(torch.tensor(0.0), likelihoods, batch)
        assert loss.item() == pytest.approx(0.01 * math.log(2), rel=1e-4)


def test_the_regulariser_moves_the_trunk_and_neither_head(folder, tmp_path):
    settings = RegulariserSettings("likelihood", 1.0)
    kept, model, _, batch, chosen = parts(folder, tmp_path, regulariser=settings)
    scores, likelihoods = outputs(kept, model, batch)
    preference = chosen.row.loss(judgements_of(scores, batch), chosen.loss)
    loss = kept.loss(preference, likelihoods, batch)
    assert loss.item() == pytest.approx(-likelihoods[:2].mean().item())
    loss.backward()
    assert model.score.weight.grad.abs().max() == 0
    assert all(weight.grad is None for weight in kept.head.parameters())
    down = model.model.layers[0].mlp.down_proj.weight
    assert down.grad.abs().max() > 0


def test_without_weight_the_loss_is_that_of_the_pairs(folder, tmp_path):
    kept, model, _, batch, chosen = parts(
        folder, tmp_path, regulariser=RegulariserSettings("sft", 0.0)
    )
    scores, likelihoods = outputs(kept, model, batch)
    preference = chosen.row.loss(judgements_of(scores, batch), chosen.loss)
    assert kept.loss(preference, likelihoods, batch) is preference


def test_padding_of_a_batch_changes_no_likelihood(folder, tmp_path):
    kept, model, rows, batch, _ = parts(folder, tmp_path, regulariser=RegulariserSettings("dpo"))
    together = outputs(kept, model, batch)[1].view(2, 2)
    for at, row in enumerate(rows):
        alone = reward_batch([row], pad_id=7, read_at=read_every_token)
        alone |= kept.columns([row], [at])
        torch.testing.assert_close(
            outputs(kept, model, alone)[1], together[:, at], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("form", ["sft", "dpo"])
def test_the_trained_model_is_the_classifier_alone(folder, tmp_path, form):
    settings = RegulariserSettings(form, 0.1)
    output = train_reward_model(
        config(folder, tmp_path / "rm", regulariser=settings, max_steps=2, device="cpu")
    )
    weights = load_file(output / "model.safetensors")
    assert "score.weight" in weights
    assert not any("lm_head" in name for name in weights)


def test_what_has_no_regulariser(folder, tmp_path):
    for other in (
        {"objective": "classification"},
        {"positions": "pairs"},
        {"positions": "segments"},
    ):
        with pytest.raises(ConfigError, match="expected bradley-terry"):
            config(folder, tmp_path / "rm", regulariser=RegulariserSettings("sft"), **other)
    for wrong, message in (({"weight": 1.5}, "weight is 1.5"), ({"scale": 0.0}, "scale is 0")):
        with pytest.raises(ConfigError, match=message):
            RegulariserSettings(**wrong)


def test_a_soft_cap_behind_the_head_is_refused(folder, tmp_path):
    tokenizer = byte_level(bos=True)
    save_start(tmp_path / "gemma", tokenizer, "gemma2", final_logit_softcapping=0.01)
    with pytest.raises(ModelError, match="makes more of its last hidden states"):
        parts(
            folder, tmp_path, regulariser=RegulariserSettings("sft"), model=str(tmp_path / "gemma")
        )
