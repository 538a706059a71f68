import pytest
import torch
from tiny_models import PAD_ID, tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.models.hf_short_attention import LONGEST, short_attention
from tokencredit.recipes.training.arguments import recompute_activations


@pytest.fixture
def model():
    return tiny_model("llama", auto_class=AutoModelForCausalLM)


def in_context(model, sequence, *, autocast=True):
    """The attention that a pass in the context has, and the one after it."""
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        short_attention(model, sequence),
    ):
        within = model.config._attn_implementation
    return within, model.config._attn_implementation


def test_short_rows_under_autocast_have_plain_attention(model):
    assert in_context(model, LONGEST) == ("eager", "sdpa")
    assert in_context(model, LONGEST + 1) == ("sdpa", "sdpa")
    assert in_context(model, LONGEST, autocast=False) == ("sdpa", "sdpa")


def test_so_have_those_of_models_in_bfloat16(model):
    assert in_context(model.bfloat16(), LONGEST, autocast=False) == ("eager", "sdpa")


def test_what_was_chosen_stays():
    model = tiny_model("llama", auto_class=AutoModelForCausalLM, attn_implementation="eager")
    assert in_context(model, LONGEST) == ("eager", "eager")


def test_layers_that_run_again_do_so_after_the_context(model):
    recompute_activations(model)
    model.train()
    assert in_context(model, LONGEST) == ("sdpa", "sdpa")


def test_an_error_leaves_the_model_as_it_was(model):
    with (
        pytest.raises(ZeroDivisionError),
        torch.autocast("cpu", torch.bfloat16),
        short_attention(model, 4),
    ):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gemma3_text", "bert"])
def test_scores_and_gradients_differ_by_rounding_alone(family):
    model = tiny_model(family)
    ids, mask = tiny_ids(2, 12), torch.ones(2, 12).long()
    ids[1, 8:], mask[1, 8:] = PAD_ID, 0
    exact = model(input_ids=ids, attention_mask=mask).logits.detach()
    found = []
    for sequence in (12, LONGEST + 1):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), short_attention(model, sequence):
            logits = model(input_ids=ids, attention_mask=mask).logits
        logits.sum().backward()
        gradient = model.get_input_embeddings().weight.grad.clone()
        found.append((float((logits.detach() - exact).abs().max()), gradient))
    (error, gradient), (usual_error, usual) = found
    assert error <= 3 * usual_error
    size = float(usual.abs().max())
    torch.testing.assert_close(gradient, usual, rtol=0.0, atol=0.05 * size)
