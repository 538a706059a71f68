import pytest
import torch
from causal_models import FAMILIES, causal
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import PAD_ID, tiny_ids

from tokencredit.errors import TokenCreditWarning
from tokencredit.models import hf_shared_beginnings
from tokencredit.models.hf_shared_beginnings import pass_arguments, shared_beginning
from tokencredit.recipes.training.arguments import recompute_activations

COLUMNS = 5
SHARED = 9


def rows(*, shared=SHARED, prompts=(6, 4, 1), seed=0):
    """Prompts that begin with the same tokens, padded on the left, and responses."""
    width = shared + max(prompts) + COLUMNS - 1
    beginning = tiny_ids(shared, seed=seed + 100)
    ids, mask = tiny_ids(len(prompts), width, seed=seed), torch.ones(len(prompts), width).long()
    for row, length in enumerate(prompts):
        start = max(prompts) - length
        ids[row, start : start + shared] = beginning
        ids[row, start + shared] = 2 + row  # so that no more than that is shared
        mask[row, :start] = 0
        if row == 1:
            mask[row, -2:] = 0
    return ids.masked_fill(mask == 0, PAD_ID), mask


def logits_of(model, ids, mask, *, once):
    arguments = pass_arguments(model, ids, mask, columns=COLUMNS, once=once)
    return model(**arguments).logits[:, -COLUMNS:], arguments["input_ids"].shape[1]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=4, max_size=6)),
        min_size=2,
        max_size=4,
    ),
    st.integers(1, 3),
)
def test_as_a_loop_counts_what_rows_begin_with(texts, kept):
    width = max(start + len(tokens) for start, tokens in texts)
    padded = [([9] * (width - len(tokens)) + tokens, len(tokens)) for _, tokens in texts]
    ids = torch.tensor([row for row, _ in padded])
    mask = torch.tensor([[0] * (width - n) + [1] * n for _, n in padded])
    tokens = [row[len(row) - n :] for row, n in padded]
    expected = 0
    while expected < min(map(len, tokens)) - kept and len({row[expected] for row in tokens}) == 1:
        expected += 1
    assert shared_beginning(ids, mask, kept=kept) == expected


def test_one_row_shares_nothing():
    assert shared_beginning(tiny_ids(1, 8), torch.ones(1, 8).long(), kept=1) == 0


def assert_same_learning(family, changes, ids, mask, *, width):
    """Logits and gradients of whole rows, in a pass over so many columns."""
    model = causal(family, **changes)
    # In float64 eager attention makes NaN of padding.
    if model.config._attn_implementation == "sdpa":
        model = model.double()
    found = []
    for once in (True, False):
        logits, read = logits_of(model, ids, mask, once=once)
        assert read == (width if once else ids.shape[1])
        real = mask[:, -COLUMNS:].bool()
        model.zero_grad()
        logits[real].log_softmax(-1)[:, 3].sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((logits[real].detach(), gradients))
    # Norms are computed in float32, in float64 models too.
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_logits_and_gradients_are_those_of_whole_rows(family, changes, attention):
    ids, mask = rows()
    changes = {**changes, "attn_implementation": attention}
    assert_same_learning(family, changes, ids, mask, width=ids.shape[1] - SHARED)


def groups(*, prompts=(12, 7, 2), samples=3):
    """Several responses to prompts of these lengths, which share nothing with each other."""
    width = max(prompts) + COLUMNS - 1
    asked, mask = tiny_ids(len(prompts), width), torch.ones(len(prompts), width).long()
    for row, length in enumerate(prompts):
        mask[row, : max(prompts) - length] = 0
    ids, mask = asked.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    ids[:, max(prompts) :] = tiny_ids(len(ids), COLUMNS - 1, seed=3)
    mask[::2, -2:] = 0
    return ids.masked_fill(mask == 0, PAD_ID), mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_prompts_of_groups_are_read_once(family, changes, attention, monkeypatch):
    monkeypatch.setattr(hf_shared_beginnings, "_PRICE", 1)
    changes = {**changes, "attn_implementation": attention}
    assert_same_learning(family, changes, *groups(), width=COLUMNS)


