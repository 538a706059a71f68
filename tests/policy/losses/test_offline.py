"""Single responses with a number: advantages, clipped ratios, values of prompts."""

import math

import pytest
import torch
from preference_cases import answers_for, as_floats, losses_of
from reference import preference_losses as reference

from tokencredit.errors import ConfigError, DataError
from tokencredit.policy.losses.offline import (
    effective_share,
    leftover_lunch_losses,
    prompt_values,
)

MASK = torch.tensor([[True, True], [True, False]])
LOGPROBS = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]])
REF = torch.tensor([[-1.5, -2.0], [-1.0, torch.nan]])
ADVANTAGES = torch.tensor([0.5, 2.0])


@pytest.mark.parametrize("ratio", ["sequence", "token", "none"])
def test_every_ratio_is_that_of_the_reference_loop(ratio):
    answers = answers_for("a-lol")
    expected = [
        reference.a_lol(responses[0], score, 0.3, ratio)
        for responses, score in zip(as_floats(answers), answers.scores[:, 0].tolist(), strict=True)
    ]
    found = losses_of("a-lol", answers, ratio=ratio, ratio_clip=0.3)
    assert found.tolist() == pytest.approx(expected)


def test_without_room_or_reference_it_is_weighed_likelihood():
    plain = ADVANTAGES * torch.tensor([3.0, 3.0])
    for ratio in ("sequence", "token"):
        found = leftover_lunch_losses(LOGPROBS, REF, ADVANTAGES, MASK, ratio=ratio, clip_eps=0.0)
        torch.testing.assert_close(found, plain)
    found = leftover_lunch_losses(LOGPROBS, None, ADVANTAGES, MASK, ratio="none")
    torch.testing.assert_close(found, plain)
    ones = leftover_lunch_losses(LOGPROBS, None, torch.ones(2), MASK, ratio="none")
    assert ones.tolist() == [3.0, 3.0]


def test_ratios_are_constants_clipped_before_they_overflow():
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]], requires_grad=True)
    far = torch.tensor([[-500.0, -500.0], [-1.0, torch.nan]])
    found = leftover_lunch_losses(logprobs, far, ADVANTAGES, MASK, clip_eps=0.9)
    assert found.tolist() == pytest.approx([0.5 * 1.9 * 3.0, 2.0 * math.exp(-2.0) * 3.0])
    found.sum().backward()
    assert logprobs.grad.tolist()[0] == pytest.approx([-0.95, -0.95])
    assert float(logprobs.grad[1, 0]) == pytest.approx(-2.0 * math.exp(-2.0))  # not clipped
    assert logprobs.grad[1, 1] == 0
    free = leftover_lunch_losses(logprobs, far, ADVANTAGES, MASK, clip_eps=2.0)
    assert free.tolist() == pytest.approx([0.5 * 3.0 * 3.0, 2.0 * math.exp(-2.0) * 3.0])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"clip_eps is -1.0 and ratio 'sequence'; expected"):
        leftover_lunch_losses(LOGPROBS, REF, ADVANTAGES, MASK, clip_eps=-1.0)
    with pytest.raises(DataError, match="there is no reference; expected its log-probabilities"):
        leftover_lunch_losses(LOGPROBS, None, ADVANTAGES, MASK)
    with pytest.raises(ConfigError, match=r"ridge is 0.0; expected a positive number"):
        prompt_values(torch.ones(2, 1), torch.ones(2), ridge=0.0)


def test_prompt_values_are_ridge_regression_whichever_side_is_longer():
    for rows, width in ((7, 3), (3, 7)):
        features, rewards = torch.randn(rows, width).double(), torch.randn(rows).double()
        centred = features - features.mean(0)
        price = 0.5 * rows * centred.square().mean()
        target = torch.cat([rewards - rewards.mean(), torch.zeros(width, dtype=torch.float64)])
        wide = torch.cat([centred, price.sqrt() * torch.eye(width, dtype=torch.float64)])
        weights = torch.linalg.lstsq(wide, target[:, None]).solution[:, 0]
        found = prompt_values(features, rewards, ridge=0.5)
        torch.testing.assert_close(found, (centred @ weights + rewards.mean()).float())
        again = prompt_values(features, rewards, asked=features[:2], ridge=0.5)
        torch.testing.assert_close(again, found[:2])


def test_a_large_ridge_expects_the_mean_and_equal_prompts_their_mean():
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert prompt_values(torch.randn(3, 4), rewards, ridge=1e9).tolist() == pytest.approx([3.0] * 3)
    assert prompt_values(torch.ones(3, 4), rewards).tolist() == pytest.approx([3.0] * 3)


def test_the_effective_share_counts_what_weights_leave():
    assert float(effective_share(torch.ones(5))) == 1.0
    assert float(effective_share(torch.tensor([3.0, 0.0, 0.0, 0.0]))) == 0.25
    assert float(effective_share(torch.zeros(4))) == 0.0
