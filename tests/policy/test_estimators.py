import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import estimators as reference
from torch import Tensor

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import ConfigError
from tokencredit.policy import dense_estimators, estimators
from tokencredit.policy.advantages import rewards_to_go

NAN = math.nan
DOUBLE = {"dtype": torch.float64}
seeds = st.integers(0, 10**6)
GREEDY = torch.tensor([0.5, -1.0, 0.0, 2.0, 1.0, 1.0], **DOUBLE)
Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]


def without_groups(function: Callable[..., Tensor]) -> Estimator:
    return lambda rewards, mask, ids: function(rewards, mask)


def remax(gamma: float) -> Estimator:
    return lambda rewards, mask, ids: estimators.remax_advantages(
        rewards, mask, GREEDY[: len(rewards)].to(rewards.dtype), gamma=gamma
    )


def dense(name: str, gamma: float) -> Estimator:
    return partial(getattr(dense_estimators, f"{name}_advantages"), gamma=gamma)


DENSE = ("leave_one_out_to_go", "group_mean_to_go", "index_baseline_to_go", "index_centred")
OURS: dict[str, Estimator] = {
    "reinforce": without_groups(partial(estimators.reinforce_advantages, gamma=0.7)),
    "reinforce undiscounted": without_groups(estimators.reinforce_advantages),
    "reinforce++": without_groups(
        partial(estimators.reinforce_plus_plus_advantages, gamma=0.7, epsilon=1e-3)
    ),
    "remax": remax(0.7),
    "rloo": estimators.rloo_advantages,
    "grpo": estimators.grpo_advantages,
    "grpo batch": partial(estimators.grpo_advantages, scale="batch", epsilon=1e-2),
    "grpo mean": partial(estimators.grpo_advantages, scale="none"),
    **{name: dense(name, 0.7) for name in DENSE},
    **{f"{name} undiscounted": dense(name, 1.0) for name in DENSE},
}
REFERENCE: dict[str, Callable[..., list[list[float]]]] = {
    "reinforce": lambda r, m, g: reference.reinforce(r, m, 0.7),
    "reinforce undiscounted": lambda r, m, g: reference.reinforce(r, m, 1.0),
    "reinforce++": lambda r, m, g: reference.reinforce_plus_plus(r, m, 0.7, 1e-3),
    "remax": lambda r, m, g: reference.remax(r, m, GREEDY[: len(r)].tolist(), 0.7),
    "rloo": reference.rloo,
    "grpo": lambda r, m, g: reference.grpo(r, m, g, "group", 1e-4),
    "grpo batch": lambda r, m, g: reference.grpo(r, m, g, "batch", 1e-2),
    "grpo mean": lambda r, m, g: reference.grpo(r, m, g, "none", 0.0),
    **{name: partial(getattr(reference, name), gamma=0.7) for name in DENSE},
    **{f"{name} undiscounted": partial(getattr(reference, name), gamma=1.0) for name in DENSE},
}
every_estimator = pytest.mark.parametrize("name", OURS)
REWARDS = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
TOGETHER = torch.tensor([5, 5])
LITERAL = {
    "reinforce undiscounted": [[6.0, 5.0, 3.0], [6.0, 4.0, 0.0]],
    "rloo": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    "leave_one_out_to_go undiscounted": [[0.0, -1.0, -3.0], [0.0, -2.0, 0.0]],
    "group_mean_to_go undiscounted": [[0.0, -1.0, -3.0], [0.0, -2.0, 0.0]],
    "index_baseline_to_go undiscounted": [[0.0, 1.0, 3.0], [0.0, -1.0, 0.0]],
    "index_centred undiscounted": [[0.0, 1.0, 3.0], [3.0, 2.0, 0.0]],
}


@pytest.mark.parametrize("name", LITERAL)
def test_literal(name):
    """Two responses that earn the same in all, in three steps and in two."""
    assert OURS[name](REWARDS, MASK, TOGETHER).tolist() == LITERAL[name]


def test_literal_of_those_that_scale():
    rewards, mask = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.ones(2, 2).bool()
    grouped = estimators.grpo_advantages(rewards, mask, TOGETHER, epsilon=0.0)
    torch.testing.assert_close(grouped, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) / 2**0.5)
    whitened = estimators.reinforce_plus_plus_advantages(rewards, mask, epsilon=0.0)
    expected = torch.tensor([[1.5, 0.5], [-0.5, -1.5]]) / 1.25**0.5  # to go 3, 2, 1, 0
    torch.testing.assert_close(whitened, expected)


@every_estimator
@given(seed=seeds)
def test_against_the_reference_with_holes_and_garbage(name, seed):
    torch.manual_seed(seed)
    rewards, mask = torch.randn(6, 5, **DOUBLE), torch.rand(6, 5) < 0.5
    ids = torch.randint(3, (6,))
    expected = REFERENCE[name](rewards.tolist(), mask.tolist(), ids.tolist())
    actual = OURS[name](rewards.masked_fill(~mask, NAN), mask, ids)
    torch.testing.assert_close(actual, torch.tensor(expected, **DOUBLE))


