"""Pairs: literals, reductions, TRL's own loss, CoPG's gradient and INPO's minimiser."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from preference_cases import answers_for, losses_of
from torch.nn.functional import logsigmoid

from tokencredit.errors import ConfigError, DataError, NumericError
from tokencredit.policy.estimators import rloo_advantages
from tokencredit.policy.losses.preference import (
    LINKS,
    calibrated_likelihoods,
    pair_losses,
    require_soft_labels,
    side_scores,
)

CHOSEN, REJECTED = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
MASK = torch.tensor([[True, True], [True, False]])


def test_side_scores_by_hand():
    policy = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]])
    first, second = torch.tensor([[-2.0, -2.0], [-3.5, 0.0]]), torch.full((2, 2), -1.0)
    weights = torch.tensor([[2.0, 0.5], [1.0, torch.inf]])
    found = side_scores(policy, MASK, references=[(0.5, first), (0.25, second)])
    assert found.tolist() == [-0.5, -1.0]
    assert side_scores(policy, MASK, token_weights=weights).tolist() == [-3.0, -3.0]
    assert side_scores(policy, MASK, length_normalised=True).tolist() == [-1.5, -3.0]
    assert side_scores(policy.half(), MASK).dtype == torch.float32
    empty = side_scores(policy, torch.zeros_like(MASK), length_normalised=True)
    assert empty.tolist() == [0.0, 0.0]


def test_a_constant_weight_scales_the_price_and_a_weight_that_is_no_number_is_refused():
    answers = answers_for("dpo", weights=False)
    twice = replace(answers, token_weights=torch.full_like(answers.logprobs, 2.0))
    torch.testing.assert_close(losses_of("dpo", twice), losses_of("dpo", answers, dpo_beta=0.2))
    weights = torch.ones(2, 2).masked_fill(~MASK, torch.nan)
    side_scores(torch.zeros(2, 2), MASK, token_weights=weights)
    weights[0, 0] = torch.nan
    with pytest.raises(NumericError, match="token weights of 1 responses are NaN or infinite"):
        side_scores(torch.zeros(2, 2), MASK, token_weights=weights)


def test_weights_on_a_shared_beginning_cancel():
    """Where both responses begin alike, what that beginning weighs moves nothing."""
    policy = torch.randn(2, 5).log_softmax(-1)
    policy[1, :2] = policy[0, :2]
    reference = torch.randn(2, 5)
    reference[1, :2] = reference[0, :2]
    mask = torch.ones(2, 5, dtype=torch.bool)
    found = []
    for shared in (1.0, 0.0, 30.0):
        weights = torch.ones(2, 5)
        weights[:, :2] = shared
        one, other = side_scores(policy, mask, references=[(1.0, reference)], token_weights=weights)
        found.append(float(one - other))
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_links_by_hand():
    how = {"scale": 0.5, "offset": 1.0}
    expected = {
        "logistic": [0.6931, 2.1269],
        "squared": [0.0, 4.0],
        "hinge": [0.0, 2.0],
        "robust": [0.6931, 2.1269],
        "discopop": [0.8466, 2.1269],
    }
    assert set(expected) == set(LINKS)
    for link, losses in expected.items():
        found = pair_losses(CHOSEN, REJECTED, link=link, **how)
        assert found.tolist() == pytest.approx(losses, abs=1e-4)
    huge = pair_losses(torch.tensor([-1e4, 1e4]), torch.zeros(2), link="discopop")
    assert huge.tolist() == [1e4, 0.0]


def test_reductions_of_pairs():
    answers, scored = answers_for("dpo"), answers_for("copg")
    dpo, swapped = losses_of("dpo", answers), losses_of("dpo", _swapped(answers))

    def cream(label):
        return losses_of("cream", replace(answers, soft_labels=torch.full((3,), label)))

    torch.testing.assert_close(cream(1.0), dpo)
    torch.testing.assert_close(cream(0.0), swapped)
    torch.testing.assert_close(
        losses_of("dno", replace(scored, scores=scored.scores * 1e6)),
        torch.where(scored.scores[:, 0] > scored.scores[:, 1], dpo, swapped),
    )
    torch.testing.assert_close(losses_of("cdpo", answers, label_smoothing=0.0), dpo)
    torch.testing.assert_close(losses_of("robust", answers, label_smoothing=0.0), dpo)
    torch.testing.assert_close(losses_of("cpl-kl", answers, bias=1.0, dpo_beta=0.1), dpo)
    torch.testing.assert_close(losses_of("modpo", scored, own_weight=1.0), dpo)
    for name in ("tdpo1", "tdpo2"):
        torch.testing.assert_close(losses_of(name, answers_for(name), strength=0.0), dpo)
    for name in ("vpo-online", "vpo-offline"):
        torch.testing.assert_close(losses_of(name, answers_for(name), strength=0.0), dpo)
    torch.testing.assert_close(
        losses_of("sepo", answers_for("sepo")),
        losses_of("simpo", answers_for("simpo"), dpo_beta=1.0, margin=0.0),
    )


def _swapped(answers):
    order = torch.arange(6).view(3, 2).flip(-1).flatten()
    return replace(
        answers,
        logprobs=answers.logprobs[order],
        response_mask=answers.response_mask[order],
        references=tuple(one[order] for one in answers.references),
        token_weights=answers.token_weights[order],
    )


def test_a_soft_label_of_one_half_has_no_gradient_at_zero():
    score = torch.zeros(1, requires_grad=True)
    pair_losses(score, torch.zeros(1), soft_label=0.5).sum().backward()
    assert float(score.grad) == 0.0


def test_discopop_at_zero_and_for_a_large_tau():
    zero = torch.zeros(1, dtype=torch.float64)
    at_zero = pair_losses(zero, zero, link="discopop")
    assert float(at_zero) == pytest.approx((torch.tensor(2.0).log().item() + 1) / 2)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    mixed = pair_losses(z, torch.zeros_like(z), link="discopop", tau=1e9)
    torch.testing.assert_close(mixed, (-logsigmoid(z) + (-z).exp()) / 2)


def test_copg_is_ipo_for_rewards_of_a_quarter():
    answers = answers_for("copg")
    quarters = torch.tensor([[0.25, -0.25]], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(
        losses_of("copg", replace(answers, scores=quarters)),
        0.05 * losses_of("ipo", answers_for("ipo")),
    )


def test_the_gradient_of_copg_is_minus_twice_that_of_two_rloo_responses():
    beta = 0.3
    answers = answers_for("copg", rows=1, weights=False)
    logprobs = answers.logprobs.masked_fill(~answers.response_mask, 0.0).requires_grad_()
    copg = losses_of("copg", replace(answers, logprobs=logprobs), dpo_beta=beta).sum()
    (found,) = torch.autograd.grad(copg, logprobs)
    ratios = side_scores(
        logprobs.detach(), answers.response_mask, references=[(1.0, answers.references[0])]
    )
    last = torch.zeros_like(logprobs)
    last[:, 0] = answers.scores[0] - beta * ratios
    advantages = rloo_advantages(
        last.float(), answers.response_mask, torch.zeros(2, dtype=torch.long)
    )
    objective = (advantages * logprobs).masked_fill(~answers.response_mask, 0.0).sum() / 2
    (rloo,) = torch.autograd.grad(objective, logprobs)
    torch.testing.assert_close(found, -2 * rloo, rtol=1e-5, atol=1e-6)
    assert float(found.abs().max()) > 0.1


def test_copg_is_stationary_at_the_tilted_reference_whoever_samples():
    beta, rewards = 0.5, torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    logits = (reference + rewards / beta).requires_grad_()
    for first, second in ((0, 1), (2, 1), (0, 2)):
        logprobs = logits.log_softmax(-1)
        ratios = logprobs - reference
        loss = pair_losses(
            ratios[first : first + 1],
            ratios[second : second + 1],
            link="squared",
            scale=(beta / 2) ** 0.5,
            offset=float(rewards[first] - rewards[second]) / beta,
        )
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert float(gradient.abs().max()) < 1e-12
    off = (logits.detach() + torch.tensor([0.1, 0.0, 0.0])).requires_grad_()
    ratios = off.log_softmax(-1) - reference
    gap = float(rewards[0] - rewards[1]) / beta
    loss = pair_losses(ratios[:1], ratios[1:2], link="squared", offset=gap)
    assert float(torch.autograd.grad(loss.sum(), off)[0].abs().max()) > 0.1


def test_inpo_is_least_at_the_mirror_step():
    """Over pairs drawn from the policy so far, with the labels that a true preference gives."""
    eta, tau = 0.8, 0.3
    wins = torch.tensor([[0.5, 0.7, 0.9], [0.3, 0.5, 0.4], [0.1, 0.6, 0.5]], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    so_far = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64).log()
    share = tau / eta
    mirror = wins @ so_far.exp() / eta + share * reference + (1 - share) * so_far

    def loss(logits):
        ratios = logits.log_softmax(-1) - share * reference - (1 - share) * so_far
        one, other = (part.flatten() for part in torch.meshgrid(ratios, ratios, indexing="ij"))
        losses = pair_losses(
            one, other, link="squared", offset=1 / (2 * eta), soft_label=wins.flatten()
        )
        return (torch.outer(so_far.exp(), so_far.exp()).flatten() * losses).sum()

    at = mirror.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    assert float(gradient.abs().max()) < 1e-12
    for step in torch.randn(5, 3, dtype=torch.float64):
        assert float(loss(mirror + 0.1 * step)) > float(loss(mirror))


def test_inpo_is_ipo_where_start_and_reference_are_one_or_the_share_is_one():
    ipo = losses_of("ipo", answers_for("ipo"))
    answers = answers_for("inpo")
    reference = answers_for("ipo").references[0]
    answers = replace(
        answers,
        logprobs=answers_for("ipo").logprobs,
        response_mask=answers_for("ipo").response_mask,
        token_weights=answers_for("ipo").token_weights,
    )
    one = replace(answers, references=(reference, reference))
    torch.testing.assert_close(losses_of("inpo", one, dpo_beta=0.1), ipo)
    whole = replace(answers, references=(reference, torch.randn_like(reference)))
    torch.testing.assert_close(losses_of("inpo", whole, dpo_beta=0.1, reference_share=1.0), ipo)
    none = replace(answers, references=(torch.randn_like(reference), reference))
    torch.testing.assert_close(losses_of("inpo", none, dpo_beta=0.1, reference_share=0.0), ipo)


def test_calibration_pushes_down_online_and_pulls_up_offline():
    """The sign: at the best reward the value falls by the mean log-ratio under calibration."""
    logprobs = torch.tensor([[-1.0, -3.0], [-2.0, torch.nan]], requires_grad=True)
    online = calibrated_likelihoods(logprobs, MASK, setting="online", strength=0.5)
    offline = calibrated_likelihoods(logprobs, MASK, setting="offline", strength=0.5)
    assert online.tolist() == [-2.0, -1.0]
    assert offline.tolist() == [2.0, 1.0]
    (gradient,) = torch.autograd.grad(online.sum(), logprobs)  # down the loss: less likely
    assert gradient.tolist() == [[0.5, 0.5], [0.5, 0.0]]


def test_bad_calibration_is_refused(unchecked):
    for wrong in ({"setting": "both", "strength": 1.0}, {"setting": "online", "strength": -1.0}):
        with pytest.raises(ConfigError, match="expected at least 0, and 'online' or 'offline'"):
            calibrated_likelihoods(torch.zeros(2, 2), MASK, **wrong)


def test_vpo_signs_follow_from_the_value():
    """J*(r) = β log E_ref e^{r/β} with E_cal r = 0 is −β E_cal log(π / π_ref)."""
    beta = 0.7
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    calibration = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    rewards = torch.tensor([0.4, -0.9, 1.3], dtype=torch.float64)
    rewards = rewards - (calibration * rewards).sum()
    value = beta * (reference * (rewards / beta).exp()).sum().log()
    policy = (reference.log() + rewards / beta).softmax(-1)
    found = -beta * (calibration * (policy.log() - reference.log())).sum()
    assert float(value) == pytest.approx(float(found), rel=1e-12)


@pytest.mark.parametrize("label", [-0.1, 1.1, torch.nan])
def test_soft_labels_are_probabilities(label):
    with pytest.raises(DataError, match=r"a soft label is .*; expected the probability"):
        pair_losses(CHOSEN, REJECTED, soft_label=torch.tensor([0.5, label]))


def test_bad_links_are_refused():
    with pytest.raises(DataError, match=r"expected more than 0.5"):
        require_soft_labels(0.5, "robust")
    with pytest.raises(ConfigError, match=r"tau is 0.0; expected a positive temperature"):
        pair_losses(CHOSEN, REJECTED, tau=0.0)


def test_an_unknown_link_is_refused(unchecked):
    with pytest.raises(ConfigError, match="link is 'hinges'; expected one of"):
        pair_losses(CHOSEN, REJECTED, link="hinges")


def test_divergences_of_tdpo_move_the_policy_and_those_of_tdpo2_the_rejected_side_alone():
    for name, signs in (("tdpo1", [1.0, -1.0]), ("tdpo2", [0.0, -1.0])):
        answers = answers_for(name, weights=False)
        divergences = answers.divergences.masked_fill(~answers.response_mask, 0.0)
        divergences.requires_grad_()
        losses_of(name, replace(answers, divergences=divergences)).sum().backward()
        # Down the loss the rejected side comes nearer to the reference, and the chosen one may go.
        found = divergences.grad.sum(-1).view(3, 2).sign()
        assert found.tolist() == [[-one for one in signs]] * 3, name


TRL_NAMES = {
    "dpo": ("sigmoid", {}),
    "slic": ("hinge", {}),
    "robust": ("robust", {"label_smoothing": 0.2}),
    "discopop": ("discopop", {"tau": 0.07}),
    "dpo-mean": ("sigmoid_norm", {}),
    "ipo-mean": ("ipo", {}),
}


@pytest.mark.parametrize("name", sorted(TRL_NAMES))
def test_losses_are_those_of_trl(name):
    """TRL's own code, with a model that says what ours says; its prompt is one token."""
    trainer = pytest.importorskip("trl", reason="TRL is an extra").DPOTrainer
    kind, options = TRL_NAMES[name]
    answers = answers_for(name, rows=4, weights=False)
    ours = losses_of(name, answers, dpo_beta=0.3, **options).mean()
    order = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])
    mask = answers.response_mask[order]
    logprobs, ref = (
        one.masked_fill(~answers.response_mask, 0.0)[order]
        for one in (answers.logprobs, answers.references[0])
    )
    zeros = torch.zeros_like(logprobs)
    said = SimpleNamespace(
        log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    whole = torch.cat([torch.zeros(8, 1, dtype=torch.bool), mask], dim=-1).long()
    ref_chosen, ref_rejected = ref.sum(-1).chunk(2)
    itself = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda one: one, gather_for_metrics=lambda one: one
        ),
        args=SimpleNamespace(discopop_tau=options.get("tau", 0.05)),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        label_smoothing=options.get("label_smoothing", 0.0),
        beta=0.3,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    theirs = trainer._compute_loss(itself, lambda **_: said, inputs, return_outputs=False)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)
    if name == "ipo-mean":  # the sum is another loss
        assert abs(float(losses_of("ipo", answers, dpo_beta=0.3).mean()) - float(theirs)) > 0.01
