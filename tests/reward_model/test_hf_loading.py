import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PAD_ID, VOCAB_SIZE, tiny_ids, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tokencredit.errors import ModelError, TokenCreditWarning
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import reward_model_output


@pytest.fixture
def tokenizer():
    words = {f"w{i}": i for i in range(VOCAB_SIZE - 1)} | {"<pad>": PAD_ID}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="<pad>"
    )


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def output_of(model):
    ids = tiny_ids(9)[None]
    with torch.no_grad():
        return reward_model_output(model, ids, torch.ones_like(ids))


@pytest.mark.parametrize("num_labels", [1, 2])
def test_load_reward_model(num_labels, tokenizer, tmp_path):
    model = tiny_model("llama", num_labels=num_labels)
    loaded, words = load_reward_model(saved(model, tokenizer, tmp_path))
    assert torch.equal(output_of(loaded).sequence_scores, output_of(model).sequence_scores)
    assert loaded.config._attn_implementation == "sdpa"
    assert not loaded.training
    assert words.pad_token_id == PAD_ID


def test_load_with_options(tokenizer, tmp_path):
    folder = saved(tiny_model("llama"), tokenizer, tmp_path)
    loaded, _ = load_reward_model(folder, dtype="bfloat16", attn_implementation="eager")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert output_of(loaded).position_scores.dtype == torch.float32


def test_load_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        load_reward_model(tmp_path / "nothing")


def test_load_a_language_model(tokenizer, tmp_path):
    model = tiny_model("llama", auto_class=AutoModelForCausalLM)
    with pytest.raises(ModelError, match=r"missing, such as score\.weight.*train-reward-model"):
        load_reward_model(saved(model, tokenizer, tmp_path))


def test_load_three_labels(tokenizer, tmp_path):
    with pytest.raises(ModelError, match="has 3 outputs"):
        load_reward_model(saved(tiny_model("llama", num_labels=3), tokenizer, tmp_path))


def test_load_warns_of_a_bias_that_is_dropped(tokenizer, tmp_path):
    folder = saved(tiny_model("llama"), tokenizer, tmp_path)
    weights = load_file(folder / "model.safetensors") | {"score.bias": torch.ones(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(TokenCreditWarning, match=r"hold score\.bias"):
        load_reward_model(folder)


@pytest.mark.parametrize(
    ("labels", "warned"), [(("POSITIVE", "NEGATIVE"), True), (("negative", "positive"), False)]
)
def test_two_outputs_of_which_the_first_is_the_better(tokenizer, tmp_path, labels, warned):
    model = tiny_model("llama", num_labels=2)
    model.config.id2label = dict(enumerate(labels))
    folder = saved(model, tokenizer, tmp_path)
    if warned:
        with pytest.warns(TokenCreditWarning, match="'POSITIVE', 'NEGATIVE'.*the wrong sign"):
            load_reward_model(folder)
    else:
        load_reward_model(folder)


def test_tokens_that_the_model_has_no_embedding_for(tokenizer, tmp_path):
    tokenizer.add_tokens(["<more>"])
    with pytest.warns(TokenCreditWarning, match="1 tokens .* no embedding for, such as '<more>'"):
        load_reward_model(saved(tiny_model("llama"), tokenizer, tmp_path))
