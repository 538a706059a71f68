import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reward_losses as reference
from torch.autograd import gradcheck

from tokencredit.reward_model.losses.several_ratings import (
    multi_objective_regression_loss,
    prefix_multi_objective_regression_loss,
)
from tokencredit.reward_model.losses.targets import prefix_regression_loss, regression_loss

NAN = math.nan


def drawn(seed: int, batch: int = 4, time: int = 6, objectives: int = 3):
    """Scores with holes in mask and ratings, NaN there; every row has a token."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, time, generator=generator) < 0.6
    mask[:, 2] = True
    missing = torch.rand(batch, objectives, generator=generator) < 0.4
    ratings = torch.randn(batch, objectives, generator=generator).masked_fill(missing, NAN)
    scores = torch.randn(batch, time, objectives, generator=generator)
    return scores.masked_fill(~mask[:, :, None] | missing[:, None], NAN), ratings, mask


def test_literal():
    """Row 0: (1 + 4)/2 of the first objective and 4 of the second; row 1: 9 of the second."""
    scores = torch.tensor([[[1.0, 5.0], [2.0, 1.0]], [[NAN, 0.0], [NAN, NAN]]])
    ratings = torch.tensor([[0.0, 3.0], [NAN, 3.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss = prefix_multi_objective_regression_loss(scores, ratings, mask)
    assert loss.item() == pytest.approx(((2.5 + 4.0) / 2 + 9.0) / 2)


@given(st.integers(0, 10**6))
def test_against_the_reference_in_float64(seed):
    scores, ratings, mask = drawn(seed)
    rows = [
        reference.several_squared_errors(scores[row][counts].double().tolist(), rated)
        for row, (counts, rated) in enumerate(zip(mask, ratings.double().tolist(), strict=True))
    ]
    loss = prefix_multi_objective_regression_loss(scores, ratings, mask)
    assert loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-4, abs=1e-7)
    whole = torch.randn_like(ratings)
    rows = [
        reference.several_squared_errors([one], rated)
        for one, rated in zip(whole.tolist(), ratings.tolist(), strict=True)
    ]
    loss = multi_objective_regression_loss(whole, ratings)
    assert loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-4, abs=1e-7)


@given(st.integers(0, 10**6))
def test_one_objective_is_regression_bit_for_bit(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, ratings = torch.randn(5, 7, generator=generator), torch.randn(5, generator=generator)
    mask = torch.rand(5, 7, generator=generator) < 0.5
    losses, gradients = [], []
    for loss in (
        lambda rows: prefix_regression_loss(rows, ratings, mask),
        lambda rows: prefix_multi_objective_regression_loss(
            rows[..., None], ratings[:, None], mask
        ),
    ):
        rows = scores.clone().requires_grad_()
        losses.append(loss(rows))
        losses[-1].backward()
        gradients.append(rows.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    one = multi_objective_regression_loss(scores[:, :1], ratings[:, None])
    torch.testing.assert_close(one, regression_loss(scores[:, 0], ratings))


@given(st.integers(0, 10**6))
def test_every_row_counts_once_and_objectives_have_no_order(seed):
    scores, ratings, mask = drawn(seed)
    loss = prefix_multi_objective_regression_loss(scores, ratings, mask)
    rows = [
        prefix_multi_objective_regression_loss(scores[[row]], ratings[[row]], mask[[row]])
        for row in range(len(scores))
    ]
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    order = [2, 0, 1]
    other = prefix_multi_objective_regression_loss(scores[..., order], ratings[:, order], mask)
    torch.testing.assert_close(loss, other)


def test_what_is_hidden_or_missing_changes_neither_loss_nor_gradient():
    ratings = torch.tensor([[1.0, NAN], [NAN, NAN]])
    mask = torch.tensor([[True, False], [True, True]])
    losses, gradients = [], []
    for garbage in (0.0, 1e30, -math.inf, NAN):
        scores = torch.full((2, 2, 2), garbage)
        scores[0, 0, 0] = 3.0
        scores.requires_grad_()
        losses.append(prefix_multi_objective_regression_loss(scores, ratings, mask))
        losses[-1].backward()
        gradients.append(scores.grad)
    expected = torch.zeros(2, 2, 2)
    expected[0, 0, 0] = 2 * (3.0 - 1.0) / 2  # a mean over two rows, the second rated nowhere
    for loss, gradient in zip(losses, gradients, strict=True):
        assert loss.item() == pytest.approx(2.0)
        torch.testing.assert_close(gradient, expected)


def test_padding_changes_nothing():
    scores, ratings, mask = drawn(3)
    wider = torch.cat([scores, torch.full((4, 2, 3), NAN)], dim=1)
    mask_of_wider = torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        prefix_multi_objective_regression_loss(wider, ratings, mask_of_wider),
        prefix_multi_objective_regression_loss(scores, ratings, mask),
    )


def test_gradients():
    _, ratings, mask = drawn(5)
    scores = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)

    def loss(rows):
        return prefix_multi_objective_regression_loss(rows, ratings, mask)

    # Losses are float32 whatever comes in, so steps are wide and the check is loose.
    assert gradcheck(loss, (scores,), eps=1e-2, atol=5e-3, rtol=1e-3)
