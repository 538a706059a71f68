import sys

import pytest
import torch
from tiny_models import tiny_model

from tokencredit.errors import ConfigError
from tokencredit.models.hf_adapters import lora_config, lora_model, merged_model


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
