"""Answers to one prompt in one row give the states of rows apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from tokencredit.errors import TokenCreditWarning
from tokencredit.models import hf_joined_rows
from tokencredit.models.hf_joined_rows import joined_arguments, joined_rows, reads_joined_rows

ROWS = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 7, 8, 11, 12], [13, 14], [15, 16, 17], [15, 16]]
SIZES = [3, 1, 2]
GROUPS = st.lists(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1), min_size=1
)


def language_model(architecture="llama", **options):
    return tiny_model(architecture, auto_class=AutoModelForCausalLM, **options).eval()


@given(GROUPS)
def test_every_token_is_where_its_column_says(groups):
    rows = [row for group in groups for row in group]
    joined = joined_rows(rows, [len(group) for group in groups])
    for at, row in enumerate(rows):
        group, columns = joined.groups[at], joined.columns[at, : len(row)]
        assert joined.input_ids[group, columns].tolist() == row
        assert joined.position_ids[group, columns].tolist() == list(range(len(row)))
        branches = joined.branches[group, columns].tolist()
        assert branches == sorted(branches)  # the beginning, then one rest
        assert len(set(branches)) <= 2
    used = sum(int((joined.branches[at] > 0).sum()) for at in range(len(groups)))
    assert used <= sum(map(len, rows))


def test_the_longest_common_beginning_is_read_once():
    joined = joined_rows(ROWS, SIZES)
    assert (joined.branches == hf_joined_rows.SHARED).sum(-1).tolist() == [3, 2, 2]
    assert joined.input_ids[0].tolist() == [5, 6, 7, 8, 9, 10, 8, 11, 12]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("mistral", {"sliding_window": 3}),
        ("gemma3_text", {"sliding_window": 3}),
    ],
)
def test_logits_are_those_of_rows_apart(architecture, options, attention):
    model = language_model(architecture, **options)
    model.set_attn_implementation(attention)
    assert reads_joined_rows(model)
    joined = joined_rows(ROWS, SIZES)
    with torch.no_grad():
        logits = model(**joined_arguments(model, joined)).logits
        for at, row in enumerate(ROWS):
            found = logits[joined.groups[at], joined.columns[at, : len(row)]]
            alone = model(torch.tensor([row])).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_adapters():
    lora = get_peft_model(language_model(), LoraConfig(task_type="CAUSAL_LM", r=2))
    assert reads_joined_rows(lora)


@pytest.mark.parametrize("architecture", ["bert", "bloom", "mamba"])
def test_models_that_see_otherwise_are_left_alone(architecture):
    auto_class = AutoModelForMaskedLM if architecture == "bert" else AutoModelForCausalLM
    assert not reads_joined_rows(tiny_model(architecture, auto_class=auto_class))


def test_virtual_tokens_are_said_to_be_in_the_way():
    tuned = get_peft_model(
        language_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.warns(TokenCreditWarning, match="each answer is read with its own prompt"):
        assert not reads_joined_rows(tuned)
    assert not reads_joined_rows(tuned)  # tried, and said, once


def test_a_model_that_gives_other_logits_is_told_of(monkeypatch):
    model = language_model()
    blind = lambda _model, branches, _positions: torch.ones_like(branches).bool()[:, None, None]  # noqa: E731
    monkeypatch.setattr(hf_joined_rows, "branch_masks", blind)
    with pytest.warns(TokenCreditWarning, match="other logits than apart"):
        assert not reads_joined_rows(model)
