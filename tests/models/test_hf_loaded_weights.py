"""Whatever does not fit between a file and its model is an error that names it."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tokencredit.errors import ModelError, TokenCreditWarning
from tokencredit.models.hf_loaded_weights import head_modules
from tokencredit.models.hf_loading import load_model

LM, CLASSIFIER = AutoModelForCausalLM, AutoModelForSequenceClassification


def changed(folder, change, *, architecture="llama", auto_class=LM, **overrides):
    """A saved model whose tensors went through `change`."""
    tiny_model(architecture, auto_class=auto_class, **overrides).save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
@pytest.mark.parametrize("auto_class", [LM, CLASSIFIER])
def test_names_with_a_prefix_of_a_wrapper(tmp_path, prefix, auto_class):
    changed(tmp_path, lambda w: {prefix + key: value for key, value in w.items()})
    with pytest.raises(ModelError, match=rf"left over.*expected names without '{prefix}'"):
        load_model(auto_class, tmp_path, new_head=auto_class is CLASSIFIER)


def test_empty_tensors(tmp_path):
    changed(tmp_path, lambda w: {key: torch.zeros(0) for key in w})
    with pytest.raises(ModelError, match=r"of another shape.*\(0,\).*ZeRO-3"):
        load_model(CLASSIFIER, tmp_path, new_head=True)


def test_a_layer_that_is_missing(tmp_path):
    changed(tmp_path, lambda w: {k: v for k, v in w.items() if ".layers.1." not in k})
    with pytest.raises(ModelError, match=r"9 missing, such as model.layers.1.*says 2 layers"):
        load_model(LM, tmp_path)


def test_a_layer_more_than_the_configuration_says(tmp_path):
    changed(tmp_path, lambda w: w)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"9 left over, such as model.layers.1.*says 1 layers"):
        load_model(LM, tmp_path)


def test_a_bias_more_than_the_model_has(tmp_path):
    extra = "model.layers.0.self_attn.q_proj.bias"
    changed(tmp_path, lambda w: w | {extra: torch.ones(32)})
    for auto_class in (LM, CLASSIFIER):
        with pytest.raises(ModelError, match=f"1 left over, such as {extra}"):
            load_model(auto_class, tmp_path, new_head=True)


def test_an_embedding_of_another_size(tmp_path):
    key = "model.embed_tokens.weight"
    changed(tmp_path, lambda w: w | {key: w[key][:-1]})
    with pytest.raises(ModelError, match=rf"{key} \(40, 32\) for \(41, 32\)"):
        load_model(CLASSIFIER, tmp_path, new_head=True)


def test_a_head_is_drawn_only_where_it_is_to_be_trained(tmp_path):
    changed(tmp_path, lambda w: w)
    with pytest.raises(ModelError, match=r"1 missing, such as score.weight.*with its head"):
        load_model(CLASSIFIER, tmp_path, num_labels=1)
    with pytest.raises(ModelError, match="expected a judge"):
        load_model(CLASSIFIER, tmp_path, num_labels=1, expected="a judge")
    assert load_model(CLASSIFIER, tmp_path, num_labels=1, new_head=True).score.out_features == 1


def test_an_encoder_may_get_a_new_pooler_with_its_head(tmp_path):
    tiny_model("bert", auto_class=AutoModelForTokenClassification).save_pretrained(tmp_path)
    with pytest.warns(TokenCreditWarning, match="has another size and is not used") as said:
        load_model(CLASSIFIER, tmp_path, num_labels=3, new_head=True)
    assert "classifier.weight (1, 32)" in str([str(one.message) for one in said])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_tied_weights_and_computed_buffers_may_be_missing_or_left_over(tmp_path, architecture):
    changed(tmp_path, lambda w: w, architecture=architecture, tie_word_embeddings=True)
    held = load_file(tmp_path / "model.safetensors")
    whole = load_model(LM, tmp_path)
    assert torch.equal(whole.get_output_embeddings().weight, whole.get_input_embeddings().weight)
    buffers = {k: v.clone() for k, v in whole.named_buffers() if k not in held}
    save_file(held | buffers, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(LM, tmp_path)


def test_both_of_two_tied_weights_are_missing(tmp_path):
    changed(
        tmp_path,
        lambda w: {k: v for k, v in w.items() if "embed_tokens" not in k and "lm_head" not in k},
        tie_word_embeddings=True,
    )
    with pytest.raises(ModelError, match="missing, such as"):
        load_model(LM, tmp_path)


def test_a_reward_model_is_no_language_model_even_with_tied_embeddings(tmp_path):
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"score.weight.*a language model: this one gives scores"):
        load_model(LM, tmp_path)


def test_one_output_is_made_of_two(tmp_path):
    two = tiny_model("llama", num_labels=2)
    two.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = load_model(CLASSIFIER, tmp_path, num_labels=1, new_head=True)
    torch.testing.assert_close(one.score.weight[0], two.score.weight[1] - two.score.weight[0])


def test_a_head_of_three_outputs_is_not_dropped_in_silence(tmp_path):
    tiny_model("llama", num_labels=3).save_pretrained(tmp_path)
    with pytest.warns(TokenCreditWarning, match=r"score.weight \(3, 32\).*a new one is drawn"):
        load_model(CLASSIFIER, tmp_path, num_labels=1, new_head=True)
    with pytest.raises(ModelError, match=r"score.weight \(3, 32\) for \(1, 32\)"):
        load_model(CLASSIFIER, tmp_path, num_labels=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "bert", "roberta", "t5"])
def test_the_head_stays_in_float32(tmp_path, architecture, dtype):
    saved = tiny_model(architecture, eos_token_id=1)
    saved.save_pretrained(tmp_path)
    model = load_model(CLASSIFIER, tmp_path, dtype=dtype)
    assert {w.dtype for w in model.base_model.parameters()} >= {getattr(torch, dtype)}
    for name, head in head_modules(model).items():
        for key, weight in head.named_parameters():
            assert torch.equal(weight, saved.get_parameter(f"{name}.{key}")), key
    ids = torch.tensor([[2, 3, 4, 1]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logits.dtype == torch.float32
    low = getattr(torch, dtype)
    assert not torch.equal(logits.to(low).float(), logits)
