"""Rows of the table are their functions, and what they say of themselves is true."""

import pytest
import torch

from tokencredit.errors import ConfigError
from tokencredit.policy import dense_estimators, estimators, judged
from tokencredit.policy.advantages import gae_advantages, macro_gae_advantages
from tokencredit.policy.methods import (
    ALGORITHMS,
    ESTIMATOR_NAMES,
    AdvantageSettings,
    Outcome,
    algorithm,
    named_advantages,
    require_discount,
    require_estimator,
)

FUNCTIONS = {
    "leave-one-out-to-go": dense_estimators.leave_one_out_to_go_advantages,
    "group-mean-to-go": dense_estimators.group_mean_to_go_advantages,
    "index-baseline-to-go": dense_estimators.index_baseline_to_go_advantages,
    "index-centred": dense_estimators.index_centred_advantages,
    "reinforce": lambda r, m, g, **options: estimators.reinforce_advantages(r, m, **options),
    "reinforce++": lambda r, m, g, **options: estimators.reinforce_plus_plus_advantages(
        r, m, **options
    ),
    "crpg": lambda r, m, g, **options: judged.batch_centred_advantages(r, m, **options),
    "rloo": estimators.rloo_advantages,
    "grpo": estimators.grpo_advantages,
}
ARGUMENTS = (torch.randn(4, 3), torch.ones(4, 3).bool(), torch.tensor([0, 0, 1, 1]))
VALUES, GREEDY = torch.randn(4, 3), torch.randn(4)
PARTS = {
    "nothing": {},
    "critic": {"values": VALUES},
    "groups": {"group_ids": ARGUMENTS[2]},
    "greedy": {"greedy_returns": GREEDY},
}
every_row = pytest.mark.parametrize("name", ALGORITHMS)


def made(name: str, rewards: torch.Tensor = ARGUMENTS[0], **options) -> torch.Tensor:
    """Advantages by a row, from what it says it needs and nothing else."""
    row = ALGORITHMS[name]
    outcome = Outcome(rewards, ARGUMENTS[1], **PARTS[row.needs])
    advantages, returns = row.advantages(outcome, AdvantageSettings(**options))
    assert (returns is None) == (row.needs != "critic")
    return advantages


@pytest.mark.parametrize("name", ESTIMATOR_NAMES)
def test_every_name_is_its_function(name):
    torch.testing.assert_close(named_advantages(name, *ARGUMENTS), FUNCTIONS[name](*ARGUMENTS))


def test_adapters_get_every_row_without_a_critic_and_greedy_responses():
    others = {"ppo", "remax", "likelihood", "crraft", "codpo", "soft-q"}
    assert set(ESTIMATOR_NAMES) == set(FUNCTIONS) == set(ALGORITHMS) - others


def test_ppo_is_gae_with_the_returns_of_its_critic():
    outcome = Outcome(*ARGUMENTS[:2], values=VALUES, bootstrap_values=GREEDY)
    settings = AdvantageSettings(gamma=0.9, gae_lambda=0.5)
    expected = gae_advantages(
        ARGUMENTS[0], VALUES, ARGUMENTS[1], gamma=0.9, gae_lambda=0.5, bootstrap_values=GREEDY
    )
    torch.testing.assert_close(ALGORITHMS["ppo"].advantages(outcome, settings), expected)


def test_ppo_of_segments_is_that_of_macro_actions():
    ids = torch.tensor([[0, 0, 1]]).expand(4, 3)
    outcome = Outcome(*ARGUMENTS[:2], values=VALUES, segment_ids=ids)
    expected = macro_gae_advantages(ARGUMENTS[0], VALUES, ARGUMENTS[1], ids, gae_lambda=0.95)
    found = ALGORITHMS["ppo"].advantages(outcome, AdvantageSettings())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "position"])
def test_the_pooling_of_values_arrives(pooling):
    ids = torch.tensor([[0, 0, 1]]).expand(4, 3)
    outcome = Outcome(*ARGUMENTS[:2], values=VALUES, segment_ids=ids)
    expected = macro_gae_advantages(
        ARGUMENTS[0], VALUES, ARGUMENTS[1], ids, gae_lambda=0.95, value_pooling=pooling
    )
    found = ALGORITHMS["ppo"].advantages(outcome, AdvantageSettings(value_pooling=pooling))
    torch.testing.assert_close(found, expected)
    plain = ALGORITHMS["ppo"].advantages(outcome, AdvantageSettings())
    assert torch.equal(found[0], plain[0]) == (pooling == "first")


