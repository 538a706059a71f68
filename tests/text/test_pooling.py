import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import segments as reference
from torch.autograd import gradcheck

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import ConfigError, ShapeError
from tokencredit.shaping import blended_scores
from tokencredit.text.pooling import (
    pooled_by_segment,
    scores_at_segment_ends,
    segment_average_scores,
    segment_end_scores,
    spread_over_segments,
)
from tokencredit.text.segments import ngram_segments, random_ngram_segments

NAN = math.nan
DOUBLE = {"dtype": torch.float64}
seeds = st.integers(0, 10**6)
poolings = pytest.mark.parametrize("how", ["sum", "mean", "first", "last", "position"])
spreadings = pytest.mark.parametrize("how", ["even", "end", "copy"])


def drawn(seed, *, time=8):
    """Segments of drawn lengths over a mask with holes, and a value for each column."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, time, generator=generator) < 0.6
    segment_ids = random_ngram_segments(mask, lengths=[1, 2, 3], generator=generator)
    return segment_ids, torch.randn(4, time, generator=generator, **DOUBLE), mask


def test_pooling_literal():
    values, ids = torch.tensor([[6.0, 3.0, NAN, 9.0, 5.0]]), torch.tensor([[0, 0, -1, 0, 1]])
    expected = {"sum": 18.0, "mean": 6.0, "first": 6.0, "last": 9.0}
    for how, value in expected.items():
        assert pooled_by_segment(values, ids, how=how)[0].tolist() == [[value, 5.0]]
    pooled, is_segment = pooled_by_segment(values, ids, how="position")
    assert pooled[0].tolist() == pytest.approx([(6 + 3 / 2 + 9 / 3) / (1 + 1 / 2 + 1 / 3), 5.0])
    assert is_segment.tolist() == [[True, True]]


def test_spreading_literal():
    ids, values = torch.tensor([[0, -1, 0, 1], [0, -1, -1, -1]]), torch.tensor([[3, 5], [1, NAN]])
    even = spread_over_segments(values, ids, how="even")
    assert even.tolist() == [[1.5, 0.0, 1.5, 5.0], [1.0, 0.0, 0.0, 0.0]]
    end = spread_over_segments(values, ids, how="end")
    assert end.tolist() == [[0.0, 0.0, 3.0, 5.0], [1.0, 0.0, 0.0, 0.0]]
    copy = spread_over_segments(values, ids, how="copy")
    assert copy.tolist() == [[3.0, 0.0, 3.0, 5.0], [1.0, 0.0, 0.0, 0.0]]


@poolings
@given(seed=seeds)
def test_pooling_against_the_reference(how, seed):
    segment_ids, values, mask = drawn(seed)
    pooled, is_segment = pooled_by_segment(values.masked_fill(~mask, NAN), segment_ids, how=how)
    for row, ids in enumerate(segment_ids.tolist()):
        expected = reference.pooled(values[row].tolist(), ids, how)
        torch.testing.assert_close(pooled[row, : len(expected)], torch.tensor(expected, **DOUBLE))
        assert is_segment[row].sum() == len(expected)
        assert pooled[row, len(expected) :].eq(0).all()


@spreadings
@given(seed=seeds)
def test_spreading_against_the_reference(how, seed):
    segment_ids, values, _ = drawn(seed)
    for row, ids in enumerate(segment_ids.tolist()):
        own = values[row, : len(reference.members(ids))].tolist()
        expected = reference.spread(own, ids, how)
        actual = spread_over_segments(values, segment_ids, how=how)[row]
        torch.testing.assert_close(actual, torch.tensor(expected, **DOUBLE))


@given(seeds)
def test_copied_and_pooled_again_is_the_same_for_every_weighing(seed):
    segment_ids, values, _ = drawn(seed)
    _, is_segment = pooled_by_segment(values, segment_ids, how="sum")
    own = values[:, : is_segment.shape[1]].masked_fill(~is_segment, 0.0)
    copied = spread_over_segments(own, segment_ids, how="copy")
    for how in ("mean", "first", "last", "position"):
        torch.testing.assert_close(pooled_by_segment(copied, segment_ids, how=how)[0], own)
    for how in ("even", "end"):
        spread = spread_over_segments(own, segment_ids, how=how)
        torch.testing.assert_close(pooled_by_segment(spread, segment_ids, how="sum")[0], own)


@poolings
@pytest.mark.parametrize("garbage", [NAN, math.inf])
def test_garbage_outside_moves_neither_value_nor_gradient(how, garbage):
    segment_ids, values, mask = drawn(3)
    dirty = values.masked_fill(~mask, garbage).requires_grad_()
    pooled, _ = pooled_by_segment(dirty, segment_ids, how=how)
    torch.testing.assert_close(pooled, pooled_by_segment(values, segment_ids, how=how)[0])
    pooled.square().sum().backward()
    assert dirty.grad.isfinite().all()
    assert dirty.grad[~mask].eq(0).all()


def test_last_ignores_whatever_comes_before_it_in_the_segment():
    values = torch.tensor([[math.inf, 2.0]])
    assert pooled_by_segment(values, torch.tensor([[0, 0]]), how="last")[0].tolist() == [[2.0]]


@poolings
def test_pooling_gradient(how):
    segment_ids, values, _ = drawn(1)
    values.requires_grad_()
    assert gradcheck(lambda v: pooled_by_segment(v, segment_ids, how=how)[0], values)


@spreadings
def test_spreading_gradient(how):
    segment_ids, values, _ = drawn(1)
    values.requires_grad_()
    assert gradcheck(lambda v: spread_over_segments(v, segment_ids, how=how), values)


def test_half_precision_is_summed_in_single():
    values = torch.full((1, 1000), 0.1, dtype=torch.bfloat16)
    pooled, _ = pooled_by_segment(values, torch.zeros(1, 1000, dtype=torch.long), how="sum")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[0, 0], 1000 * values[0, 0].float())


def test_rows_without_tokens_and_without_columns():
    none = torch.full((2, 3), -1)
    pooled, is_segment = pooled_by_segment(torch.full((2, 3), NAN), none, how="mean")
    assert pooled.tolist() == [[0.0], [0.0]]
    assert not is_segment.any()
    assert spread_over_segments(torch.full((2, 1), NAN), none, how="even").eq(0).all()
    assert scores_at_segment_ends(torch.zeros(2, 0), none[:, :0]).shape == (2, 0)


@given(seeds)
def test_paid_at_the_ends_conserves_and_stays_causal(seed):
    segment_ids, values, mask = drawn(seed)
    scores = values.masked_fill(~mask, 0.0)
    paid = scores_at_segment_ends(scores, segment_ids)
    torch.testing.assert_close(paid.sum(-1), scores.sum(-1))
    other = torch.where(torch.arange(8) >= 5, scores + mask, scores)
    assert torch.equal(scores_at_segment_ends(other, segment_ids)[:, :5], paid[:, :5])


def test_one_token_each_changes_nothing_and_one_segment_is_terminal():
    scores, mask = torch.randn(3, 5), torch.arange(5) < torch.tensor([[5], [3], [1]])
    scores = scores.masked_fill(~mask, 0.0)
    each, whole = ngram_segments(mask, n=1), ngram_segments(mask, n=5)
    assert torch.equal(scores_at_segment_ends(scores, each), scores)
    torch.testing.assert_close(
        scores_at_segment_ends(scores, whole), terminal_credit(scores.sum(-1), mask)
    )


def test_segment_scores_literal():
    """The prompt's score is not read, nor those of prefixes that end inside a segment."""
    prefix_scores = torch.tensor([[NAN, NAN, 2.0, 4.0, 6.0], [NAN, 1.0, NAN, NAN, NAN]])
    ids = torch.tensor([[0, 0, 1, 2], [0, -1, -1, -1]])
    scores, is_segment = segment_end_scores(prefix_scores, ids)
    assert scores.tolist() == [[2.0, 4.0, 6.0], [1.0, 0.0, 0.0]]
    assert is_segment.sum(-1).tolist() == [3, 1]
    assert segment_average_scores(prefix_scores, ids).tolist() == [4.0, 1.0]


