"""Losses of a critic of utterances, and what an utterance is worth."""

import math

import pytest
import torch

from tokencredit.policy.losses.utterances import (
    utterance_advantages,
    utterance_q_losses,
    utterance_v_losses,
)

Q, V = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.5, 1.0], [math.nan, math.nan]])


def test_literals_and_nothing_after_the_end():
    losses = utterance_q_losses(
        Q, torch.tensor([1.0, 4.0]), V, torch.tensor([False, True]), discount=0.5
    )
    assert losses.tolist() == [(1 - 1.25) ** 2 + (2 - 1.5) ** 2, 1.0 + 1.0]
    assert utterance_v_losses(Q, torch.zeros(2, 2)).tolist() == [5.0, 34.0]
    assert utterance_advantages(Q, torch.tensor([[3.0, 0.5], [2.0, 7.0]])).tolist() == [0.5, 1.0]


def test_gradients_reach_what_is_learnt_alone():
    q, v, slow = (torch.randn(3, 2, dtype=torch.float64).requires_grad_() for _ in range(3))
    rewards, last = torch.randn(3, dtype=torch.float64), torch.tensor([True, False, False])
    losses = utterance_q_losses(q, rewards, slow, last, discount=0.9) + utterance_v_losses(v, slow)
    losses.sum().backward()
    assert slow.grad is None
    torch.testing.assert_close(v.grad, 2 * (v - slow).detach())
    assert not utterance_advantages(q, v).requires_grad


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_values_of_a_known_chain_have_no_error(discount):
    """Three states in a row, each with one utterance: values are discounted sums of rewards."""
    rewards = torch.tensor([0.0, 1.0, 2.0])
    returns = torch.tensor([discount * (1 + 2 * discount), 1 + 2 * discount, 2.0])
    both = returns[:, None].expand(3, 2)
    following = torch.tensor([[*both[1]], [*both[2]], [0.0, 0.0]])
    last = torch.tensor([False, False, True])
    assert not utterance_q_losses(both, rewards, following, last, discount=discount).any()
    assert not utterance_v_losses(both, both).any()
    assert not utterance_advantages(both, both).any()
