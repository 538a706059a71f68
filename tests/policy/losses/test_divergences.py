import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import losses as reference

from tokencredit.policy.losses import divergences
from tokencredit.policy.losses.divergences import (
    chi_square_terms,
    chunked_entropies,
    chunked_forward_kls,
    dense_chi_square_penalties,
    root_slope,
)

NAN, DOUBLE = math.nan, torch.float64
seeds = st.integers(0, 10**6)
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_literals():
    terms = chi_square_terms(torch.tensor([0.0, math.log(2.0), -math.log(2.0), 12.0]))
    line = math.exp(10) * 3 + math.exp(-12.0) - 2
    assert terms.tolist() == pytest.approx([0.0, 0.5, 0.5, line])
    policy = torch.tensor([[math.log(2.0), math.log(2.0), 12.0], [-math.log(2.0), NAN, NAN]])
    penalties = dense_chi_square_penalties(policy, torch.zeros(2, 3), MASK, chi_square=0.25)
    last = (math.exp(10) * (3 + math.log(4.0)) - 4) / 0.5
    assert penalties.flatten().tolist() == pytest.approx([2.0, 4.0, last, -1.0, 0.0, 0.0])
    assert root_slope(4.0) == 0.25
    assert root_slope(1e-4) == 0.0


@given(seeds)
def test_chi_square_against_the_reference(seed):
    torch.manual_seed(seed)
    policy, ref = torch.randn(2, 2, 3, dtype=DOUBLE) * 5
    penalties = dense_chi_square_penalties(policy, ref, MASK, chi_square=0.3)
    for row, length in enumerate([3, 1]):
        ratios = (policy - ref)[row, :length].tolist()
        expected = reference.dense_chi_square(ratios, 0.3)
        assert penalties[row, :length].tolist() == pytest.approx(expected)
        assert not penalties[row, length:].any()
        term = chi_square_terms(torch.tensor([sum(ratios)], dtype=DOUBLE))
        assert term.item() == pytest.approx(reference.chi_square_term(sum(ratios)))
        assert term >= 0


