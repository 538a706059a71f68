import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tokencredit.masking import (
    last_true_index,
    left_packed,
    masked_mean,
    masked_row_mean,
    masked_sum,
    masked_var,
    masked_whiten,
)

NAN = math.nan
MASK = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
VALUES = torch.tensor([[1.0, 3.0, NAN], [math.inf, 5.0, NAN], [NAN, NAN, NAN]])


def test_literals():
    assert masked_sum(VALUES, MASK).tolist() == [4.0, 5.0, 0.0]
    assert masked_row_mean(VALUES, MASK).tolist() == [2.0, 5.0, 0.0]
    assert masked_mean(VALUES, MASK).item() == 3.0
    assert masked_var(VALUES, MASK).item() == pytest.approx(8 / 3)
    assert last_true_index(MASK).tolist() == [1, 1, -1]


def test_whiten_literal():
    scale = math.sqrt(8 / 3)
    expected = torch.tensor([[-2 / scale, 0, 0], [0, 2 / scale, 0], [0, 0, 0]])
    torch.testing.assert_close(masked_whiten(VALUES, MASK), expected)


rows = st.integers(1, 4)
columns = st.integers(1, 6)


@given(rows, columns, st.integers(0, 10**6))
def test_masks_act_like_deletion(batch, time, seed):
    torch.manual_seed(seed)
    values = torch.randn(batch, time, dtype=torch.float64)
    mask = torch.rand(batch, time) < 0.6
    dirty = values.masked_fill(~mask, NAN)
    kept = values[mask]
    mean = sum(kept.tolist()) / max(len(kept), 1)
    variance = sum((v - mean) ** 2 for v in kept.tolist()) / max(len(kept), 1)
    assert masked_mean(dirty, mask).item() == pytest.approx(mean)
    assert masked_var(dirty, mask).item() == pytest.approx(variance)
    whitened = masked_whiten(dirty, mask)
    expected = [(v - mean) / math.sqrt(variance + 1e-8) for v in kept.tolist()]
    assert whitened[mask].tolist() == pytest.approx(expected)
    assert whitened[~mask].eq(0).all()
    for row in range(batch):
        own = values[row][mask[row]].tolist()
        assert masked_sum(dirty, mask)[row].item() == pytest.approx(sum(own))
        assert masked_row_mean(dirty, mask)[row].item() == pytest.approx(
            sum(own) / max(len(own), 1)
        )
        places = [t for t in range(time) if mask[row, t]]
        assert last_true_index(mask)[row].item() == (places[-1] if places else -1)


@given(rows, columns, st.integers(0, 10**6))
def test_packing_keeps_the_order_and_nothing_else(batch, time, seed):
    torch.manual_seed(seed)
    values = torch.randn(batch, time, 2)
    mask = torch.rand(batch, time) < 0.6
    packed, packed_mask = left_packed(values, mask)
    assert packed.shape == (batch, int(mask.sum(-1).max()), 2)
    assert packed[~packed_mask].eq(0).all()
    for row in range(batch):
        torch.testing.assert_close(packed[row][packed_mask[row]], values[row][mask[row]])
        lengths = int(mask[row].sum())
        assert packed_mask[row, :lengths].all()


@pytest.mark.parametrize("reduce", [masked_mean, masked_var, masked_whiten, masked_row_mean])
def test_gradient_is_exact_and_ignores_the_masked(reduce):
    mask = torch.tensor([[True, True, False, True]])
    values = torch.tensor([[0.3, -1.0, 0.7, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: reduce(v, mask), values)
    dirty = values.detach().masked_fill(~mask, NAN).requires_grad_()
    reduce(dirty, mask).square().sum().backward()
    assert dirty.grad.isfinite().all()
    assert dirty.grad[~mask].eq(0).all()


def test_an_empty_mask_gives_zeros():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    values = torch.full((2, 3), NAN)
    assert masked_mean(values, nothing).item() == 0
    assert masked_var(values, nothing).item() == 0
    assert masked_whiten(values, nothing).eq(0).all()


def test_no_columns_at_all():
    nothing = torch.zeros(2, 0, dtype=torch.bool)
    assert last_true_index(nothing).tolist() == [-1, -1]
    assert masked_sum(torch.zeros(2, 0), nothing).tolist() == [0, 0]
    packed, packed_mask = left_packed(torch.zeros(2, 0), nothing)
    assert packed.shape == packed_mask.shape == (2, 0)


def test_whitening_does_not_see_padding():
    values = torch.randn(2, 4)
    mask = torch.ones(2, 4, dtype=torch.bool)
    wide = torch.cat([values, torch.full((2, 5), 1e6)], dim=-1)
    wide_mask = torch.cat([mask, torch.zeros(2, 5, dtype=torch.bool)], dim=-1)
    torch.testing.assert_close(
        masked_whiten(wide, wide_mask)[:, :4], masked_whiten(values, mask), rtol=1e-5, atol=1e-6
    )
