"""Weights of tokens: by hand, mean one, masks, and what each of them leaves of a loss."""

from dataclasses import replace

import pytest
import torch
from preference_cases import answers_for, losses_of
from torch.nn.functional import logsigmoid

from tokencredit.errors import ConfigError
from tokencredit.policy.losses.token_weights import (
    bounded_scores,
    credit_weights,
    decay_weights,
    edit_weights,
    magnitude_weights,
    selected_weights,
    token_regularisers,
)

MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
CREDIT = torch.tensor([[1.0, -1.0, 2.0, 0.0], [0.0, 0.0, torch.nan, torch.inf]])


def made(credit=CREDIT, mask=MASK) -> dict[str, torch.Tensor]:
    """Weights of every kind."""
    sure = torch.tensor([[-0.1, -0.5, -3.0, -9.0], [-0.2, -0.1, torch.nan, torch.inf]])
    sure.requires_grad_(credit.requires_grad)
    return {
        "chosen": credit_weights(credit, mask, side="chosen", strength=0.5),
        "rejected": credit_weights(credit, mask, side="rejected", strength=0.5),
        "magnitude": magnitude_weights(credit, mask),
        "selected": selected_weights(credit > 0.5, mask),
        "edits": edit_weights(credit > 0.5, sure[:, : mask.shape[1]], mask, delta=2.0),
        "decay": decay_weights(mask, decay=0.5),
    }