def test_dense_penalties_sum_to_that_of_the_response_and_look_at_nothing_later():
    policy, ref = torch.randn(2, 4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    penalties = dense_chi_square_penalties(policy, ref, mask, chi_square=0.7)
    whole = ((policy - ref).sum(-1).exp() - 1) / 0.7**0.5
    torch.testing.assert_close(penalties.sum(-1), whole)
    later = policy.clone()
    later[:, 3:] += 1.0
    changed = dense_chi_square_penalties(later, ref, mask, chi_square=0.7)
    assert torch.equal(changed[:, :3], penalties[:, :3])


def test_garbage_under_the_mask_and_padding_change_nothing():
    policy, ref = torch.randn(2, 2, 3)
    plain = dense_chi_square_penalties(policy, ref, MASK, chi_square=1.0)
    broken = policy.masked_fill(~MASK, NAN)
    wider = [torch.nn.functional.pad(one, (0, 2), value=math.inf) for one in (broken, ref)]
    mask = torch.nn.functional.pad(MASK, (0, 2), value=False)
    found = dense_chi_square_penalties(*wider, mask, chi_square=1.0)
    torch.testing.assert_close(found[:, :3], plain)
    assert not found[:, 3:].any()


def test_no_chi_square_at_the_reference():
    logprobs, mask = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert not dense_chi_square_penalties(logprobs, logprobs, mask, chi_square=0.0).any()
    assert not chi_square_terms(torch.zeros(3)).any()


def enumerated(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of both tokens of all nine responses of two tokens out of three."""
    first, second = logits[0].log_softmax(-1), logits[1:].log_softmax(-1)
    return torch.stack([first[:, None].expand(3, 3), second], dim=-1).reshape(9, 2)


def test_on_an_enumerated_policy_they_are_what_they_estimate():
    """Mean terms are the chi-square; the policy gradient of the penalties is that of its root."""
    logits = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    ref = enumerated(torch.randn(4, 3, dtype=DOUBLE))
    policy = enumerated(logits)
    probabilities, ref_probabilities = policy.sum(-1).exp(), ref.sum(-1).exp()
    chi_square = (probabilities.square() / ref_probabilities).sum() - 1
    terms = chi_square_terms((policy - ref).sum(-1))
    estimate = (probabilities * terms).sum()
    torch.testing.assert_close(estimate, chi_square)
    (root,) = torch.autograd.grad(chi_square.sqrt(), logits, retain_graph=True)
    mask = torch.ones(9, 2, dtype=torch.bool)
    with torch.no_grad():
        penalties = dense_chi_square_penalties(policy, ref, mask, chi_square=float(chi_square))
        to_go = penalties.flip(-1).cumsum(-1).flip(-1)
    surrogate = (probabilities.detach() * (to_go * policy).sum(-1)).sum()
    (gradient,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    torch.testing.assert_close(gradient, root)
    # The published loss: half of the chi-square's gradient, and that of KL(reference || policy).
    loss = (probabilities.detach() * terms).sum()
    (of_loss,) = torch.autograd.grad(loss, logits, retain_graph=True)
    forward_kl = (ref_probabilities * (ref - policy).sum(-1)).sum()
    (expected,) = torch.autograd.grad(chi_square / 2 + forward_kl, logits)
    torch.testing.assert_close(of_loss, expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 512])
def test_entropies_and_forward_kls_against_the_reference(chunk_size):
    policy, ref = torch.randn(2, 2, 5, 4)
    entropies = chunked_entropies(policy, chunk_size=chunk_size)
    kls = chunked_forward_kls(policy, 2 * ref, temperature=2.0, chunk_size=chunk_size)
    for row in range(2):
        for column in range(5):
            here, there = policy[row, column].tolist(), ref[row, column].tolist()
            assert entropies[row, column] == pytest.approx(reference.entropy(here), rel=1e-4)
            expected = reference.forward_kl(here, there)
            assert kls[row, column] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (5, 4), (2, 5, 4)])
def test_what_cannot_be_drawn_is_left_out_of_forward_kls(shape):
    allowed = torch.ones(shape, dtype=torch.bool)
    allowed[..., 1] = False
    policy, ref = torch.randn(2, 2, 5, 4, dtype=DOUBLE)
    masked = policy.masked_fill(~allowed, -math.inf).requires_grad_()
    kls = chunked_forward_kls(masked, ref, allowed=allowed, chunk_size=3)
    there = [0, 2, 3]
    expected = chunked_forward_kls(policy[..., there], ref[..., there])
    torch.testing.assert_close(kls, expected, check_dtype=False)
    kls.sum().backward()
    assert masked.grad.isfinite().all()


def test_at_the_reference_forward_kl_is_zero_and_so_is_its_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    kls = chunked_forward_kls(logits, logits)
    torch.testing.assert_close(kls, torch.zeros(2, 3), atol=1e-6, rtol=0.0)
    kls.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3, 4), atol=1e-6, rtol=0.0)


def test_gradients_of_chunks_are_those_of_the_whole():
    policy, ref = torch.randn(2, 2, 5, 4)
    for function in (chunked_entropies, lambda one, **o: chunked_forward_kls(one, ref, **o)):
        slopes = []
        for chunk_size in (2, 512):
            leaf = policy.clone().requires_grad_()
            function(leaf, chunk_size=chunk_size).square().sum().backward()
            slopes.append(leaf.grad)
        torch.testing.assert_close(slopes[0], slopes[1])
        assert slopes[0].abs().max() > 0


def test_no_more_than_one_chunk_stands_in_float32(monkeypatch):
    widths, real = [], divergences.token_entropies

    def watched(logits):
        widths.append(logits.shape)
        assert logits.dtype == torch.float32
        return real(logits)

    monkeypatch.setattr(divergences, "token_entropies", watched)
    logits = torch.randn(2, 9, 4, dtype=torch.bfloat16, requires_grad=True)
    found = chunked_entropies(logits, chunk_size=6)
    assert widths == [torch.Size([2, 3, 4])] * 3
    found.sum().backward()
    assert widths == [torch.Size([2, 3, 4])] * 6  # nothing was kept: each is computed again