@every_estimator
def test_padding_and_tool_tokens_change_nothing(name):
    """Left, right and inside: a token that is not the policy's is as if it were not there."""
    places, wide = [1, 4, 6], torch.full((2, 8), math.inf)
    wide_mask = torch.zeros(2, 8, dtype=torch.bool)
    wide[:, places], wide_mask[:, places] = REWARDS, MASK
    expected = OURS[name](REWARDS, MASK, TOGETHER)
    actual = OURS[name](wide, wide_mask, TOGETHER)
    torch.testing.assert_close(actual[:, places], expected)
    assert actual.masked_fill(wide_mask, 0.0).eq(0).all()


@pytest.mark.parametrize("name", sorted(set(OURS) - {"reinforce++", "grpo batch", "remax"}))
def test_groups_know_nothing_of_each_other(name):
    rewards, mask = torch.randn(6, 4), torch.rand(6, 4) < 0.8
    ids = torch.tensor([3, 1, 3, 1, 3, 1])
    together = OURS[name](rewards, mask, ids)
    for group in (1, 3):
        own = ids == group
        torch.testing.assert_close(OURS[name](rewards[own], mask[own], ids[own]), together[own])


@every_estimator
def test_a_response_without_tokens_counts_for_nothing(name):
    mask = torch.cat([MASK, torch.zeros(1, 3, dtype=torch.bool)])
    rewards, ids = torch.cat([REWARDS, torch.full((1, 3), NAN)]), torch.tensor([5, 5, 5])
    advantages = OURS[name](rewards, mask, ids)
    torch.testing.assert_close(advantages[:2], OURS[name](REWARDS, MASK, TOGETHER))
    assert advantages[2].eq(0).all()


@pytest.mark.parametrize("name", ["rloo", "grpo", "grpo mean", "leave_one_out_to_go"])
def test_a_response_alone_teaches_nothing(name):
    assert OURS[name](REWARDS, MASK, torch.tensor([0, 1])).eq(0).all()


@every_estimator
def test_half_precision_is_widened(name):
    advantages = OURS[name](REWARDS.bfloat16(), MASK, TOGETHER)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, OURS[name](REWARDS, MASK, TOGETHER))


@every_estimator
def test_nothing_to_do(name):
    empty = OURS[name](torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool), TOGETHER)
    assert empty.tolist() == [[0.0], [0.0]]


def test_terminal_credit_makes_the_dense_ones_those_of_whole_returns():
    mask = torch.arange(4) < torch.tensor([[4], [2], [3], [1]])
    rewards, ids = terminal_credit(torch.randn(4), mask), torch.tensor([0, 0, 1, 1])
    pairs = {"leave_one_out_to_go": "rloo", "group_mean_to_go": "grpo mean"}
    for name, plain in pairs.items():
        expected = OURS[plain](rewards, mask, ids)
        torch.testing.assert_close(OURS[f"{name} undiscounted"](rewards, mask, ids), expected)


def test_summing_estimators_do_not_see_where_credit_falls():
    moved = torch.tensor([[6.0, 0.0, 0.0], [0.0, 6.0, 9.0]])
    for name in ("rloo", "grpo", "grpo mean"):
        expected = OURS[name](REWARDS, MASK, TOGETHER)
        torch.testing.assert_close(OURS[name](moved, MASK, TOGETHER), expected)
    for name in DENSE:
        assert not torch.equal(
            OURS[name](moved, MASK, TOGETHER), OURS[name](REWARDS, MASK, TOGETHER)
        )


def test_rewards_far_from_zero_are_noise_under_a_baseline_of_whole_returns():
    """Every token earns the same, so that nothing is to be learnt."""
    ones, mask = torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
    whole = OURS["leave_one_out_to_go undiscounted"](ones, mask, TOGETHER)
    assert whole.tolist() == [[0.0, -1.0, -2.0, -3.0]] * 2
    assert OURS["index_baseline_to_go undiscounted"](ones, mask, TOGETHER).eq(0).all()


@given(seeds, st.sampled_from([0.0, 0.5, 1.0]))
def test_reinforce_is_rewards_to_go(seed, gamma):
    torch.manual_seed(seed)
    rewards, mask = torch.randn(3, 5, **DOUBLE), torch.rand(3, 5) < 0.6
    actual = estimators.reinforce_advantages(rewards, mask, gamma=gamma)
    torch.testing.assert_close(actual, rewards_to_go(rewards, mask, gamma=gamma))


@every_estimator
def test_gradient(name):
    rewards = torch.randn(2, 3, **DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: OURS[name](r, MASK, TOGETHER), rewards)


def test_an_unknown_scale(unchecked):
    with pytest.raises(ConfigError, match=r"scale is 'std'; expected 'group', 'batch' or 'none'"):
        estimators.grpo_advantages(REWARDS, MASK, TOGETHER, scale="std")
