import json

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tokencredit.errors import ConfigError, ModelError, TokenCreditWarning
from tokencredit.models.hf_loading import (
    context_length,
    disable_dropout,
    load_model,
    load_tokenizer,
    pad_token_id,
    require_pad_token,
)


@pytest.fixture
def saved(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    return tmp_path


def test_loads_what_was_saved(saved):
    model = load_model(AutoModelForSequenceClassification, saved)
    assert not model.training
    for name, weights in tiny_model("gpt2").state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weights)
    assert load_tokenizer(str(saved)).get_vocab() == byte_level().get_vocab()


def test_dtype_attention_and_config_settings_reach_the_model(saved):
    model = load_model(
        AutoModelForSequenceClassification,
        saved,
        dtype="bfloat16",
        attn_implementation="eager",
        device="cpu",
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c", "~/no-such"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match="there is no folder"):
        load_tokenizer(name)
    with pytest.raises(ModelError, match="there is no folder"):
        load_model(AutoModelForCausalLM, name)


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "nosuchmodel"])
def test_an_id_that_is_not_there(name):
    with pytest.raises(ModelError, match="or a Hub id that is in the local cache"):
        load_tokenizer(name)
    with pytest.raises(ModelError, match="or a Hub id that is in the local cache"):
        load_model(AutoModelForCausalLM, name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="cannot load a model"):
        load_model(AutoModelForCausalLM, tmp_path)


def test_pickled_weights_are_not_read(saved):
    (saved / "model.safetensors").unlink()
    torch.save(tiny_model("gpt2").state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(AutoModelForSequenceClassification, saved)


def test_remote_code_runs_only_when_asked(saved):
    """The model's own code would leave a file behind."""
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "from_elsewhere"
    config["auto_map"] = {"AutoConfig": "remote.RemoteConfig"}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "remote.py").write_text(f"open({str(saved / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(AutoModelForSequenceClassification, saved)
    assert not (saved / "ran").exists()


def test_an_unknown_dtype(saved):
    with pytest.raises(ConfigError, match="'fp8'"):
        load_model(AutoModelForSequenceClassification, saved, dtype="fp8")


def test_pad_tokens(saved):
    byte_level(pad_token=None).save_pretrained(saved)
    with pytest.raises(ModelError, match=r"has no pad token.*set tokenizer.pad_token"):
        pad_token_id(load_tokenizer(saved))
    with pytest.raises(ModelError, match="has no pad token"):
        require_pad_token(load_tokenizer(saved))
    assert require_pad_token(load_tokenizer(saved, pad_token="<unk>")) == 3
    with pytest.raises(ModelError, match="'<nowhere>' is not in the vocabulary"):
        load_tokenizer(saved, pad_token="<nowhere>")


def test_padding_with_the_end_of_sequence_warns():
    tokenizer = byte_level(pad_token="<eos>")
    with pytest.warns(TokenCreditWarning, match="pads with its end-of-sequence token"):
        assert require_pad_token(tokenizer) == tokenizer.eos_token_id
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id


def test_context_length_is_the_smaller_limit():
    model, tokenizer = tiny_model("gpt2"), byte_level()
    assert context_length(model, tokenizer) == 64
    tokenizer.model_max_length = 20
    assert context_length(model, tokenizer) == 20


def test_context_length_of_a_model_that_knows_none():
    model = tiny_model("t5")
    del model.config.max_position_embeddings
    assert context_length(model, byte_level()) is None


DROPOUT = {
    "gpt2": {},
    "llama": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "layerdrop": 0.5},
    "gpt_neox": {},
    "bloom": {},
    "falcon": {},
    "gpt_bigcode": {},
    "starcoder2": {"num_key_value_heads": 2},
    "persimmon": {},
    "phi": {},
    "biogpt": {"layerdrop": 0.5},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "xglm": {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2},
    "stablelm": {"num_key_value_heads": 4},
    "bert-generation": {"is_decoder": True},
}


@pytest.mark.parametrize("architecture", DROPOUT)
def test_dropout_is_off_in_every_causal_architecture(architecture):
    config = tiny_config(architecture, **DROPOUT[architecture])
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        noisy = [model(input_ids=ids).logits for _ in range(2)]
        disable_dropout(model)
        quiet = [model(input_ids=ids).logits for _ in range(3)]
    assert not torch.equal(*noisy)
    assert torch.equal(quiet[0], quiet[1])
    assert torch.equal(quiet[0], quiet[2])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt", "bert", "gpt_neox"])
def test_without_dropout_training_mode_repeats_itself(architecture):
    model = tiny_model(architecture)
    ids = torch.arange(2, 12)[None]
    quiet = model(input_ids=ids).logits
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, quiet)
    disable_dropout(model)
    torch.testing.assert_close(model(input_ids=ids).logits, quiet)
