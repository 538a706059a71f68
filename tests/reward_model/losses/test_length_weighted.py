import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reward_losses as reference

from tokencredit.reward_model.losses.length_weighted import (
    length_weighted_classification_loss,
    length_weighted_regression_loss,
    length_weights,
)
from tokencredit.reward_model.losses.targets import classification_loss, regression_loss

NAN = math.nan
LOSSES = (length_weighted_classification_loss, length_weighted_regression_loss)


def drawn(seed: int, batch: int = 4, time: int = 6):
    """Scores with holes in their mask, NaN there, and targets; every row has a token."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, time, generator=generator) < 0.6
    mask[:, 2] = True
    scores = torch.randn(batch, time, generator=generator).masked_fill(~mask, NAN)
    return scores, torch.rand(batch, generator=generator), mask


def test_literal():
    mask = torch.tensor([[True, False, True, True], [True, False, False, False]])
    weights = length_weights(mask)
    torch.testing.assert_close(
        weights, torch.tensor([[1 / 6, 0.0, 2 / 6, 3 / 6], [1.0, 0.0, 0.0, 0.0]])
    )
    scores = torch.tensor([[1.0, NAN, 3.0, 2.0], [5.0, NAN, NAN, NAN]])
    loss = length_weighted_regression_loss(scores, torch.tensor([2.0, 4.0]), mask)
    assert loss.item() == pytest.approx(((1 * 1 + 2 * 1 + 3 * 0) / 6 + 1) / 2)
    zeros = torch.zeros(1, 3)
    loss = length_weighted_classification_loss(zeros, torch.ones(1), torch.ones(1, 3).bool())
    assert loss.item() == pytest.approx(math.log(2))


@given(st.integers(0, 10**6))
def test_losses_against_the_reference(seed):
    scores, targets, mask = drawn(seed)
    squared, entropies = [], []
    for row, counts in enumerate(mask):
        values, target = scores[row][counts].tolist(), targets[row].item()
        expected = torch.tensor(reference.length_weights(len(values)))
        torch.testing.assert_close(length_weights(mask)[row][counts], expected)
        squared.append(reference.length_weighted_squared_error(values, target))
        entropies.append(reference.length_weighted_cross_entropy(values, target))
    loss = length_weighted_regression_loss(scores, targets, mask)
    assert loss.item() == pytest.approx(sum(squared) / 4, rel=1e-4)
    loss = length_weighted_classification_loss(scores, targets, mask)
    assert loss.item() == pytest.approx(sum(entropies) / 4, rel=1e-4)


@given(st.integers(0, 10**6))
def test_weights_are_shares_and_grow(seed):
    _, _, mask = drawn(seed)
    weights = length_weights(mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(mask)))
    assert weights[~mask].eq(0).all()
    for row, counts in enumerate(mask):
        shares = weights[row][counts]
        assert (shares[1:] > shares[:-1]).all()
    assert length_weights(torch.zeros(1, 3, dtype=torch.bool)).eq(0).all()


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 10**6))
def test_padding_and_batches_change_nothing(loss, seed):
    scores, targets, mask = drawn(seed)
    wide = torch.cat([torch.full((4, 3), NAN), scores, torch.full((4, 2), 1e9)], dim=-1)
    none = mask.new_zeros
    wider = torch.cat([none(4, 3), mask, none(4, 2)], dim=-1)
    whole = loss(scores, targets, mask)
    torch.testing.assert_close(loss(wide, targets, wider), whole)
    rows = [loss(*(part[i : i + 1] for part in (scores, targets, mask))) for i in range(4)]
    torch.testing.assert_close(torch.stack(rows).mean(), whole)


@pytest.mark.parametrize(
    ("loss", "whole"), [(LOSSES[0], classification_loss), (LOSSES[1], regression_loss)]
)
def test_one_token_is_the_whole_response(loss, whole):
    scores, targets = torch.randn(5, 1), torch.rand(5)
    mask = torch.ones(5, 1, dtype=torch.bool)
    torch.testing.assert_close(loss(scores, targets, mask), whole(scores[:, 0], targets))


@pytest.mark.parametrize(
    ("loss", "slope"),
    [
        (LOSSES[0], lambda scores, targets: scores.sigmoid() - targets[:, None]),
        (LOSSES[1], lambda scores, targets: 2 * (scores - targets[:, None])),
    ],
)
def test_gradient(loss, slope):
    scores, targets, mask = drawn(3)
    scores.requires_grad_()
    loss(scores, targets, mask).backward()
    expected = slope(scores.detach(), targets) * length_weights(mask) / len(mask)
    torch.testing.assert_close(scores.grad[mask], expected[mask])
    assert scores.grad[~mask].eq(0).all()
