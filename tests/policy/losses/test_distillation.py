"""Distillation at the token: reference loops, reductions, masks, gradients, memory, refusals."""

import math

import pytest
import torch
from reference import distillation as reference

from tokencredit.errors import ConfigError
from tokencredit.policy.losses import distillation
from tokencredit.policy.losses.distillation import (
    distilled_alignment_losses,
    expected_teacher_advantages,
    kept_logprobs,
    teacher_divergences,
)

NAN, VOCAB = math.nan, 5
MASK = torch.tensor([[True, True, True], [True, False, False]])
FORMS = [
    {},
    {"adaptive": "none", "extrapolation": 0.5},
    {"adaptive": "none", "anchor": "reference", "extrapolation": 2.0, "scaling": "even"},
    {"adaptive": "credit", "extrapolation": 1.5},
    {"anchor": "reference", "scaling": "even"},
]


def logits(seed: int = 0, dtype=torch.float64) -> list[torch.Tensor]:
    """Of a policy and two teachers."""
    draw = torch.Generator().manual_seed(seed)
    return list(torch.randn(3, 2, 3, VOCAB, generator=draw, dtype=dtype))


def sizes(form: dict) -> dict:
    if form.get("adaptive") != "credit":
        return form
    draw = torch.Generator().manual_seed(9)
    return form | {"magnitudes": torch.rand(2, 3, generator=draw, dtype=torch.float64) + 0.1}


def losses_by_name(policy, teacher, ref, mask=MASK, **options) -> dict[str, torch.Tensor]:
    """All functions, for what holds for each."""
    return {
        "aligndistil": distilled_alignment_losses(policy, teacher, ref, mask, **options),
        "dckd": teacher_divergences(policy, teacher, mask, **options),
        "adpa": expected_teacher_advantages(policy, teacher, ref, mask, **options),
    }


@pytest.mark.parametrize("top_k", [0, 1, 3, VOCAB])
@pytest.mark.parametrize("form", FORMS)
def test_every_token_is_that_of_the_reference_loop(form, top_k):
    policy, teacher, ref = logits()
    options = sizes(form)
    found = distilled_alignment_losses(policy, teacher, ref, MASK, top_k=top_k, **options)
    divergences = teacher_divergences(policy, teacher, MASK, top_k=top_k)
    assert found.dtype == torch.float64
    for row, column in MASK.nonzero().tolist():
        here = [one[row, column].tolist() for one in (policy, teacher, ref)]
        kept = reference.likeliest(here[1], top_k or VOCAB)
        pi, t, u = (reference.events(one, kept) for one in here)
        size = options["magnitudes"][row, column].item() if "magnitudes" in options else None
        expected = reference.aligndistil(
            pi,
            t,
            u,
            beta=0.1,
            extrapolation=options.get("extrapolation", 10.0),
            adaptive=options.get("adaptive", "distance"),
            size=size,
            anchor=options.get("anchor", "teacher"),
            scaling=options.get("scaling", "inverse"),
        )
        assert found[row, column].item() == pytest.approx(expected, rel=1e-9)
        assert divergences[row, column].item() == pytest.approx(reference.kl(t, pi), rel=1e-9)
    assert not found[~MASK].any()


@pytest.mark.parametrize("clip", [None, (0.0, 1.0), (-0.5, 0.2)])
@pytest.mark.parametrize("top_k", [0, 2, VOCAB])
def test_expected_advantages_are_those_of_the_reference_loop(clip, top_k):
    policy, teacher, ref = logits(1)
    found = expected_teacher_advantages(
        policy, teacher, ref, MASK, advantage_clip=clip, top_k=top_k
    )
    for row, column in MASK.nonzero().tolist():
        here = [one[row, column].tolist() for one in (policy, teacher, ref)]
        kept = reference.likeliest(here[1], top_k or VOCAB)
        events = [reference.events(one, kept) for one in here]
        expected = reference.adpa(*events, kept=top_k or VOCAB, clip=clip)
        assert found[row, column].item() == pytest.approx(expected, rel=1e-9)


