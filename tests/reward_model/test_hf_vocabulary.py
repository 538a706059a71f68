import pytest
import torch
from tiny_models import PAD_ID, VOCAB_SIZE, padding_mask, tiny_ids, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from tokencredit.errors import DataError, ModelError
from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_joined_rows import joined_rows
from tokencredit.reward_model.hf_vocabulary import trained_statistics
from tokencredit.reward_model.losses.vocabulary import best_values, token_values

LENGTHS = [7, 3, 5]
CAPPED = {"gemma2": {"final_logit_softcapping": 2.0, "attn_implementation": "eager"}}


def language_model(architecture="llama", **overrides):
    return tiny_model(architecture, auto_class=AutoModelForCausalLM, **overrides)


def texts(side="right", seed=0):
    """Ids with garbage as padding, real tokens, and all but the first two tokens of each row."""
    mask = padding_mask(LENGTHS, side=side, width=9)
    rows = tiny_ids(*mask.shape, seed=seed)
    ids = torch.full_like(rows, PAD_ID)
    for index, length in enumerate(LENGTHS):
        ids[index, mask[index]] = rows[index, :length]
    return ids, mask, mask & (mask.cumsum(-1) > 2)


def said(logits, ids):
    return torch.stack(
        [token_values(logits, ids), best_values(logits), token_logprobs(logits, ids)], dim=-1
    )


def plain(model):
    """The same from each row alone and all its logits."""
    ids, mask, _ = texts()
    rows = [ids[row][mask[row]] for row in range(len(ids))]
    found = [said(model(row[None]).logits[0, 1:-1].float(), row[2:]) for row in rows]
    return nn.utils.rnn.pad_sequence(found, batch_first=True)


def gradients(model, values):
    model.zero_grad()
    weights = torch.linspace(-1, 1, values.numel()).view_as(values)
    (values * weights).sum().backward()
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_rows_that_are_joined_have_the_numbers_and_gradients_of_rows_apart(architecture):
    model = language_model(architecture, **CAPPED.get(architecture, {}))
    ids, mask, counted = texts()
    ids[2, :4] = ids[0, :4]  # what is counted there is shared as well
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    order = [0, 2, 1]
    joined = joined_rows([rows[at] for at in order], [2, 1])
    apart = trained_statistics(model, ids[order], mask[order], counted[order], said)
    expected = gradients(model, apart)
    together = trained_statistics(
        model, ids[order], mask[order], counted[order], said, joined=joined, chunk_size=3
    )
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients(model, together).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox", "llama", "gemma2"])
def test_numbers_and_gradients_are_those_of_whole_logits(architecture):
    model = language_model(architecture, **CAPPED.get(architecture, {}))
    expected = plain(model)
    expected_gradients = gradients(model, expected)
    ids, mask, counted = texts()
    found = trained_statistics(model, ids, mask, counted, said, chunk_size=2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    found_gradients = gradients(model, found)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_neither_padding_nor_chunks_change_anything(side, chunk_size):
    model = language_model("gpt2")
    ids, mask, counted = texts(side)
    found = trained_statistics(model, ids, mask.long(), counted, said, chunk_size=chunk_size)
    torch.testing.assert_close(found, plain(model), rtol=1e-3, atol=1e-5)
    garbage = ids.masked_fill(~mask, 3)
    again = trained_statistics(model, garbage, mask, counted | ~mask, said, chunk_size=chunk_size)
    torch.testing.assert_close(again, found, rtol=1e-3, atol=1e-5)
    assert found.dtype == torch.float32


def test_no_more_logits_than_a_chunk_exist_in_float32():
    model = language_model("llama").bfloat16()
    ids, mask, counted = texts()
    widths = []

    def statistic(logits, token_ids):
        assert logits.dtype == torch.float32
        assert logits.shape[-1] == VOCAB_SIZE
        widths.append(len(logits))
        return token_logprobs(logits, token_ids)

    values = trained_statistics(model, ids, mask, counted, statistic, chunk_size=4)
    assert widths == [4, 4, 1]
    values.sum().backward()  # makes each chunk again
    assert sorted(widths) == [1, 1, 4, 4, 4, 4]


def test_tokens_with_nothing_before_them():
    model = language_model("llama")
    ids, mask, counted = texts()
    with pytest.raises(DataError, match=r"rows \[1\] begin with a token"):
        trained_statistics(model, ids, mask, counted | (torch.arange(3) == 1)[:, None], said)
    with pytest.raises(DataError, match="no token is asked about"):
        trained_statistics(model, ids, mask, torch.zeros_like(mask), said)


def test_models_that_cannot_be_run_behind_their_trunk(monkeypatch):
    model = language_model("llama")
    ids, mask, counted = texts()
    own = model.forward

    def by_length(input_ids, **options):
        output = own(input_ids=input_ids, **options)
        output.logits = output.logits * input_ids.shape[-1]
        return output

    monkeypatch.setattr(model, "forward", by_length)
    with pytest.raises(ModelError, match="other logits when it is run after its trunk"):
        trained_statistics(model, ids, mask, counted, said)
    monkeypatch.undo()
    logits = torch.zeros(3, 1, VOCAB_SIZE)
    monkeypatch.setattr(model, "forward", lambda **_: CausalLMOutput(logits=logits))
    with pytest.raises(ModelError, match="no part that gives hidden states"):
        trained_statistics(model, ids, mask, counted, said)


@pytest.mark.parametrize(("architecture", "other"), [("llama", "gpt2"), ("gpt2", "llama")])
def test_a_frozen_model_speaks_of_the_same_places_and_gets_no_gradient(architecture, other):
    model, frozen = language_model(architecture), language_model(other)
    ids, mask, counted = texts()

    def both(logits, token_ids, frozen_logits):
        assert not frozen_logits.requires_grad
        return torch.stack([said(logits, token_ids), said(frozen_logits, token_ids)], dim=-1)

    found = trained_statistics(model, ids, mask, counted, both, frozen=[frozen], chunk_size=4)
    torch.testing.assert_close(found[..., 0], plain(model), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[..., 1], plain(frozen), rtol=1e-3, atol=1e-5)
    expected = gradients(model, plain(model))
    found_gradients = gradients(model, found[..., 0])
    for name, gradient in expected.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
    assert all(weight.grad is None for weight in frozen.parameters())