def test_updates_of_judged_responses_are_their_functions():
    rewards, mask, groups = ARGUMENTS
    paid, passed = torch.tensor([0.3, 0.6, 0.0, 0.0]), torch.tensor([True, False, False, False])
    outcome = Outcome(rewards, mask, group_ids=groups, paid=paid, passed=passed)
    for name, expected in {
        "crraft": judged.best_judged_weights(paid, groups),
        "codpo": judged.judged_pair_signs(paid, passed, groups),
    }.items():
        found, _ = ALGORITHMS[name].advantages(outcome, AdvantageSettings())
        assert torch.equal(found, expected[:, None].expand(4, 3))
        alone, _ = ALGORITHMS[name].advantages(
            Outcome(rewards, mask, group_ids=groups), AdvantageSettings()
        )
        assert not torch.equal(alone, found)


def test_remax_is_its_function():
    expected = estimators.remax_advantages(*ARGUMENTS[:2], GREEDY)
    torch.testing.assert_close(made("remax"), expected)


@every_row
def test_a_row_keeps_the_credit_of_tokens_if_it_says_so(name):
    advantages = made(name)
    same = torch.allclose(advantages, advantages[:, :1].expand_as(advantages))
    assert same != ALGORITHMS[name].keeps_credit


@every_row
def test_a_row_drops_earlier_rewards_if_it_says_so(name):
    if name == "likelihood":
        assert made(name).tolist() == ARGUMENTS[1].float().tolist()  # it reads no rewards at all
        return
    if ALGORITHMS[name].loss != "clipped":
        assert not ALGORITHMS[name].needs_causal_credit  # it reads sums of rewards alone
        return
    rewards = ARGUMENTS[0].clone().requires_grad_()
    last = made(name, rewards, scale="none")[0, -1]
    (slope,) = torch.autograd.grad(last, rewards)
    assert (slope[0, 0] < 0.4) == ALGORITHMS[name].needs_causal_credit


@every_row
def test_a_row_has_a_discount_if_it_says_so(name):
    changed = not torch.equal(made(name, gamma=0.5), made(name))
    assert changed == ALGORITHMS[name].discounts


@pytest.mark.parametrize("name", sorted(set(ESTIMATOR_NAMES) - {"rloo", "grpo"}))
def test_the_discount_arrives(name):
    actual = named_advantages(name, *ARGUMENTS, gamma=0.5)
    torch.testing.assert_close(actual, FUNCTIONS[name](*ARGUMENTS, gamma=0.5))
    assert not torch.equal(actual, named_advantages(name, *ARGUMENTS))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_scale_arrives(scale):
    actual = named_advantages("grpo", *ARGUMENTS, scale=scale)
    torch.testing.assert_close(actual, estimators.grpo_advantages(*ARGUMENTS, scale=scale))


@pytest.mark.parametrize(
    ("name", "gamma", "message"),
    [
        ("grppo", 1.0, r"estimator is 'grppo'; expected one of .*; did you mean 'grpo'\?"),
        ("remax", 1.0, r"estimator is 'remax'; expected one of 'reinforce'"),
        ("rloo", 0.9, r"gamma is 0.9 with estimator 'rloo', which sums .*; expected gamma 1"),
        ("reinforce", 1.5, r"gamma is 1.5; expected a discount from 0 to 1"),
    ],
)
def test_what_cannot_be_is_an_error(name, gamma, message):
    with pytest.raises(ConfigError, match=message):
        named_advantages(name, *ARGUMENTS, gamma=gamma)
    with pytest.raises(ConfigError, match=message):
        require_estimator(name, gamma=gamma)


def test_an_unknown_algorithm_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"algorithm\.name is 'remx'.*did you mean 'remax'\?"):
        algorithm("remx")


def test_a_discount_that_is_none():
    require_discount("remax", 0.5)
    with pytest.raises(ConfigError, match=r"gamma is -1\.0"):
        require_discount("remax", -1.0)