def test_literals():
    mask = torch.ones(1, 1, dtype=torch.bool)
    policy = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    teacher = torch.tensor([[[0.25, 0.5, 0.25]]]).log()
    log2 = math.log(2)
    assert teacher_divergences(policy, teacher, mask).item() == pytest.approx(0.25 * log2)
    # Two events: the likeliest token of the teacher, and all others.
    pair = 0.5 * log2 + 0.5 * math.log(0.5 / 0.75)
    assert teacher_divergences(policy, teacher, mask, top_k=1).item() == pytest.approx(pair)
    # A = log 2 on the second token, -log 2 on the first.
    found = expected_teacher_advantages(policy, teacher, policy, mask)
    assert found.item() == pytest.approx(-0.25 * log2)
    clipped = expected_teacher_advantages(policy, teacher, policy, mask, advantage_clip=(0.0, 1.0))
    assert clipped.item() == pytest.approx(0.25 * log2)
    # The distance is 0.5, so w = 10 * 0.5 + 0.001.
    w = 5.001
    target = torch.tensor([0.25 * 0.5**w, 0.5 * 2**w, 0.25])
    expected = (policy[0, 0].exp() * (policy[0, 0] - (target / target.sum()).log())).sum()
    found = distilled_alignment_losses(policy, teacher, policy, mask)
    assert found.item() == pytest.approx(expected.item() * 0.1 / w, rel=1e-4)


def test_the_same_teacher_twice_is_plain_distillation():
    """p* is the teacher whatever the extrapolation, and nothing is better than anything."""
    policy, teacher, _ = logits(2)
    plain = (policy.log_softmax(-1).exp() * (policy.log_softmax(-1) - teacher.log_softmax(-1))).sum(
        -1
    )
    for form in FORMS:
        even = sizes(form) | {"scaling": "even"}
        found = distilled_alignment_losses(policy, teacher, teacher, MASK, **even)
        torch.testing.assert_close(found, plain.masked_fill(~MASK, 0.0))
    # As published the scale is then beta / 0.001: agreeing tokens rule the loss.
    found = distilled_alignment_losses(policy, teacher, teacher, MASK)
    torch.testing.assert_close(found, 100 * plain.masked_fill(~MASK, 0.0))
    assert not expected_teacher_advantages(policy, teacher, teacher, MASK).any()


def test_the_first_theorem_with_equal_prices_is_the_teacher():
    policy, teacher, ref = logits(3)
    options = {"anchor": "reference", "adaptive": "none", "extrapolation": 1.0, "dpo_beta": 1.0}
    found = distilled_alignment_losses(policy, teacher, ref, MASK, **options)
    plain = distilled_alignment_losses(policy, teacher, teacher, MASK, **options)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("name", ["adpa", "aligndistil", "dckd"])
def test_keeping_the_whole_vocabulary_is_the_full_form(name):
    parts = logits(4)
    full = losses_by_name(*parts)[name]
    torch.testing.assert_close(losses_by_name(*parts, top_k=VOCAB)[name], full)
    fewer = losses_by_name(*parts, top_k=2)[name]
    assert not torch.allclose(fewer, full)
    if name == "dckd":  # tokens put together hide a part of the divergence, never add to it
        assert bool((fewer <= full + 1e-12).all())
        assert bool((fewer >= 0).all())


def test_a_wide_clip_is_none_and_the_published_one_pushes_nothing_down():
    """A policy that is the reference expects -KL(reference || teacher); the clip hides all loss."""
    _, teacher, ref = logits(5)
    whole = expected_teacher_advantages(ref, teacher, ref, MASK)
    wide = expected_teacher_advantages(ref, teacher, ref, MASK, advantage_clip=(-99.0, 99.0))
    torch.testing.assert_close(wide, whole)
    torch.testing.assert_close(whole, -teacher_divergences(teacher, ref, MASK))
    assert bool((whole[MASK] < 0).all())
    published = expected_teacher_advantages(ref, teacher, ref, MASK, advantage_clip=(0.0, 1.0))
    assert bool((published[MASK] > 0).all())


@pytest.mark.parametrize("name", ["adpa", "aligndistil", "dckd"])
@pytest.mark.parametrize("top_k", [0, 2])
def test_garbage_under_the_mask_padding_and_other_rows_change_nothing(name, top_k):
    parts = logits(6)
    plain = losses_by_name(*parts, top_k=top_k)[name]
    broken = [
        torch.nn.functional.pad(one.masked_fill(~MASK[..., None], NAN), (0, 0, 0, 2), value=NAN)
        for one in parts
    ]
    mask = torch.nn.functional.pad(MASK, (0, 2), value=False)
    broken[0].requires_grad_()
    found = losses_by_name(*broken, mask, top_k=top_k, chunk_size=3)[name]
    torch.testing.assert_close(found[:, :3], plain)
    assert not found[:, 3:].any()
    found.sum().backward()
    assert bool(broken[0].grad.isfinite().all())
    assert not broken[0].grad[~mask].any()
    alone = losses_by_name(*(one[1:] for one in parts), MASK[1:], top_k=top_k)[name]
    torch.testing.assert_close(alone, plain[1:])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top_k", [0, 2])
