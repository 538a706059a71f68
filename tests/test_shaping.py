import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import shaping as reference

from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.errors import ConfigError
from tokencredit.shaping import (
    adapted_kl_coef,
    kl_estimates,
    kl_penalised_rewards,
    potential_shaping,
)

NAN = math.nan
seeds = st.integers(0, 10**6)
every_estimator = pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])


def random_mask(batch: int, time: int) -> torch.Tensor:
    """Responses of 0 to `time` tokens, padded on the right."""
    return torch.arange(time) < torch.randint(0, time + 1, (batch, 1))


def test_kl_literals():
    policy, ref = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-3.0, -1.0]])
    assert kl_estimates(policy, ref).tolist() == [[2.0, -2.0]]
    assert kl_estimates(policy, ref, estimator="k2").tolist() == [[2.0, 2.0]]
    torch.testing.assert_close(
        kl_estimates(policy, ref, estimator="k3"),
        torch.tensor([[math.exp(-2) + 1, math.exp(2) - 3]]),
    )


@given(seeds)
@every_estimator
def test_kl_against_the_reference(estimator, seed):
    torch.manual_seed(seed)
    policy, ref = -torch.rand(2, 2, 3, dtype=torch.float64) * 5
    expected = [
        [reference.kl_estimate(p, q, estimator) for p, q in zip(*rows, strict=True)]
        for rows in zip(policy.tolist(), ref.tolist(), strict=True)
    ]
    actual = kl_estimates(policy, ref, estimator=estimator)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def expected_estimate(logits, ref_logits, estimator):
    """Mean of an estimator over every token of the policy's distribution."""
    policy, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    estimates = kl_estimates(policy[None], ref[None], estimator=estimator)[0]
    return policy.exp(), estimates


def test_k1_and_k3_have_the_right_mean():
    logits, ref_logits = torch.randn(2, 5, dtype=torch.float64)
    kl = torch.nn.functional.kl_div(
        ref_logits.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum"
    )
    for estimator in ("k1", "k3"):
        probabilities, estimates = expected_estimate(logits, ref_logits, estimator)
        torch.testing.assert_close((probabilities * estimates).sum(), kl)
    assert (expected_estimate(logits, ref_logits, "k3")[1] >= 0).all()
    assert (expected_estimate(logits, ref_logits, "k1")[1] < 0).any()


def test_in_a_loss_only_k2_has_the_gradient_of_the_kl():
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ref_logits = torch.randn(5, dtype=torch.float64)

    def gradient(estimator, through_samples):
        probabilities, estimates = expected_estimate(logits, ref_logits, estimator)
        weights = probabilities if through_samples else probabilities.detach()
        return torch.autograd.grad((weights * estimates).sum(), logits)[0]

    true = gradient("k1", through_samples=True)
    torch.testing.assert_close(gradient("k2", through_samples=False), true)
    assert (gradient("k3", through_samples=False) - true).abs().max() > 0.01
    torch.testing.assert_close(gradient("k1", through_samples=False), torch.zeros_like(true))


@every_estimator
def test_kl_gradient(estimator):
    policy, ref = torch.randn(2, 2, 3, dtype=torch.float64)
    policy.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: kl_estimates(p, ref, estimator=estimator), policy)


@every_estimator
def test_equal_policies_have_no_kl(estimator):
    logprobs = torch.randn(2, 3)
    assert kl_estimates(logprobs, logprobs, estimator=estimator).eq(0).all()


@pytest.mark.usefixtures("unchecked")
def test_unknown_estimator():
    with pytest.raises(ConfigError, match="'k4'; expected 'k1', 'k2' or 'k3'"):
        kl_estimates(torch.zeros(1, 1), torch.zeros(1, 1), estimator="k4")


def test_penalised_rewards_literal_and_garbage():
    mask = torch.tensor([[True, True, False]])
    scores, kl = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, -1.0, NAN]])
    rewards = kl_penalised_rewards(scores, kl, mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.95, 2.1, 0.0]]))


def test_kl_of_padding_never_reaches_the_rewards():
    mask = torch.tensor([[True, False, False]])
    kl = torch.tensor([[0.0, 1e6, -1e6]])
    assert kl_penalised_rewards(torch.zeros(1, 3), kl, mask, kl_coef=1.0).eq(0).all()


def test_no_coefficient_reduces_to_the_scores():
    mask = random_mask(3, 4)
    scores = torch.randn(3, 4).masked_fill(~mask, 0.0)
    rewards = kl_penalised_rewards(scores, torch.randn(3, 4), mask, kl_coef=0.0)
    assert rewards.equal(scores)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(6.0, 0.2), (6.6, 0.202), (60.0, 0.204), (0.0, 0.196), (-5.0, 0.196)],
)
def test_adapted_coefficient(observed, expected):
    adapted = adapted_kl_coef(0.2, observed, kl_target=6.0, responses=100, horizon=1000)
    assert adapted == pytest.approx(expected)


def test_potential_shaping_literal():
    potentials = torch.tensor([[1.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True]])
    assert potential_shaping(potentials, mask, gamma=0.5).tolist() == [[1.0, -4.0]]


@given(seeds, st.sampled_from([0.5, 0.9, 1.0]))
def test_potential_shaping_against_the_reference(seed, gamma):
    torch.manual_seed(seed)
    potentials, mask = torch.randn(4, 6, dtype=torch.float64), random_mask(4, 5)
    expected = [
        reference.potential_shaping(row, length, 5, gamma)
        for row, length in zip(potentials.tolist(), mask.sum(-1).tolist(), strict=True)
    ]
    beyond = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~mask], dim=-1)
    rewards = potential_shaping(potentials.masked_fill(beyond, NAN), mask, gamma=gamma)
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64))


@given(seeds, st.sampled_from([0.5, 1.0]))
def test_potential_shaping_moves_every_return_by_the_prompts_potential(seed, gamma):
    torch.manual_seed(seed)
    potentials, mask = torch.randn(4, 6, dtype=torch.float64), random_mask(4, 5)
    discounts = gamma ** torch.arange(5)
    returns = (potential_shaping(potentials, mask, gamma=gamma) * discounts).sum(-1)
    expected = -potentials[:, 0] * mask.any(-1)
    torch.testing.assert_close(returns, expected)


def test_no_potential_no_shaping():
    assert potential_shaping(torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool)).eq(0).all()


def test_prefix_differences_are_a_terminal_reward_with_potential_shaping():
    """Where the potential is the prefix score and the score is paid at the end."""
    prefix_scores, mask = torch.randn(2, 5), torch.ones(2, 4, dtype=torch.bool)
    shaped = potential_shaping(prefix_scores, mask)
    shaped[:, -1] += prefix_scores[:, -1]
    torch.testing.assert_close(shaped, prefix_difference_credit(prefix_scores, mask))
