"""What holds for every row of the table of losses: the reference loop, masks, rows, gradients."""

from dataclasses import replace

import pytest
import torch
from preference_cases import NAMES, answers_for, as_floats, losses_of, options_of, rows_of
from reference import preference_losses as reference

from tokencredit.errors import ConfigError, DataError
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES, loss_options, preference_loss
from tokencredit.policy.losses.options import PreferenceLossSettings


def expected(name, answers, o) -> list[float]:
    """Losses of each prompt by the reference loop."""
    found = []
    for row, responses in enumerate(as_floats(answers)):
        scores = answers.scores[row, : len(responses)].tolist()
        soft = float(answers.soft_labels[row])
        weights = answers.negative_weights
        if weights is not None:
            weights = weights[row, : len(responses) - 1].tolist()
        w, v = responses[0], responses[-1]
        loop = {
            "dpo": lambda w, v: reference.dpo(w, v, o.dpo_beta),
            "mapl": lambda w, v: reference.dpo(w, v, o.dpo_beta),
            "dpo-mean": lambda w, v: reference.dpo_mean(w, v, o.dpo_beta),
            "cdpo": lambda w, v: reference.cdpo(w, v, o.dpo_beta, o.label_smoothing),
            "robust": lambda w, v: reference.robust(w, v, o.dpo_beta, o.label_smoothing),
            "cream": lambda w, v, soft=soft: reference.cdpo(w, v, o.dpo_beta, 1 - soft),
            "dno": lambda w, v, s=scores: reference.cdpo(
                w, v, o.dpo_beta, 1 - reference.sigmoid(s[0] - s[1])
            ),
            "ipo": lambda w, v: reference.ipo(w, v, o.dpo_beta),
            "ipo-mean": lambda w, v: reference.ipo_mean(w, v, o.dpo_beta),
            "copg": lambda w, v, s=scores: reference.copg(w, v, o.dpo_beta, s),
            "inpo": lambda w, v: reference.inpo(w, v, o.dpo_beta, o.reference_share),
            "cpl": lambda w, v: reference.cpl(w, v, o.dpo_beta, o.bias, reference.log_prob),
            "cpl-kl": lambda w, v: reference.cpl(w, v, o.dpo_beta, o.bias, reference.log_ratio),
            "simpo": lambda w, v: reference.simpo(w, v, o.dpo_beta, o.margin),
            "sepo": lambda w, v: reference.simpo(w, v, o.dpo_beta, 0.0),
            "slic": lambda w, v: reference.slic(w, v, o.dpo_beta, o.margin),
            "modpo": lambda w, v, s=scores: reference.modpo(w, v, o.dpo_beta, o.own_weight, s),
            "discopop": lambda w, v: reference.discopop(w, v, o.dpo_beta, o.tau),
            "tdpo1": lambda w, v: reference.tdpo(w, v, o.dpo_beta, o.strength),
            "tdpo2": lambda w, v: reference.tdpo(w, v, o.dpo_beta, o.strength),
            "vpo-online": lambda w, v: reference.vpo(w, v, o.dpo_beta, o.strength, 1, [w, v]),
            "vpo-offline": lambda w, v: reference.vpo(w, v, o.dpo_beta, o.strength, -1, [w]),
            "pro": lambda *_, y=responses, s=scores: reference.pro(y, s, o.sft_coef),
            "rrhf": lambda *_, y=responses, s=scores: reference.rrhf(y, s, o.sft_coef),
            "brain": lambda *_, y=responses, s=scores: reference.brain(y, s, o.list_temperature),
            "dft": lambda *_, y=responses, a=weights: reference.dft(y, a, by_length=False),
            "dft2": lambda *_, y=responses, a=weights: reference.dft(y, a, by_length=True),
            "a-lol": lambda w, _, s=scores: reference.a_lol(w, s[0], o.ratio_clip, o.ratio),
            "likelihood": lambda w, _: reference.likelihood(w),
            "superhf": lambda w, _: reference.superhf(w, o.strength),
            "weighted-likelihood": lambda w, _, s=scores: reference.likelihood(w, s[0]),
            "aligndistil": lambda w, _: reference.taught(w),
            "dckd": lambda w, v: reference.dckd(w, v, o.sft_coef, o.strength),
            "adpa": lambda w, v: reference.adpa(w, v, o.sft_coef, o.strength),
        }[name]
        found.append(loop(w, v))
    return found


