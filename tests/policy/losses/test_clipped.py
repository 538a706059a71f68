import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import losses as reference

from tokencredit.policy.losses.clipped import (
    clipped_policy_losses,
    clipped_tokens,
    clipped_value_losses,
)

NAN = math.nan
seeds = st.integers(0, 10**6)
DOUBLE = {"dtype": torch.float64}
MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_policy_literals(ratio, advantage, loss, slope):
    """The slope in the log-probability is that of ratio * advantage, or none once clipped."""
    logprobs = torch.tensor([[math.log(ratio)]], **DOUBLE, requires_grad=True)
    actual = clipped_policy_losses(
        logprobs, torch.zeros(1, 1, **DOUBLE), torch.tensor([[advantage]], **DOUBLE), MASK[:1, :1]
    )
    assert actual.item() == pytest.approx(loss)
    actual.backward()
    assert logprobs.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("value", "old_value", "target", "loss"),
    [(3.0, 1.0, 2.0, 0.5), (3.0, 1.0, 3.0, 1.62), (1.1, 1.0, 2.0, 0.405), (0.0, 1.0, 2.0, 2.0)],
)
def test_value_literals(value, old_value, target, loss):
    tensors = [torch.tensor([[number]]) for number in (value, old_value, target)]
    assert clipped_value_losses(*tensors, MASK[:1, :1]).item() == pytest.approx(loss)


@given(seeds, st.sampled_from([0.05, 0.2, 0.5]))
def test_policy_against_the_reference(seed, clip_eps):
    torch.manual_seed(seed)
    policy, old, advantages = torch.randn(3, 2, 3, **DOUBLE)
    losses = clipped_policy_losses(policy, old, advantages, MASK, clip_eps=clip_eps)
    for place in MASK.nonzero().tolist():
        one = tuple(place)
        expected = reference.clipped_policy_loss(
            policy[one].item(), old[one].item(), advantages[one].item(), clip_eps
        )
        assert losses[one].item() == pytest.approx(expected)
    assert losses[~MASK].eq(0).all()


@given(seeds, st.sampled_from([None, 0.1, 1.0]))
def test_values_against_the_reference(seed, value_clip_eps):
    torch.manual_seed(seed)
    values, old, returns = torch.randn(3, 2, 3, **DOUBLE)
    losses = clipped_value_losses(values, old, returns, MASK, value_clip_eps=value_clip_eps)
    for place in MASK.nonzero().tolist():
        one = tuple(place)
        expected = reference.clipped_value_loss(
            values[one].item(), old[one].item(), returns[one].item(), value_clip_eps
        )
        assert losses[one].item() == pytest.approx(expected)
    assert losses[~MASK].eq(0).all()


@given(seeds)
def test_policy_gradient_is_exact(seed):
    torch.manual_seed(seed)
    policy, old, advantages = torch.randn(3, 2, 3, **DOUBLE)
    policy.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: clipped_policy_losses(p, old, advantages, MASK), policy
    )


@given(seeds, st.sampled_from([None, 0.3]))
def test_value_gradient_is_exact(seed, value_clip_eps):
    torch.manual_seed(seed)
    values, old, returns = torch.randn(3, 2, 3, **DOUBLE)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: clipped_value_losses(v, old, returns, MASK, value_clip_eps=value_clip_eps),
        values,
    )


def test_before_the_first_update_the_gradient_is_that_of_reinforce():
    logprobs = torch.randn(2, 3, **DOUBLE, requires_grad=True)
    advantages = torch.randn(2, 3, **DOUBLE)
    clipped_policy_losses(logprobs, logprobs.detach(), advantages, MASK).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages.masked_fill(~MASK, 0.0))


@pytest.mark.parametrize("function", [clipped_policy_losses, clipped_value_losses])
def test_advantages_and_returns_are_constants(function):
    current, old = torch.randn(2, 2, 3)
    target = torch.randn(2, 3, requires_grad=True)
    losses = function(current.requires_grad_(), old, target, MASK)
    assert torch.autograd.grad(losses.sum(), target, allow_unused=True) == (None,)


@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["policy", "value"])
def test_garbage_under_the_mask_reaches_neither_loss_nor_gradient(name, garbage):
    """0 * NaN is NaN in a backward pass too: masking the result alone would poison the model."""
    function = {"policy": clipped_policy_losses, "value": clipped_value_losses}[name]
    clean = [torch.randn(2, 3) for _ in range(3)]
    results = []
    for fill in (0.0, garbage):
        first, *others = (tensor.masked_fill(~MASK, fill) for tensor in clean)
        losses = function(first.requires_grad_(), *others, MASK)
        (gradient,) = torch.autograd.grad(losses.sum(), first)
        results.append((losses.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert results[1][1][~MASK].eq(0).all()


def test_micro_batches_sum_to_the_full_batch():
    policy, old, advantages = torch.randn(3, 2, 3)
    whole = clipped_policy_losses(policy, old, advantages, MASK).sum()
    parts = sum(
        clipped_policy_losses(
            policy[i : i + 1], old[i : i + 1], advantages[i : i + 1], MASK[i : i + 1]
        ).sum()
        for i in range(2)
    )
    torch.testing.assert_close(parts, whole)


def test_a_wide_clip_reduces_to_no_clip():
    policy, old, advantages = torch.randn(3, 2, 3) * 0.1
    wide = clipped_policy_losses(policy, old, advantages, MASK, clip_eps=0.99)
    plain = -((policy - old).exp() * advantages).masked_fill(~MASK, 0.0)
    torch.testing.assert_close(wide, plain)
    wide = clipped_value_losses(policy, old, advantages, MASK, value_clip_eps=1e6)
    plain = clipped_value_losses(policy, old, advantages, MASK, value_clip_eps=None)
    torch.testing.assert_close(wide, plain)


def test_clipped_tokens_literal():
    ratios = torch.tensor([[1.0, 1.3, 0.7], [1.1, 9.0, NAN]])
    assert clipped_tokens(ratios.log(), torch.zeros(2, 3), MASK).item() == 2
    assert clipped_tokens(ratios.log(), torch.zeros(2, 3), MASK, clip_eps=0.05).item() == 3
