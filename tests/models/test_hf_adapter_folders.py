"""A folder that holds an adapter alone is its base with the adapter added."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import save_reward_model
from tiny_models import tiny_ids, tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_adapters import lora_model
from tokencredit.models.hf_loading import load_config, load_model, load_tokenizer
from tokencredit.reward_model.hf_loading import load_reward_model

pytest.importorskip("peft", reason="PEFT is an extra")
LM, CLASSIFIER = AutoModelForCausalLM, AutoModelForSequenceClassification


def moved(model, task_type):
    """A model with an adapter, and a head if it has one, that training has moved."""
    adapted = lora_model(model, rank=2, alpha=8, task_type=task_type)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(0.0, 0.3, generator=generator)
    return adapted.eval()


@pytest.fixture
def language_adapter(tmp_path):
    """The folder of an adapter beside that of its base, and the model that both make."""
    size = len(byte_level())
    tiny_model("llama", auto_class=LM, vocab_size=size).save_pretrained(tmp_path / "base")
    byte_level().save_pretrained(tmp_path / "base")
    adapted = moved(LM.from_pretrained(tmp_path / "base"), "CAUSAL_LM")
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted


def edited(folder, **changed):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_a_policy(language_adapter, caplog):
    folder, adapted = language_adapter
    with caplog.at_level("INFO", logger="tokencredit.loading"):
        model = load_model(LM, folder)
    ids = tiny_ids(2, 5)
    torch.testing.assert_close(model(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.name_or_path == str(folder)
    assert "LORA adapter, merged into its base" in caplog.text
    assert load_tokenizer(folder).get_vocab() == byte_level().get_vocab()
    assert load_config(folder).model_type == "llama"


def test_a_classifier_starts_from_the_adapter_of_a_policy(language_adapter):
    folder, adapted = language_adapter
    model = load_model(CLASSIFIER, folder, num_labels=1, new_head=True)
    ids = tiny_ids(2, 5)
    with torch.no_grad():  # in float64, where the order of additions does not matter
        found = model.double().model(ids).last_hidden_state
        expected = adapted.double().base_model.model.model(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match=r"missing, such as score.weight"):
        load_reward_model(folder)


def test_a_reward_model(tmp_path):
    base = tiny_model("llama", auto_class=LM, vocab_size=len(byte_level()))
    base.save_pretrained(tmp_path / "base")
    byte_level().save_pretrained(tmp_path / "base")
    start = CLASSIFIER.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=40)
    adapted = moved(start, "SEQ_CLS")
    adapted.save_pretrained(tmp_path / "adapter")
    ids = tiny_ids(2, 5)
    for dtype, allowed in (("float32", 1e-5), ("bfloat16", 0.2)):
        model, _ = load_reward_model(tmp_path / "adapter", dtype=dtype)
        assert model.score.weight.dtype == torch.float32
        torch.testing.assert_close(
            model(ids).logits, adapted(ids).logits, rtol=allowed, atol=allowed
        )
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    weights.pop("base_model.model.score.weight")
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"missing, such as score.weight"):
        load_reward_model(tmp_path / "adapter")


def test_an_adapter_that_lies_on_an_adapter(language_adapter, tmp_path):
    folder, _ = language_adapter
    second = moved(load_model(LM, folder), "CAUSAL_LM")
    second.save_pretrained(tmp_path / "second")
    ids = tiny_ids(2, 5)
    both = load_model(LM, tmp_path / "second")
    torch.testing.assert_close(both(ids).logits, second(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["more", "fewer", "wider"])
def test_weights_of_the_adapter_that_do_not_fit(language_adapter, change):
    folder, _ = language_adapter
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    if change == "more":
        weights[first.replace("layers.0", "layers.7")] = weights[first].clone()
    elif change == "fewer":
        weights.pop(first)
    else:
        weights[first] = torch.zeros(3, weights[first].shape[1])
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"expected the base that it was trained on"):
        load_model(LM, folder)


def test_a_base_that_is_not_there(language_adapter):
    folder, _ = language_adapter
    edited(folder, base_model_name_or_path="./nowhere")
    with pytest.raises(ModelError, match=r"there is no folder './nowhere'.*base of an adapter"):
        load_model(LM, folder)
    edited(folder, base_model_name_or_path="../base")  # beside the adapter
    load_model(LM, folder)


def test_adapters_that_cannot_be_added(language_adapter):
    folder, _ = language_adapter
    edited(folder, peft_type="PROMPT_TUNING")
    with pytest.raises(ModelError, match="expected an adapter of weights such as LoRA"):
        load_model(LM, folder)
    edited(folder, peft_type="ADAPTER_OF_TOMORROW")
    with pytest.raises(ModelError, match="not newer than the installed one"):
        load_model(LM, folder)


def test_pickled_weights_of_an_adapter(language_adapter):
    folder, _ = language_adapter
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match="nothing is unpickled"):
        load_model(LM, folder)


def test_an_adapter_without_peft(language_adapter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match="holds an adapter and PEFT is not installed"):
        load_model(LM, language_adapter[0])


def test_a_whole_reward_model_beside_its_adapter_settings_is_not_taken_twice(tmp_path):
    save_reward_model(tmp_path, byte_level(), "llama")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds both a whole model and an adapter"):
        load_reward_model(tmp_path)