def test_literals():
    found = made()
    raw = torch.tensor([1.5, 0.5, 1.9, 1.0])
    torch.testing.assert_close(found["chosen"][0], raw / raw.mean())
    assert found["chosen"][1].tolist() == [1.0, 1.0, 0.0, 0.0]
    raw = torch.tensor([0.5, 1.5, 0.1, 1.0])
    torch.testing.assert_close(found["rejected"][0], raw / raw.mean())
    assert found["magnitude"].tolist() == [[1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    clipped = magnitude_weights(CREDIT, MASK, clip=1.5, mean="free")
    assert clipped[0].tolist() == [1.0, 1.0, 1.5, 0.0]
    assert found["selected"][0].tolist() == [2.0, 0.0, 2.0, 0.0]
    unsure = torch.tensor(0.1).exp().item()
    torch.testing.assert_close(found["edits"][0], torch.tensor([1 + unsure, 1.0, 3.0, 1.0]))
    raw = torch.tensor([1.0, 0.5, 0.25, 0.125])
    torch.testing.assert_close(found["decay"][0], 4 * raw / raw.sum())
    torch.testing.assert_close(found["decay"][1], torch.tensor([4 / 3, 2 / 3, 0.0, 0.0]))


def test_weights_are_constants_with_mean_one_and_nothing_under_the_mask():
    for name, weights in made(CREDIT.clone().requires_grad_()).items():
        assert not weights.requires_grad
        assert weights.dtype == torch.float32
        assert not weights[~MASK].any(), name
        if name != "edits":
            means = weights.sum(-1) / MASK.sum(-1)
            expected = [1.0, 0.0] if name == "selected" else [1.0, 1.0]
            assert means.tolist() == pytest.approx(expected), name


def test_a_masked_token_is_as_good_as_deleted():
    order = [0, 2, 3]
    mask = MASK.clone()
    mask[:, 1] = False
    shorter = made(CREDIT[:, order], mask[:, order])
    # The confidence of `made` is by column, so that edits are compared apart.
    for name, weights in made(CREDIT, mask).items():
        if name != "edits":
            torch.testing.assert_close(weights[:, order], shorter[name], msg=name)


def test_published_forms_of_tgdpo():
    rho = torch.tensor([[0.4, -30.0, 0.0, 0.1]])
    how = {"unit": "nats", "clip": None, "mean": "free"}
    chosen = credit_weights(rho, MASK[:1], side="chosen", strength=0.05, **how)
    rejected = credit_weights(rho, MASK[:1], side="rejected", strength=0.05, **how)
    assert chosen[0].tolist() == pytest.approx([1.02, -0.5, 1.0, 1.005])
    torch.testing.assert_close(chosen + rejected, torch.full((1, 4), 2.0))


def test_without_strength_edits_or_decay_weights_are_one_and_the_loss_is_plain():
    ones = MASK.float()
    none = torch.zeros_like(MASK)
    sure = torch.full(MASK.shape, -1.0)
    for weights in (
        credit_weights(CREDIT, MASK, side="chosen", strength=0.0),
        credit_weights(torch.zeros(2, 4), MASK, side="rejected", strength=0.5),
        selected_weights(MASK, MASK),
        edit_weights(none, sure, MASK, delta=2.0),
        edit_weights(MASK, sure, MASK, delta=0.0),
        decay_weights(MASK, decay=1.0),
    ):
        torch.testing.assert_close(weights, ones)
    answers = answers_for("dpo", weights=False)
    plain = losses_of("dpo", answers)
    weighed = replace(answers, token_weights=torch.ones_like(answers.logprobs))
    torch.testing.assert_close(losses_of("dpo", weighed), plain)


def test_another_confidence_for_the_reference_is_another_loss():
    answers = answers_for("dpo")
    weights = answers.token_weights
    same = replace(answers, ref_weights=weights)
    torch.testing.assert_close(losses_of("dpo", same), losses_of("dpo", answers))
    other = replace(answers, ref_weights=weights * 1.5)
    filled = [
        one.masked_fill(~answers.response_mask, 0.0)
        for one in (answers.logprobs * weights, answers.references[0] * weights * 1.5)
    ]
    chosen, rejected = (filled[0] - filled[1]).sum(-1).view(3, 2).unbind(-1)
    torch.testing.assert_close(losses_of("dpo", other), -logsigmoid(0.1 * (chosen - rejected)))


def test_regularisers_pull_up_what_is_worth_something():
    logprobs = torch.tensor([[-1.0, -2.0, -1.0, -1.0], [-2.0, -2.0, torch.nan, -1.0]])
    logprobs.requires_grad_()
    bounded = bounded_scores(CREDIT.nan_to_num(0.0, posinf=0.0))
    assert bounded[0].tolist() == pytest.approx([0.2311, -0.2311, 0.3808, 0.0], abs=1e-4)
    found = token_regularisers(logprobs, bounded, MASK)
    assert found.tolist() == pytest.approx([0.2311 - 0.4621 + 0.3808, 0.0], abs=1e-3)
    means = token_regularisers(logprobs, bounded, MASK, normalisation="mean")
    torch.testing.assert_close(means, found / torch.tensor([4.0, 2.0]))
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    torch.testing.assert_close(gradient, -bounded.masked_fill(~MASK, 0.0))
    none = token_regularisers(logprobs, torch.zeros_like(bounded), MASK)
    assert not none.any()
    exact = logprobs.detach().double().masked_fill(~MASK, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda one: token_regularisers(one, bounded.double(), MASK), exact
    )


def test_bad_settings_are_refused():
    for clip, mean in ((0.0, "one"), (1.0, "one"), (-1.0, "free")):
        with pytest.raises(ConfigError, match=f"clip is {clip}; expected a positive number"):
            credit_weights(CREDIT, MASK, side="chosen", strength=0.5, clip=clip, mean=mean)
    with pytest.raises(ConfigError, match=r"clip is 0\.0; expected a positive number"):
        magnitude_weights(CREDIT, MASK, clip=0.0)
    with pytest.raises(ConfigError, match=r"delta is -1.0; expected at least 0"):
        edit_weights(MASK, CREDIT, MASK, delta=-1.0)
    for decay in (0.0, 1.5):
        with pytest.raises(ConfigError, match="expected a number above 0 and up to 1"):
            decay_weights(MASK, decay=decay)
