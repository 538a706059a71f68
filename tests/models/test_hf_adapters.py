import sys

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.errors import ConfigError
from tokencredit.models.hf_adapters import (
    lora_config,
    lora_model,
    merged_model,
    round_frozen_linear_layers,
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
