import sys

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.errors import ConfigError, RunFolderError
from tokencredit.models.hf_adapters import (
    lora_config,
    lora_model,
    merged_model,
    on_whole_weights,
    quantized_loading,
    restore_trained_weights,
    round_frozen_linear_layers,
    trained_weights,
    write_trained_weights,
)


def test_adapters_train_all_linear_layers_but_the_head_and_are_merged():
    pytest.importorskip("peft", reason="PEFT is an extra")
    model = tiny_model("llama").eval()
    ids = torch.randint(3, 30, (2, 5))
    before = model(ids).logits
    assert lora_model(model, rank=0, alpha=8) is model
    assert merged_model(model) is model
    adapted = lora_model(model, rank=2, alpha=8)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert all("lora" in name or "score" in name for name in trained)
    assert any("q_proj" in name for name in trained)
    merged = merged_model(adapted)
    assert type(merged) is type(model)
    torch.testing.assert_close(merged(ids).logits, before)


def test_without_peft_adapters_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora.rank is 2 and PEFT is not installed"):
        lora_model(tiny_model("llama"), rank=2, alpha=8)
    with pytest.raises(ConfigError, match=r"lora.rank is 4 and PEFT is not installed"):
        lora_config(rank=4, alpha=8, task_type="CAUSAL_LM")


def test_named_layers_get_adapters_and_unknown_ones_are_refused():
    pytest.importorskip("peft", reason="PEFT is an extra")
    adapted = lora_model(tiny_model("llama"), rank=2, alpha=4, target_modules=["v_proj"])
    named = {name.split(".")[-4] for name in trained_weights(adapted) if "lora" in name}
    assert named == {"v_proj"}
    with pytest.raises(
        ConfigError, match=r"lora\.target_modules: .*'all-linear', or some of .*q_proj"
    ):
        lora_model(tiny_model("llama"), rank=2, alpha=4, target_modules=["w_query"])


def test_adapters_and_head_are_float32_on_a_trunk_that_is_not():
    pytest.importorskip("peft", reason="PEFT is an extra")
    adapted = lora_model(tiny_model("llama").bfloat16(), rank=2, alpha=4)
    assert {w.dtype for w in trained_weights(adapted).values()} == {torch.float32}
    frozen = {p.dtype for p in adapted.parameters() if not p.requires_grad}
    assert torch.bfloat16 in frozen
    ids = torch.randint(3, 30, (2, 5))
    scores = adapted(ids).logits
    assert scores.dtype == torch.float32
    with torch.no_grad():
        for name, weight in trained_weights(adapted).items():
            weight.add_(0.1 * torch.rand_like(weight) if "lora_B" in name else 0)
    moved = adapted(ids).logits
    merged = merged_model(adapted)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(merged(ids).logits, moved, rtol=0.05, atol=0.02)


def test_trained_weights_come_back_and_others_are_refused(tmp_path):
    model = tiny_model("llama")
    write_trained_weights(model, tmp_path)
    other = tiny_model("llama")
    with torch.no_grad():
        next(other.parameters()).zero_()
    restore_trained_weights(other, tmp_path)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(RunFolderError, match=r"the checkpoint .* differ in"):
        restore_trained_weights(tiny_model("llama", intermediate_size=64), tmp_path)


def test_quantization_needs_a_gpu_and_bitsandbytes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"lora\.quantization is '4bit' and there is no GPU"):
        quantized_loading()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("tokencredit.models.hf_adapters.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        quantized_loading()
    monkeypatch.setattr("tokencredit.models.hf_adapters.find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    given = quantized_loading()
    assert given["device_map"] == {"": 0}
    settings = given["quantization_config"]
    assert (settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant) == ("nf4", True)
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16


def test_adapters_of_rounded_weights_are_merged_into_whole_ones():
    pytest.importorskip("peft", reason="PEFT is an extra")
    whole, rounded = tiny_model("llama"), tiny_model("llama").bfloat16().float()
    rounded.config.rating_mean, rounded.config.quantization_config = 3.0, {"load_in_4bit": True}
    adapted = lora_model(rounded, rank=2, alpha=4)
    with torch.no_grad():
        for weight in trained_weights(adapted).values():
            weight.normal_()
    ids = torch.randint(3, 30, (2, 5))
    expected = lora_model(tiny_model("llama"), rank=2, alpha=4)
    trained = trained_weights(adapted)
    for name, weight in trained_weights(expected).items():
        weight.copy_(trained[name])
    merged = merged_model(on_whole_weights(adapted, lora_model(whole, rank=2, alpha=4)))
    torch.testing.assert_close(merged(ids).logits, expected.eval()(ids).logits)
    assert merged.config.rating_mean == 3.0
    assert not hasattr(merged.config, "quantization_config")


@pytest.mark.parametrize("tied", [True, False])
def test_weights_rounded_once_are_those_that_autocast_rounds_at_every_call(tied):
    """Logits and the gradients of adapters, bit for bit; embeddings and adapters stay float32."""
    pytest.importorskip("peft", reason="PEFT is an extra")
    ids = torch.randint(3, 30, (2, 7))
    found = []
    for rounds in (False, True):
        model = tiny_model("llama", auto_class=AutoModelForCausalLM, tie_word_embeddings=tied)
        torch.manual_seed(0)
        adapted = lora_model(model, rank=2, alpha=8, task_type="CAUSAL_LM")
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.normal_(0.0, 0.3)
        if rounds:
            round_frozen_linear_layers(adapted, torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = adapted(ids).logits
        logits.float().square().mean().backward()
        gradients = [weight.grad for weight in adapted.parameters() if weight.requires_grad]
        found.append([logits, *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    base = adapted.get_base_model()
    assert base.lm_head.weight.dtype == torch.bfloat16
    assert base.model.embed_tokens.weight.dtype == torch.float32
    assert all(
        weight.dtype == torch.float32 for weight in adapted.parameters() if weight.requires_grad
    )
