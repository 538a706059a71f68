import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import advantages as reference

from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.policy.advantages import gae_advantages, rewards_to_go

NAN = math.nan
seeds = st.integers(0, 10**6)
discounts = st.sampled_from([0.0, 0.5, 0.95, 1.0])
DOUBLE = {"dtype": torch.float64}


def test_literal():
    """By hand with gamma 0.5 and lambda 0.5: errors 1 + 2 - 2, 3 + 0 - 4; advantages 0.75, -1."""
    rewards, values = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]])
    advantages, returns = gae_advantages(
        rewards, values, torch.ones(1, 2).bool(), gamma=0.5, gae_lambda=0.5
    )
    assert advantages.tolist() == [[0.75, -1.0]]
    assert returns.tolist() == [[2.75, 3.0]]


def test_a_truncated_response_is_worth_what_the_critic_still_expects():
    rewards, values = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    advantages, returns = gae_advantages(
        rewards,
        values,
        torch.ones(2, 2).bool(),
        gamma=0.5,
        gae_lambda=1.0,
        bootstrap_values=torch.tensor([8.0, 0.0]),
    )
    assert returns.tolist() == [[2.0, 4.0], [0.0, 0.0]]
    assert advantages.tolist() == [[1.0, 2.0], [-1.0, -2.0]]


@given(seeds, discounts, discounts)
def test_against_the_reference_with_holes_and_garbage(seed, gamma, gae_lambda):
    torch.manual_seed(seed)
    rewards, values = torch.randn(2, 4, 6, **DOUBLE)
    mask, bootstrap = torch.rand(4, 6) < 0.6, torch.randn(4, **DOUBLE)
    rows = zip(rewards.tolist(), values.tolist(), mask.tolist(), bootstrap.tolist(), strict=True)
    expected = [reference.gae(r, v, m, gamma, gae_lambda, b) for r, v, m, b in rows]
    actual = gae_advantages(
        rewards.masked_fill(~mask, NAN),
        values.masked_fill(~mask, NAN),
        mask,
        gamma=gamma,
        gae_lambda=gae_lambda,
        bootstrap_values=bootstrap,
    )
    torch.testing.assert_close(actual[0], torch.tensor([row[0] for row in expected], **DOUBLE))
    torch.testing.assert_close(actual[1], torch.tensor([row[1] for row in expected], **DOUBLE))


@given(seeds, discounts)
def test_rewards_to_go_against_the_reference(seed, gamma):
    torch.manual_seed(seed)
    rewards, mask = torch.randn(4, 6, **DOUBLE), torch.rand(4, 6) < 0.6
    expected = [
        reference.rewards_to_go(*row, gamma)
        for row in zip(rewards.tolist(), mask.tolist(), strict=True)
    ]
    actual = rewards_to_go(rewards.masked_fill(~mask, NAN), mask, gamma=gamma)
    torch.testing.assert_close(actual, torch.tensor(expected, **DOUBLE))


def test_lambda_one_gives_discounted_returns_minus_values():
    rewards, values = torch.randn(2, 3, 5, **DOUBLE)
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    advantages, returns = gae_advantages(rewards, values, mask, gamma=0.9, gae_lambda=1.0)
    expected = rewards_to_go(rewards, mask, gamma=0.9)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantages, (expected - values).masked_fill(~mask, 0.0))


def test_lambda_zero_gives_one_step_errors():
    rewards, values = torch.randn(2, 3, 5, **DOUBLE)
    mask = torch.ones(3, 5, dtype=torch.bool)
    advantages, _ = gae_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.0)
    after = torch.cat([values[:, 1:], torch.zeros(3, 1, **DOUBLE)], dim=-1)
    torch.testing.assert_close(advantages, rewards + 0.9 * after - values)


def test_a_perfect_critic_leaves_no_advantage():
    rewards, mask = torch.randn(3, 5, **DOUBLE), torch.ones(3, 5, dtype=torch.bool)
    values = rewards_to_go(rewards, mask, gamma=0.9)
    advantages, returns = gae_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))
    torch.testing.assert_close(returns, values)


def test_tool_tokens_are_skipped_as_if_deleted():
    """Not even a factor of gamma and lambda is lost while the tool speaks."""
    mask = torch.tensor([[True, False, False, True, False, True]])
    rewards, values = torch.randn(2, 1, 6, **DOUBLE)
    options = {"gamma": 0.7, "gae_lambda": 0.6}
    with_tool = gae_advantages(rewards, values, mask, **options)
    without = gae_advantages(
        rewards[:, [0, 3, 5]], values[:, [0, 3, 5]], mask[mask][None], **options
    )
    for kept, expected in zip(with_tool, without, strict=True):
        torch.testing.assert_close(kept[:, [0, 3, 5]], expected)
        assert kept[:, [1, 2, 4]].eq(0).all()


@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize("right", [0, 3])
def test_padding_changes_nothing(left, right):
    rewards, values = torch.randn(2, 2, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = gae_advantages(rewards, values, mask)
    wide = [
        torch.nn.functional.pad(tensor, (left, right), value=fill)
        for tensor, fill in ((rewards, 1e9), (values, NAN), (mask, False))
    ]
    for padded, plain in zip(gae_advantages(*wide), expected, strict=True):
        torch.testing.assert_close(padded[:, left : left + 4], plain)


def test_batch_equals_one_by_one():
    rewards, values = torch.randn(2, 3, 4)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    together = gae_advantages(rewards, values, mask)
    for row in range(3):
        own = slice(row, row + 1)
        for alone, all_rows in zip(
            gae_advantages(rewards[own], values[own], mask[own]), together, strict=True
        ):
            torch.testing.assert_close(alone, all_rows[own])


def test_prefix_scores_as_critic_and_as_credit_are_the_same_at_lambda_zero():
    """Terminal reward with the prefix scorer as critic has prefix differences as its errors."""
    prefix_scores, mask = torch.randn(3, 6), torch.ones(3, 5, dtype=torch.bool)
    terminal = terminal_credit(prefix_scores[:, -1], mask)
    advantages, _ = gae_advantages(terminal, prefix_scores[:, :-1], mask, gae_lambda=0.0)
    torch.testing.assert_close(advantages, prefix_difference_credit(prefix_scores, mask))


def test_gradient_of_the_returns():
    rewards = torch.randn(2, 3, **DOUBLE, requires_grad=True)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda r: rewards_to_go(r, mask, gamma=0.8), rewards)