def numbers_of_tokens(answers) -> list[str]:
    """Fields with one number per token."""
    names = ("logprobs", "token_weights", "divergences", "taught")
    return [name for name in names if getattr(answers, name) is not None]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_that_of_its_reference_loop(name, weights):
    answers = answers_for(name, weights=weights)
    losses = losses_of(name, answers)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(expected(name, answers, options_of(name)), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_prompts_one_by_one(name):
    answers = answers_for(name)
    alone = torch.cat([losses_of(name, rows_of(answers, slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(losses_of(name, answers), alone)


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_are_as_good_as_deleted(name):
    answers = answers_for(name)
    grown = {}
    for key in numbers_of_tokens(answers):
        value = getattr(answers, key)
        nan = torch.full_like(value[:, :1], torch.nan)
        grown[key] = torch.cat([value[:, :1], nan, value[:, 1:]], dim=-1)
    nan = torch.full_like(answers.logprobs[:, :1], torch.nan)
    grown["references"] = tuple(
        torch.cat([one[:, :1], nan, one[:, 1:]], dim=-1) for one in answers.references
    )
    off = torch.zeros_like(answers.response_mask[:, :1])
    mask = answers.response_mask
    grown["response_mask"] = torch.cat([mask[:, :1], off, mask[:, 1:]], dim=-1)
    torch.testing.assert_close(losses_of(name, replace(answers, **grown)), losses_of(name, answers))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_right_and_only_the_policy_has_one(name):
    answers = answers_for(name)
    mask = answers.response_mask
    logprobs = answers.logprobs.masked_fill(~mask, 0.0).requires_grad_()
    constants = [*answers.references, answers.token_weights]
    for one in constants:
        one.requires_grad_()

    # What teachers say is made of the policy as well; AlignDistil is made of nothing else.
    moves = {} if name == "aligndistil" else {"logprobs": logprobs}
    if answers.taught is not None:
        moves["taught"] = answers.taught.masked_fill(~mask, 0.0).requires_grad_()

    def losses(*moved):
        return losses_of(name, replace(answers, **dict(zip(moves, moved, strict=True))))

    losses(*moves.values()).sum().backward()
    for one in moves.values():
        assert bool(one.grad.isfinite().all())
        assert not bool(one.grad[~mask].any())
        assert bool(one.grad[mask].any())
    assert all(one.grad is None for one in constants)
    # Where a constant is made of the policy itself, finite differences would see it move.
    if name != "a-lol":
        leaves = [one.detach().requires_grad_() for one in moves.values()]
        assert torch.autograd.gradcheck(losses, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_their_weights_may_change_places_together(name):
    answers = answers_for(name)
    order = torch.tensor([4, 2, 0, 1, 3])
    moved = {
        key: getattr(answers, key)[:, order]
        for key in (*numbers_of_tokens(answers), "response_mask")
    }
    moved["references"] = tuple(one[:, order] for one in answers.references)
    torch.testing.assert_close(losses_of(name, replace(answers, **moved)), losses_of(name, answers))


@pytest.mark.parametrize("name", NAMES)
def test_rows_say_what_they_read(name):
    row = PREFERENCE_LOSSES[name]
    assert (row.pair is None) != (row.group is None)
    assert row.pair is None or row.learns_from == "pairs"
    assert (row.teachers > 0) == (row.taught is not None)
    assert row.words
    assert row.source
    options = options_of(name)
    assert all(getattr(options, key) is not None for key in row.options)
    reads = vars(PreferenceLossSettings())
    assert set(row.options) <= set(reads)
    answers = answers_for(name)
    for key in ("scores", "soft_labels"):
        without = replace(answers, **{key: None})
        if key in row.needs:
            with pytest.raises((TypeError, AttributeError)):
                losses_of(name, without)
        else:
            losses_of(name, without)


def test_a_reference_that_is_missing_is_told():
    answers = replace(answers_for("inpo"), references=answers_for("dpo").references)
    with pytest.raises(DataError, match="compares with 2 frozen models, and 1 are there"):
        losses_of("inpo", answers)
    with pytest.raises(DataError, match="compares with 1 frozen models, and 0 are there"):
        losses_of("dpo", replace(answers, references=()))


def test_options_of_others_and_wrong_numbers_are_refused():
    assert loss_options("dpo", PreferenceLossSettings(dpo_beta=0.3)).dpo_beta == 0.3
    wrong = [
        ("dpo", {"margin": 1.0}, "margin is 1.0 with loss 'dpo', which has no such option"),
        ("dpo", {"dpo_beta": 0.0}, "dpo_beta is 0.0; expected a positive number"),
        ("cdpo", {"label_smoothing": 0.5}, "expected a probability from 0 to below 0.5"),
        ("cpl", {"bias": 1.5}, "bias is 1.5; expected a share from 0 and up to 1"),
        ("dft", {"average_rate": 0.0}, "average_rate is 0.0; expected a share above 0"),
        ("tdpo2", {"strength": -1.0}, "strength is -1.0; expected at least 0"),
        ("dft", {"list_temperature": 0.0}, "list_temperature is 0.0; expected a positive"),
        ("aligndistil", {"extrapolation": 0.0}, "extrapolation is 0.0; expected a positive"),
        ("dckd", {"top_k": -1}, "top_k is -1; expected at least 0"),
        ("dckd", {"advantage_clip": [0.0, 1.0]}, "which has no such option"),
        ("adpa", {"advantage_clip": [1.0, 0.0]}, "expected the least and the largest advantage"),
        ("adpa", {"advantage_clip": [0.0]}, "expected the least and the largest advantage"),
    ]
    for name, given, message in wrong:
        with pytest.raises(ConfigError, match=message):
            loss_options(name, PreferenceLossSettings(**given))
    assert loss_options("brain", PreferenceLossSettings(list_temperature=0.0))
    with pytest.raises(ConfigError, match=r"loss is 'dpi'; expected one of .*did you mean 'dpo'"):
        preference_loss("dpi")


def test_teachers_that_agree_and_a_strength_of_nothing_leave_the_likelihood():
    """ADPA of equal teachers, ADPA and DCKD of strength 0: the mean likelihood of the chosen."""
    for weights in (True, False):
        answers = answers_for("adpa", weights=weights)
        agreeing = replace(answers, taught=torch.zeros_like(answers.taught))
        found = losses_of("adpa", agreeing)
        lengths = answers.response_mask.sum(-1)[::2]
        chosen = replace(answers, present=torch.ones(6, 1, dtype=torch.bool))
        likelihood = losses_of("likelihood", chosen)[::2] / lengths
        torch.testing.assert_close(found, likelihood)
        for name in ("adpa", "dckd"):
            torch.testing.assert_close(losses_of(name, answers, strength=0.0), likelihood)
        torch.testing.assert_close(
            losses_of("dckd", agreeing, sft_coef=0.0), torch.zeros(3, dtype=torch.float64)
        )
