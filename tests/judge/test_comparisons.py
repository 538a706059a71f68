"""Comparisons without the place: literal values, reductions, missing ones."""

import pytest
import torch

from tokencredit.errors import ShapeError
from tokencredit.judge.comparisons import (
    both_orders,
    group_win_advantages,
    group_wins,
    order_consistency,
)
from tokencredit.policy.estimators import grpo_advantages


def test_the_bias_of_a_place_cancels_in_logits_and_not_in_probabilities():
    true, bias = torch.tensor(0.668).double().logit(), 0.9
    first, second = true + bias, -true + bias
    assert float(both_orders(first, second).sigmoid()) == pytest.approx(0.668, abs=1e-7)
    mean = (first.sigmoid() + 1 - second.sigmoid()) / 2
    assert float(mean) == pytest.approx(0.641, abs=5e-4)


def test_the_other_response_has_the_opposite():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, generator=generator)
    torch.testing.assert_close(
        both_orders(first, second), -both_orders(second, first), rtol=0, atol=0
    )


def test_one_order_that_is_missing_leaves_nothing():
    assert both_orders(torch.tensor([1.0]), torch.tensor([float("nan")])).isnan().all()


def test_consistency_counts_what_can_be_compared():
    nan = float("nan")
    first = torch.tensor([1.0, 1.0, -2.0, 0.0, nan])
    second = torch.tensor([-3.0, 1.0, 0.5, -1.0, 1.0])
    assert float(order_consistency(first, second)) == 0.5
    assert order_consistency(torch.tensor([nan]), torch.tensor([1.0])).isnan()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_wins_of_differences_are_the_scores_without_their_mean(size):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size)).double()
    margins = scores[:, None] - scores
    torch.testing.assert_close(group_wins(margins), scores - scores.mean())


@pytest.mark.parametrize("size", [2, 3, 5])
def test_advantages_of_differences_are_those_of_grpo(size):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size))
    margins = scores[:, None] - scores
    expected = (scores - scores.mean()) / scores.std()
    torch.testing.assert_close(group_win_advantages(margins, eps=0.0), expected)
    of_grpo = grpo_advantages(
        scores[:, None], torch.ones(size, 1, dtype=torch.bool), torch.zeros(size, dtype=torch.long)
    )
    torch.testing.assert_close(
        group_win_advantages(margins, eps=0.0), of_grpo[:, 0], rtol=1e-3, atol=1e-3
    )


def test_antisymmetric_margins_give_advantages_that_sum_to_zero():
    drawn = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    margins = drawn - drawn.T
    expected = margins.sum(-1) / 4 / (margins.square().sum() / (2 * 4 * 3) + 1e-6).sqrt()
    torch.testing.assert_close(group_win_advantages(margins), expected)
    assert float(group_win_advantages(margins).sum()) == pytest.approx(0.0, abs=1e-12)


def test_comparisons_that_are_missing_do_not_count_as_draws():
    nan = float("nan")
    margins = torch.tensor([[9.0, 2.0, nan], [-2.0, 9.0, nan], [nan, nan, nan]])
    wins = group_wins(margins)
    assert wins[:2].tolist() == pytest.approx([4 / 3, -4 / 3])
    assert wins[2].isnan()
    advantages = group_win_advantages(margins, eps=0.0)
    assert advantages[0].item() == pytest.approx(4 / 3 / 2**0.5)
    assert advantages[2].isnan()


def test_margins_are_square():
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        group_wins(torch.zeros(2, 3))
