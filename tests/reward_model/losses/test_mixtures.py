import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reward_losses as reference

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.reward_model.losses.mixtures import (
    kl_to_standard_normal,
    memberships,
    mixture_losses,
    responsibilities,
    weight_negentropy,
)
from tokencredit.reward_model.losses.pairs import bradley_terry_loss, bradley_terry_losses


def drawn(seed, pairs=5, heads=3):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(pairs, heads, generator=generator) * 3
    weights = torch.rand(pairs, heads, generator=generator) + 0.1
    return losses, weights / weights.sum(-1, keepdim=True)


def test_literal():
    leads = torch.tensor([[2.0, -1.0]])
    losses = bradley_terry_losses(leads[0], torch.zeros(2))[None]
    expected = -math.log(0.25 / (1 + math.exp(-2)) + 0.75 / (1 + math.exp(1)))
    found = mixture_losses(losses, torch.tensor([[0.25, 0.75]]).log())
    assert found.item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10**6))
def test_against_the_reference(seed):
    losses, weights = drawn(seed)
    found = mixture_losses(losses, weights.log())
    for pair in range(5):
        expected = reference.mixture(losses[pair].tolist(), weights[pair].tolist())
        assert found[pair].item() == pytest.approx(expected, rel=1e-4)
    users = torch.tensor([1, 0, 1, 2, 0])
    posterior = memberships(losses, users, weights[0], hard=False)
    expected = reference.memberships(losses.tolist(), users.tolist(), weights[0].tolist())
    torch.testing.assert_close(posterior, torch.tensor(expected), rtol=1e-3, atol=1e-5)
    mean, log_var = losses[0], losses[1] - 1
    expected = reference.kl_to_standard_normal(mean.tolist(), log_var.exp().tolist())
    assert kl_to_standard_normal(mean, log_var).item() == pytest.approx(expected, rel=1e-4)


def test_a_mixture_of_one_is_its_loss_bit_for_bit():
    losses, _ = drawn(0, heads=1)
    assert torch.equal(mixture_losses(losses, torch.zeros(1, 1)), losses[:, 0])
    scores = torch.randn(5, 2)
    plain = bradley_terry_loss(*scores.unbind(-1))
    assert torch.equal(
        mixture_losses(bradley_terry_losses(*scores.unbind(-1))[:, None], torch.zeros(1, 1)).mean(),
        plain,
    )


def test_equal_heads_are_one_head_for_any_weights():
    losses, weights = drawn(1)
    equal = losses[:, :1].expand(-1, 3)
    torch.testing.assert_close(mixture_losses(equal, weights.log()), losses[:, 0])


def test_the_gradient_of_a_head_is_its_own_by_its_responsibility():
    losses, weights = drawn(2)
    losses.requires_grad_()
    (slopes,) = torch.autograd.grad(mixture_losses(losses, weights.log()).sum(), losses)
    torch.testing.assert_close(slopes, responsibilities(losses, weights.log()))
    torch.testing.assert_close(slopes.sum(-1), torch.ones(5))
    assert torch.autograd.gradcheck(
        lambda one: mixture_losses(one, weights.double().log()), losses.detach().double()
        .requires_grad_(), eps=1e-2, atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_a_hopeless_pair_stays_finite():
    losses = bradley_terry_losses(torch.tensor([-1e4, -2e4]), torch.zeros(2))[None]
    found = mixture_losses(losses.requires_grad_(), torch.tensor([[0.5, 0.5]]).log())
    found.sum().backward()
    assert found.item() == pytest.approx(1e4 + math.log(2), rel=1e-6)


def test_hard_memberships_follow_the_sum_over_pairs():
    """One strong pair outweighs two weak ones, and no quotient overflows."""
    losses = torch.tensor([[0.0, 5000.0], [0.2, 0.1], [0.2, 0.1], [3.0, 0.5]])
    users = torch.tensor([0, 0, 0, 1])
    hard = memberships(losses, users, torch.tensor([0.01, 0.99]), hard=True)
    assert hard.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    soft = memberships(losses, users, torch.tensor([0.5, 0.5]), hard=False)
    assert soft[0].tolist() == [1.0, 0.0]
    assert soft[1, 1].item() == pytest.approx(1 / (1 + math.exp(-2.5)), rel=1e-5)


def test_an_em_step_never_lowers_the_likelihood():
    """Two coins whose faces are drawn by users: the M-step has a closed form."""
    generator = torch.Generator().manual_seed(3)
    users = torch.arange(30).repeat_interleave(6)
    heads = torch.where(users < 15, 0.8, 0.3)
    faces = torch.rand(len(users), generator=generator) < heads
    chances, shares, before = torch.tensor([0.6, 0.5]), torch.tensor([0.5, 0.5]), -math.inf
    for _ in range(8):
        likely = torch.where(faces[:, None], chances, 1 - chances)
        sums = torch.zeros(30, 2).index_add(0, users, likely.log())
        now = float((sums + shares.log()).logsumexp(-1).sum())
        assert now >= before - 1e-4
        before = now
        belongs = memberships(-likely.log(), users, shares, hard=False)
        of_pairs = belongs[users]
        chances = (of_pairs * faces[:, None]).sum(0) / of_pairs.sum(0)
        shares = belongs.mean(0)
    assert chances.max() > 0.7
    assert chances.min() < 0.4


def test_entropy_and_distance_have_their_bounds():
    even = torch.full((2, 4), 0.25).log()
    assert weight_negentropy(even).item() == pytest.approx(-math.log(4))
    assert weight_negentropy(torch.tensor([[0.0, -80.0]])).item() == pytest.approx(0.0, abs=1e-6)
    assert kl_to_standard_normal(torch.zeros(3), torch.zeros(3)).item() == 0.0
    assert (kl_to_standard_normal(torch.randn(50, 3), torch.randn(50, 3)) >= 0).all()


@pytest.mark.usefixtures("unchecked")
def test_errors():
    losses, users = torch.zeros(2, 2), torch.tensor([0, 0])
    with pytest.raises(ConfigError, match="expected numbers above 0"):
        memberships(losses, users, torch.tensor([0.0, 1.0]), hard=False)
    with pytest.raises(ShapeError, match="1 users for 2 pairs"):
        memberships(losses, users[:1], torch.tensor([0.5, 0.5]), hard=True)
