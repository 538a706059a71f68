"""Likeness of token embeddings, both ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import similarity as reference

from tokencredit.errors import ShapeError
from tokencredit.reward_model.similarity import best_match_similarity, best_match_token_scores

seeds = st.integers(0, 10**6)


def drawn(seed, rows=3, time=5, other=4, width=3):
    torch.manual_seed(seed)
    lengths = torch.randint(1, time + 1, (rows,)), torch.randint(1, other + 1, (rows,))
    masks = [torch.arange(size) < count[:, None]
             for size, count in zip((time, other), lengths, strict=True)]  # fmt: skip
    return torch.randn(rows, time, width), torch.randn(rows, other, width), *masks


@given(seeds)
def test_against_the_reference(seed):
    own, other, own_mask, other_mask = drawn(seed)
    paid = best_match_token_scores(own, other, own_mask, other_mask)
    whole = best_match_similarity(own, other, own_mask, other_mask)
    for row in range(3):
        texts = own[row][own_mask[row]].tolist(), other[row][other_mask[row]].tolist()
        expected = reference.best_match(*texts)
        assert paid[row][own_mask[row]].tolist() == pytest.approx(expected, abs=1e-5)
        assert whole[row].item() == pytest.approx(sum(expected), abs=1e-5)


@given(seeds)
def test_it_is_symmetric_and_1_for_the_same_words_in_any_order(seed):
    own, other, own_mask, other_mask = drawn(seed)
    found = best_match_similarity(own, other, own_mask, other_mask)
    torch.testing.assert_close(best_match_similarity(other, own, other_mask, own_mask), found)
    assert (found.abs() <= 1 + 1e-5).all()
    order = torch.randperm(own.shape[1])
    same = best_match_similarity(own, 3 * own[:, order], own_mask, own_mask[:, order])
    torch.testing.assert_close(same, torch.ones(3))


@pytest.mark.parametrize("garbage", [0.0, 1e30, torch.nan, torch.inf])
def test_padding_and_what_stands_in_it_change_nothing(garbage):
    own, other, own_mask, other_mask = drawn(7)
    for function in (best_match_similarity, best_match_token_scores):
        plain = function(own, other, own_mask, other_mask)
        dirty = function(
            own.masked_fill(~own_mask[:, :, None], garbage),
            other.masked_fill(~other_mask[:, :, None], garbage),
            own_mask,
            other_mask,
        )
        assert torch.equal(dirty, plain)
        for row in range(3):
            count, known = own_mask[row].sum(), other_mask[row].sum()
            alone = function(own[row : row + 1, :count], other[row : row + 1, :known],
                             own_mask[row : row + 1, :count],
                             other_mask[row : row + 1, :known])[0]  # fmt: skip
            longer = plain[row] if plain.ndim == 1 else plain[row, :count]
            torch.testing.assert_close(alone, longer)


def test_an_empty_text_is_like_nothing():
    own, other, own_mask, other_mask = drawn(3)
    for masks in ((own_mask & False, other_mask), (own_mask, other_mask & False)):
        assert best_match_similarity(own, other, *masks).tolist() == [0.0] * 3
        assert best_match_token_scores(own, other, *masks).eq(0).all()
    nothing = best_match_similarity(own[:, :0], other, own_mask[:, :0], other_mask & False)
    assert nothing.tolist() == [0.0] * 3


@pytest.mark.usefixtures("unchecked")
def test_masks_of_another_shape_are_refused():
    own, other, own_mask, other_mask = drawn(0)
    with pytest.raises(ShapeError, match="one embedding per token"):
        best_match_similarity(own, other, own_mask[:, 1:], other_mask)
    with pytest.raises(ShapeError, match="one reference per response"):
        best_match_similarity(own[1:], other, own_mask[1:], other_mask)