def test_gradients_reach_the_policy_alone(form, top_k):
    policy, *teachers = logits(7)
    policy.requires_grad_()
    for one in teachers:
        one.requires_grad_()
    options = sizes(form) | {"top_k": top_k}

    def aligned(policy):
        return distilled_alignment_losses(policy, *teachers, MASK, **options)

    def divergences(policy):
        return teacher_divergences(policy, teachers[0], MASK, top_k=top_k)

    def advantages(policy):
        clip = (-0.3, 0.5)
        return expected_teacher_advantages(
            policy, *teachers, MASK, advantage_clip=clip, top_k=top_k
        )

    for function in (aligned, divergences, advantages):
        assert torch.autograd.gradcheck(function, policy)
        function(policy).sum().backward()
    assert all(one.grad is None for one in teachers)


@pytest.mark.parametrize("name", ["adpa", "aligndistil", "dckd"])
def test_chunks_give_the_same_and_no_more_than_one_stands_in_float32(name, monkeypatch):
    parts = logits(8, torch.float32)
    whole = losses_by_name(*parts)[name]
    real, shapes = distillation.kept_logprobs, []

    def watched(some, token_ids):
        shapes.append(tuple(some.shape))
        found = real(some, token_ids)
        assert found.dtype == torch.float32
        return found

    monkeypatch.setattr(distillation, "kept_logprobs", watched)
    leaf = parts[0].clone().requires_grad_()
    found = losses_by_name(leaf, *parts[1:], chunk_size=2)[name]
    torch.testing.assert_close(found, whole)
    assert set(shapes) == {(2, 1, VOCAB)}
    before = len(shapes)
    found.sum().backward()
    assert len(shapes) > before  # nothing was kept: made again
    assert losses_by_name(*(one.bfloat16() for one in parts))[name].dtype == torch.float32


def test_tokens_that_cannot_be_drawn_weigh_nothing():
    parts = logits(9)
    for one in parts:
        one[..., 3] = -math.inf
    there = [0, 1, 2, 4]
    parts[0].requires_grad_()
    for name, found in losses_by_name(*parts).items():
        expected = losses_by_name(*(one[..., there] for one in parts))[name]
        torch.testing.assert_close(found, expected)
        (slope,) = torch.autograd.grad(found.sum(), parts[0])
        assert bool(slope.isfinite().all())


def test_kept_tokens_and_the_rest_sum_to_one():
    policy = logits(10)[0]
    token_ids = policy.topk(2).indices
    found = kept_logprobs(policy, token_ids)
    assert found.shape == (2, 3, 3)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    probabilities = policy.softmax(-1)
    torch.testing.assert_close(found[..., :2].exp(), probabilities.gather(-1, token_ids))
    everything = torch.arange(VOCAB).expand(2, 3, VOCAB)
    torch.testing.assert_close(kept_logprobs(policy, everything), policy.log_softmax(-1))


@pytest.mark.parametrize("name", ["adpa", "aligndistil", "dckd"])
@pytest.mark.parametrize("top_k", [-1, VOCAB + 1])
def test_more_tokens_than_there_are_are_refused(name, top_k):
    with pytest.raises(ConfigError, match=f"top_k is {top_k} with a vocabulary of 5 tokens"):
        losses_by_name(*logits(), top_k=top_k)[name]
    function = {
        "aligndistil": lambda p, t, u: distilled_alignment_losses(p, t, u, MASK, top_k=top_k),
        "dckd": lambda p, t, _: teacher_divergences(p, t, MASK, top_k=top_k),
        "adpa": lambda p, t, u: expected_teacher_advantages(p, t, u, MASK, top_k=top_k),
    }[name]
    with pytest.raises(ConfigError, match="or 0 to keep all"):
        function(*logits())


@pytest.mark.parametrize("clip", [(1.0, 0.0), (0.5, 0.5)])
def test_a_clip_out_of_order_is_refused(clip):
    with pytest.raises(ConfigError, match="expected the least and the largest advantage"):
        expected_teacher_advantages(*logits(), MASK, advantage_clip=clip)


def test_numbers_out_of_range_and_sizes_without_use_are_refused():
    parts = (*logits(), MASK)
    with pytest.raises(ConfigError, match=r"dpo_beta is 0\.0; expected a positive number"):
        distilled_alignment_losses(*parts, dpo_beta=0.0)
    with pytest.raises(ConfigError, match=r"extrapolation is -1\.0; expected a positive number"):
        distilled_alignment_losses(*parts, extrapolation=-1.0)
    with pytest.raises(ConfigError, match="adaptive is 'credit' and magnitudes are not given"):
        distilled_alignment_losses(*parts, adaptive="credit")
    with pytest.raises(ConfigError, match="adaptive is 'distance' and magnitudes are given"):
        distilled_alignment_losses(*parts, magnitudes=torch.ones(2, 3))