def test_neither_padding_before_prompts_nor_what_stands_in_it_matters(monkeypatch):
    monkeypatch.setattr(hf_shared_beginnings, "_PRICE", 1)
    model = causal("llama").double()
    ids, mask = groups()
    expected, _ = logits_of(model, ids, mask, once=True)
    garbage = ids.where(mask.bool(), tiny_ids(*ids.shape, seed=7))
    wider = (torch.nn.functional.pad(part, (3, 0)) for part in (garbage, mask))
    found, width = logits_of(model, *wider, once=True)
    assert width == COLUMNS
    real = mask[:, -COLUMNS:].bool()
    torch.testing.assert_close(found[real], expected[real])


@pytest.mark.parametrize("price", [300, 301])
def test_what_saves_more_is_read_once_and_little_is_read_again(price, monkeypatch):
    monkeypatch.setattr(hf_shared_beginnings, "_PRICE", price)
    model = causal("llama")
    ids, mask = groups(prompts=(26, 26), samples=7)  # 12 of 14 rows save 25 columns
    width = ids.shape[1]
    assert logits_of(model, ids, mask, once=True)[1] == (COLUMNS if price == 300 else width)
    ids[:, :20] = ids[0, :20]  # 13 rows save 20 tokens
    assert logits_of(model, ids, mask, once=True)[1] == (COLUMNS if price == 300 else width - 20)


def test_adapters_are_part_of_what_is_read_once():
    model = causal("llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(0))
    ids, mask = rows()
    together, width = logits_of(adapted, ids, mask, once=True)
    apart, _ = logits_of(adapted, ids, mask, once=False)
    assert width == ids.shape[1] - SHARED
    real = mask[:, -COLUMNS:].bool()
    torch.testing.assert_close(together[real], apart[real], rtol=1e-4, atol=1e-4)


def test_neither_padding_nor_what_stands_in_it_matters():
    model = causal("llama").double()
    ids, mask = rows()
    expected, _ = logits_of(model, ids, mask, once=True)
    garbage = ids.where(mask.bool(), tiny_ids(*ids.shape, seed=7))
    found, _ = logits_of(model, garbage, mask, once=True)
    wider = (torch.nn.functional.pad(part, (3, 0)) for part in (garbage, mask))
    padded, width = logits_of(model, *wider, once=True)
    assert width == ids.shape[1] + 3 - SHARED
    real = mask[:, -COLUMNS:].bool()
    torch.testing.assert_close(found[real], expected[real])
    torch.testing.assert_close(padded[real], expected[real])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),  # a window of 4 would hold the padding between beginning and rest
        ("gemma2", {}),
        ("bloom", {}),  # biases by distance
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_models_that_cannot_be_handed_keys_read_whole_rows(family, changes):
    model = causal(family, **changes)
    ids, mask = rows()
    assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1]


def test_few_shared_tokens_are_not_worth_a_pass():
    model = causal("llama")
    ids, mask = rows(shared=hf_shared_beginnings.LEAST - 1)
    assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1]


def test_layers_that_run_again_read_whole_rows():
    model = causal("llama")
    ids, mask = rows()
    recompute_activations(model)
    model.train()
    assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1]
    model.eval()
    assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1] - SHARED


def test_a_model_that_says_otherwise_is_told_of_once_and_reads_whole_rows(monkeypatch):
    model = causal("llama")
    ids, mask = rows()
    after = hf_shared_beginnings._after_beginning

    def shifted(*arguments):
        found = after(*arguments)
        return {**found, "position_ids": found["position_ids"] + 5}

    monkeypatch.setattr(hf_shared_beginnings, "_after_beginning", shifted)
    with pytest.warns(TokenCreditWarning, match="LlamaForCausalLM gives other states after keys"):
        assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1]
    assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1]  # warnings are errors here


def test_a_model_that_fails_is_told_of_and_reads_whole_rows(monkeypatch):
    model = causal("llama")
    ids, mask = rows()

    def refused(*_):
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(hf_shared_beginnings, "_after_beginning", refused)
    with pytest.warns(TokenCreditWarning, match=r"does not take keys .* unexpected keyword"):
        assert logits_of(model, ids, mask, once=True)[1] == ids.shape[1]