def test_gradient_of_the_average_goes_to_the_ends():
    prefix_scores = torch.tensor([[NAN, NAN, 2.0, NAN, 6.0]], requires_grad=True)
    segment_average_scores(prefix_scores, torch.tensor([[0, 0, -1, 1]])).sum().backward()
    assert prefix_scores.grad.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.5]]
    doubles = torch.randn(3, 6, **DOUBLE, requires_grad=True)
    ids = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 2, -1, -1], [-1] * 5])
    assert gradcheck(lambda scores: segment_average_scores(scores, ids), doubles)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_blended_between_the_two(share):
    mask = torch.tensor([[True, True, False]])
    dense = torch.tensor([[1.0, 3.0, 0.0]])
    terminal = terminal_credit(torch.tensor([4.0]), mask)
    blended = blended_scores(dense, terminal, share=share)
    assert blended.tolist() == [[share, 3 * share + 4 * (1 - share), 0.0]]
    assert blended.sum() == 4.0


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_fit():
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"values have shape \(2, 4\)"):
        pooled_by_segment(torch.zeros(2, 4), ids, how="sum")
    with pytest.raises(ShapeError, match=r"values have shape \(2, 4\)"):
        scores_at_segment_ends(torch.zeros(2, 4), ids)
    with pytest.raises(ShapeError, match=r"segment_values have shape \(1, 1\)"):
        spread_over_segments(torch.zeros(1, 1), ids, how="even")
    with pytest.raises(ShapeError, match=r"segment_values have shape \(2, 0\)"):
        spread_over_segments(torch.zeros(2, 0), ids, how="even")
    with pytest.raises(ShapeError, match="3 prefix scores for 3 tokens"):
        segment_end_scores(torch.zeros(2, 3), ids)
    with pytest.raises(ShapeError, match="5 prefix scores for 3 tokens"):
        segment_average_scores(torch.zeros(2, 5), ids)
    with pytest.raises(ShapeError, match=r"token_scores have shape \(2, 3\)"):
        blended_scores(torch.zeros(2, 3), torch.zeros(2), share=0.5)


@pytest.mark.usefixtures("unchecked")
def test_options_must_be_known():
    ids, scores = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2)
    with pytest.raises(ConfigError, match="how is 'max'"):
        pooled_by_segment(scores, ids, how="max")
    with pytest.raises(ConfigError, match="how is 'start'"):
        spread_over_segments(scores, ids, how="start")
    with pytest.raises(ConfigError, match=r"share is 1\.5"):
        blended_scores(scores, scores, share=1.5)
