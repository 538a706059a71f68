import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reward_losses as reference
from torch.autograd import gradcheck

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.reward_model.losses.regularisers import (
    FORMS,
    contrastive_loss,
    hidden_state_regulariser,
    regularised_loss,
)


def drawn(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-10 * torch.rand(count, generator=generator) for _ in range(4)]


def test_regularisers_literal():
    chosen, rejected = torch.tensor([-20.0, -10.0]), torch.tensor([-25.0, -10.0])
    expected = {
        "sft": (math.log(1 + math.exp(2)) + math.log(1 + math.exp(1))) / 2,
        "likelihood": 15.0,
        "dpo": (math.log(1 + math.exp(-0.5)) + math.log(2)) / 2,
    }
    for form, loss in expected.items():
        found = hidden_state_regulariser(chosen, rejected_logprobs=rejected, form=form)
        assert found.item() == pytest.approx(loss)
    refs = {"chosen_ref_logprobs": chosen, "rejected_ref_logprobs": rejected}
    found = hidden_state_regulariser(chosen, rejected_logprobs=rejected, form="dpo", **refs)
    assert found.item() == pytest.approx(math.log(2))


@given(st.integers(0, 10**6), st.sampled_from(FORMS), st.sampled_from([0.1, 2.0]))
def test_regularisers_against_the_reference(seed, form, scale):
    columns = drawn(seed)
    refs = {"chosen_ref_logprobs": columns[2], "rejected_ref_logprobs": columns[3]}
    refs["rejected_logprobs"] = columns[1]
    found = hidden_state_regulariser(columns[0], form=form, scale=scale, **refs)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    expected = [reference.hidden_state_regulariser(*row, form, scale) for row in rows]
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_far_from_0_the_sigmoid_is_no_more_than_a_factor():
    chosen = torch.tensor([-200.0, -350.0])
    sft = hidden_state_regulariser(chosen)
    torch.testing.assert_close(sft, 0.1 * hidden_state_regulariser(chosen, form="likelihood"))


def test_weights_of_nothing_and_all_leave_one_of_both():
    loss, regulariser = torch.tensor(0.7), torch.tensor(12.0, requires_grad=True)
    assert regularised_loss(loss, regulariser, weight=0.0) is loss
    assert regularised_loss(loss, regulariser, weight=1.0) == regulariser
    assert regularised_loss(loss, regulariser, weight=0.5).item() == pytest.approx(6.35)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    columns = [column.double().requires_grad_() for column in drawn(1)[:2]]
    # Losses are float32 whatever comes in, so steps are wide and the check is loose.
    assert gradcheck(
        lambda one, other: hidden_state_regulariser(
            one, rejected_logprobs=other, form=form, scale=0.5
        ),
        columns,
        eps=1e-2,
        atol=2e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"form": "ppo"}, "form is 'ppo'"), ({"scale": 0.0}, "scale 0.0"), ({"form": "dpo"}, "none")],
)
def test_settings_that_do_not_fit(unchecked, settings, message):
    with pytest.raises(ConfigError, match=message):
        hidden_state_regulariser(torch.zeros(1), **settings)


def test_a_weight_that_is_no_share():
    with pytest.raises(ConfigError, match=r"weight is 1.5; expected a share from 0 to 1"):
        regularised_loss(torch.tensor(0.0), torch.tensor(0.0), weight=1.5)


@given(st.integers(0, 10**6))
def test_contrast_against_the_reference(seed):
    torch.manual_seed(seed)
    first, second = torch.randn(2, 4, 3, dtype=torch.float64).unbind(0)
    expected = reference.contrastive(first.tolist(), second.tolist(), 0.5)
    assert contrastive_loss(first, second, temperature=0.5).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_contrast_of_one_text_of_equal_ones_and_of_other_lengths():
    one = torch.randn(1, 3)
    assert contrastive_loss(one, torch.randn(1, 3)).item() == 0
    alike = one.expand(4, 3)
    assert contrastive_loss(alike, alike).item() == pytest.approx(math.log(4), rel=1e-5)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(
        contrastive_loss(first * 7, second * 0.1), contrastive_loss(first, second)
    )
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        contrastive_loss(first[order], second[order]), contrastive_loss(first, second)
    )


@pytest.mark.usefixtures("unchecked")
def test_contrast_that_cannot_be():
    with pytest.raises(ConfigError, match="temperature is 0"):
        contrastive_loss(torch.ones(1, 2), torch.ones(1, 2), temperature=0.0)
    with pytest.raises(ShapeError, match="two readings of the same texts"):
        contrastive_loss(torch.ones(1, 2), torch.ones(2, 2))
