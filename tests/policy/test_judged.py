import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import objectives as reference

from tokencredit.aggregation.references import win_probabilities
from tokencredit.errors import ShapeError
from tokencredit.policy.estimators import reinforce_advantages
from tokencredit.policy.judged import (
    batch_centred_advantages,
    best_judged_weights,
    calibrated_pair_losses,
    judged_factors,
    judged_pair_signs,
)

seeds = st.integers(0, 10**6)
GROUPS = torch.arange(8) // 4


def test_factors_by_hand():
    passed, ratios = torch.tensor([True, True, True, False]), torch.tensor([-5.0, 5.0, 20.0, 0.0])
    assert judged_factors(passed, ratios, max_kl=10.0).tolist() == [1.5, 0.5, 0.0, 0.0]
    assert judged_factors(passed, ratios, max_kl=10.0, hard=True).tolist() == [1, 1, 0, 0]


def test_without_judges_and_for_any_distance_it_is_par_with_one_reference():
    """CRPG: sig(r - r_b) times a factor of 1."""
    scores, references = torch.randn(6), torch.randn(6, 1)
    factors = judged_factors(torch.ones(6).bool(), torch.randn(6), max_kl=None)
    wins = win_probabilities(scores, references)
    assert torch.equal(factors * wins, wins)
    torch.testing.assert_close(wins, torch.sigmoid(scores - references[:, 0]))
    nearly = judged_factors(torch.ones(6).bool(), torch.randn(6), max_kl=1e9)
    torch.testing.assert_close(nearly, torch.ones(6))


@given(seeds)
def test_centred_advantages_are_reinforce_less_the_mean_return(seed):
    torch.manual_seed(seed)
    rewards, mask = torch.randn(5, 4), torch.arange(4) < torch.randint(1, 5, (5, 1))
    mask[0] = False
    returns = rewards.masked_fill(~mask, 0.0).sum(-1)
    expected = reinforce_advantages(rewards, mask) - returns[1:].mean()
    found = batch_centred_advantages(rewards.masked_fill(~mask, math.nan), mask)
    torch.testing.assert_close(found, expected.masked_fill(~mask, 0.0))


@given(seeds)
def test_pairs_against_loops(seed):
    torch.manual_seed(seed)
    scores, passed = torch.randn(8), torch.rand(8) < 0.5
    expected = reference.pair_signs(scores.tolist(), passed.tolist(), GROUPS.tolist())
    assert judged_pair_signs(scores, passed, GROUPS).tolist() == expected


def test_pairs_of_prompts_where_all_pass_or_none_does():
    scores = torch.tensor([1.0, 4.0, -2.0, 0.0, 1.0, 4.0, -2.0, 0.0])
    passed = torch.tensor([True] * 4 + [False] * 4)
    assert judged_pair_signs(scores, passed, GROUPS).tolist() == [0, 1, -1, 0, 0, 0, 0, 0]
    alike = judged_pair_signs(torch.ones(8), torch.ones(8).bool(), GROUPS)
    assert not alike.any()
    below = judged_pair_signs(-scores.abs() - 1, passed.roll(2), GROUPS)  # scores below 0
    assert below.tolist() == reference.pair_signs(
        (-scores.abs() - 1).tolist(), passed.roll(2).tolist(), GROUPS.tolist()
    )


def test_the_best_has_its_score_and_a_prompt_without_one_nothing():
    scores = torch.tensor([0.2, 0.9, 0.9, 0.1, 0.0, 0.0, 0.0, 0.0])
    assert best_judged_weights(scores, GROUPS).tolist() == pytest.approx([0, 0.9] + [0] * 6)


@given(seeds)
def test_pair_losses_against_loops(seed):
    torch.manual_seed(seed)
    own, other = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    mask = torch.arange(3) < torch.randint(1, 4, (4, 1))
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    found = calibrated_pair_losses(own, other, signs, mask, dpo_beta=0.3, likelihood_coef=0.5)
    for pair, rows in enumerate((slice(0, 2), slice(2, 4))):
        lists = (own[rows].tolist(), other[rows].tolist(), mask[rows].tolist())
        assert float(found[pair]) == pytest.approx(reference.pair_loss(*lists, 0.3, 0.5))


def test_pair_losses_have_the_gradient_of_their_value_and_none_without_a_pair():
    torch.manual_seed(0)
    own = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    other, mask = torch.randn(4, 3).double(), torch.ones(4, 3).bool()
    signs = torch.tensor([1.0, -1.0, 0.0, 0.0]).double()

    def losses(logprobs):
        return calibrated_pair_losses(
            logprobs, other, signs, mask, dpo_beta=0.3, likelihood_coef=0.5
        )

    assert torch.autograd.gradcheck(losses, own)
    (slope,) = torch.autograd.grad(losses(own).sum(), own)
    assert slope[:2].abs().min() > 0
    assert not slope[2:].any()


def test_padding_changes_no_pair_loss():
    own, other, mask = torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3).bool()
    signs, options = torch.tensor([1.0, -1.0]), {"dpo_beta": 0.3, "likelihood_coef": 0.5}
    found = calibrated_pair_losses(own, other, signs, mask, **options)
    wide = [torch.nn.functional.pad(one, (0, 2), value=math.nan) for one in (own, other)]
    padded = torch.nn.functional.pad(mask, (0, 2))
    assert torch.equal(calibrated_pair_losses(*wide, signs, padded, **options), found)


def test_an_odd_number_of_rows_is_no_pairs():
    rows = torch.zeros(3, 1)
    with pytest.raises(ShapeError, match="there are 3 rows; expected pairs"):
        calibrated_pair_losses(
            rows, rows, torch.ones(3), rows.bool(), dpo_beta=0.1, likelihood_coef=0.0
        )
