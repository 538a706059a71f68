"""Texts that begin alike, read together: the same log-probabilities, and fewer tokens read."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import PAD_ID, tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.errors import DataError, ModelError, NumericError
from tokencredit.models.hf_next_tokens import beginning_groups, next_logprobs

TOKENS = [3, 5, 11]


def causal(family="llama", **changes):
    if family in ("gemma2", "bloom"):
        changes["attn_implementation"] = "eager"
    return tiny_model(family, auto_class=AutoModelForCausalLM, **changes)


def rows(*, shared=40, others=(3, 9, 1), texts=2):
    """Several questions about each of some texts, and one that begins like none."""
    beginnings = [tiny_ids(shared, seed=10 + at).tolist() for at in range(texts)]
    ends = [tiny_ids(length, seed=length).tolist() for length in others]
    return [[4 + at, *text, 20 + number, *end] for number, end in enumerate(ends)
            for at, text in enumerate(beginnings)] + [tiny_ids(12, seed=3).tolist()]  # fmt: skip


def plain(model, row):
    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits[0, -1].float().log_softmax(-1)[TOKENS]


def read(model):
    """How many tokens the model is given, padding included, in a list that grows."""
    counts = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, given: counts.append(given[0].numel())
    )
    return counts


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("qwen3", {}),
        ("gemma2", {"sliding_window": 64}),
        ("gemma2", {"sliding_window": 8}),
        ("mistral", {}),  # a window of 4
        ("bloom", {}),  # biases by distance: beginnings are read with every row
    ],
)
@pytest.mark.parametrize("size", [None, 2])
def test_every_row_is_that_of_a_plain_pass(family, changes, size):
    model, asked = causal(family, **changes), rows()
    found = next_logprobs(model, asked, TOKENS, pad_id=PAD_ID, micro_batch_size=size)
    expected = torch.stack([plain(model, row) for row in asked])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_rows_begin_with_is_read_once():
    model, asked = causal(), rows()
    next_logprobs(model, asked, TOKENS, pad_id=PAD_ID)  # tries the model
    counts = read(model)
    next_logprobs(model, asked, TOKENS, pad_id=PAD_ID)
    beginnings, ends, other = 2 * 41, 2 * 16, 13  # and its answer
    assert sum(counts) <= beginnings + ends + other + 2  # one token for each use of its head
    apart = causal("bloom")
    counts = read(apart)
    next_logprobs(apart, asked, TOKENS, pad_id=PAD_ID)
    assert sum(counts) > 3 * (beginnings + ends) / 2


def test_short_beginnings_are_read_with_their_rows():
    model, asked = causal(), rows(shared=6)
    counts = read(model)
    next_logprobs(model, asked, TOKENS, pad_id=PAD_ID)
    assert max(counts) > sum(map(len, asked))  # one pass over all


def saving(groups, asked, price):
    total = 0
    for group in groups:
        if len(group) > 1:
            columns = zip(*(asked[row][:-1] for row in group), strict=False)
            shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
            total += (len(group) - 1) * shared - price
    return total


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_no_other_runs_of_sorted_rows_save_more(asked, price):
    found = beginning_groups(asked, most_rows=9, most_tokens=999, price=price)
    assert sorted(itertools.chain(*found)) == list(range(len(asked)))
    order = sorted(range(len(asked)), key=lambda row: asked[row])
    best = 0
    for cuts in itertools.product([False, True], repeat=len(asked) - 1):
        runs = [[order[0]]]
        for row, cut in zip(order[1:], cuts, strict=True):
            runs = [*runs, [row]] if cut else [*runs[:-1], [*runs[-1], row]]
        best = max(best, saving(runs, asked, price))
    assert saving(found, asked, price) == best


def test_groups_have_limits():
    asked = [[1, 2, 3, 4, at] for at in range(6)]
    assert [len(one) for one in beginning_groups(asked, most_rows=3, most_tokens=99, price=0)] == [
        3,
        3,
    ]
    few = beginning_groups(asked, most_rows=9, most_tokens=6, price=0)
    assert [len(one) for one in few] == [2, 2, 2]
    alone = beginning_groups(asked, most_rows=9, most_tokens=99, price=0, least=5)
    assert len(alone) == 6


def test_what_cannot_be_read_is_an_error():
    asked = rows()
    with pytest.raises(DataError, match="reads at most"):
        next_logprobs(causal(max_position_embeddings=50), asked, TOKENS, pad_id=PAD_ID)
    with pytest.raises(ModelError):
        next_logprobs(causal(), [[*row[:-1], 99_999] for row in asked], TOKENS, pad_id=PAD_ID)
    model = causal()
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(NumericError, match="NaN or infinite"):
        next_logprobs(model, asked[:2] + asked[2:4], TOKENS, pad_id=PAD_ID)
