"""The expected gradient of every estimator, by enumeration of whole groups of responses.

A policy over an end of sequence and two words, at most two tokens long, can say seven things; a
group of three of them is one of 343. Means over groups are sums over all of those, so that equal
means equal and biased means biased.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from tokencredit.policy.dense_estimators import (
    group_mean_to_go_advantages,
    index_baseline_to_go_advantages,
    index_centred_advantages,
    leave_one_out_to_go_advantages,
)
from tokencredit.policy.estimators import (
    grpo_advantages,
    reinforce_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
    rloo_advantages,
)

RESPONSES = torch.tensor([[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]])
STATES = torch.tensor([[0, 0], *[[0, 1]] * 3, *[[0, 2]] * 3])
MASK = torch.tensor([[True, False], *[[True, True]] * 6])
EQUAL, BIASED = 1e-9, 1e-2
Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class World:
    """Everything the policy may say.

    Attributes:
        logits: the policy's table, one row per state.
        causal: rewards that depend on the prefix and the token alone.
        ahead: the same sums, laid out as no causal credit could.
        mask: True on response tokens.
    """

    logits: Tensor
    causal: Tensor
    ahead: Tensor
    mask: Tensor

    @property
    def logprobs(self) -> Tensor:
        table = self.logits.log_softmax(-1)
        return table[STATES, RESPONSES].masked_fill(~self.mask, 0.0)

    @property
    def probabilities(self) -> Tensor:
        return self.logprobs.sum(-1).exp()

    def objective_gradient(self, worth: Tensor) -> Tensor:
        """Of the expected worth of a response."""
        return torch.autograd.grad((self.probabilities * worth).sum(), self.logits)[0]

    def estimated_gradient(self, estimator: Estimator, rewards: Tensor, size: int = 3) -> Tensor:
        """Mean over all groups of this size, and the responses in them, of weighted scores."""
        rows = torch.tensor(list(itertools.product(range(7), repeat=size)))
        ids = torch.arange(len(rows)).repeat_interleave(size)
        members = rows.flatten()
        advantages = estimator(rewards[members], self.mask[members], ids)
        chances = self.probabilities.detach()[rows].prod(-1).repeat_interleave(size) / size
        surrogate = (chances[:, None] * advantages * self.logprobs[members]).sum()
        return torch.autograd.grad(surrogate, self.logits)[0]


def world(seed: int = 0, *, fixed_length: bool = False) -> World:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    mask = MASK if not fixed_length else torch.ones_like(MASK)
    by_state = draw(3, 3)
    causal = by_state[STATES, RESPONSES].masked_fill(~mask, 0.0) + 0.5 * mask
    first = torch.where(mask.all(-1), draw(7), causal[:, 0])
    ahead = torch.stack([first, causal.sum(-1) - first], dim=-1).masked_fill(~mask, 0.0)
    logits = draw(3, 3)
    if fixed_length:  # the empty response has no second token to draw: forbid it
        logits[0, 0] = -torch.inf
    return World(logits.requires_grad_(), causal, ahead, mask)


def difference(gradient: Tensor, other: Tensor) -> float:
    return (gradient - other).abs().max().item()


def without_groups(function: Callable[..., Tensor]) -> Estimator:
    return lambda rewards, mask, ids: function(rewards, mask)


def remax(rewards: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return remax_advantages(rewards, mask, torch.full((len(rewards),), 1.7).double())


UNBIASED: dict[str, Estimator] = {
    "reinforce": without_groups(reinforce_advantages),
    "remax": remax,
    "rloo": rloo_advantages,
    "leave-one-out to go": leave_one_out_to_go_advantages,
    "index baseline to go": index_baseline_to_go_advantages,
}
A_FACTOR: dict[str, Estimator] = {
    "grpo, mean only": partial(grpo_advantages, scale="none"),
    "group mean to go": group_mean_to_go_advantages,
}


def test_the_toy_is_complete():
    toy = world()
    assert toy.probabilities.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(toy.causal.sum(-1), toy.ahead.sum(-1))
    assert toy.objective_gradient(toy.causal.sum(-1)).abs().max() > 0.1


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(name, size):
    toy = world()
    estimated = toy.estimated_gradient(UNBIASED[name], toy.causal, size)
    assert difference(estimated, toy.objective_gradient(toy.causal.sum(-1))) < EQUAL


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", A_FACTOR)
def test_a_mean_that_contains_the_response_itself_is_a_factor(name, size):
    toy = world()
    estimated = toy.estimated_gradient(A_FACTOR[name], toy.causal, size)
    true = toy.objective_gradient(toy.causal.sum(-1))
    assert difference(estimated, true * (size - 1) / size) < EQUAL


def test_whole_returns_are_unbiased_for_credit_that_looks_ahead_too():
    toy = world()
    true = toy.objective_gradient(toy.ahead.sum(-1))
    assert difference(toy.estimated_gradient(rloo_advantages, toy.ahead), true) < EQUAL
    mean_only = partial(grpo_advantages, scale="none")
    assert difference(toy.estimated_gradient(mean_only, toy.ahead), true * 2 / 3) < EQUAL


@pytest.mark.parametrize("name", sorted(set(UNBIASED) - {"rloo"}))
def test_no_baseline_heals_or_adds_to_what_looking_ahead_does(name):
    toy = world()
    plain = toy.estimated_gradient(UNBIASED["reinforce"], toy.ahead)
    assert difference(toy.estimated_gradient(UNBIASED[name], toy.ahead), plain) < EQUAL
    assert difference(plain, toy.objective_gradient(toy.ahead.sum(-1))) > BIASED


@pytest.mark.parametrize("size", [2, 3])
def test_index_centring_charges_the_mean_of_an_index_for_reaching_it(size):
    """The bonus for stopping, to the last digit: the means of the others, held fixed."""
    toy = world()
    others = torch.tensor(list(itertools.product(range(7), repeat=size - 1)))
    chances = toy.probabilities.detach()[others].prod(-1)
    speaking = toy.mask[others].double()
    means = (toy.causal[others] * speaking).sum(1) / speaking.sum(1).clamp(min=1)
    charge = (toy.mask * (chances[:, None] * means).sum(0)).sum(-1)
    estimated = toy.estimated_gradient(index_centred_advantages, toy.causal, size)
    true = toy.objective_gradient(toy.causal.sum(-1))
    bias = toy.objective_gradient(charge)
    assert difference(estimated, true - bias) < EQUAL
    assert bias.abs().max() > BIASED


def test_index_centring_pays_for_stopping_where_rewards_are_positive():
    toy = world()
    paid = 1.0 * toy.mask.double()
    bias = toy.estimated_gradient(index_centred_advantages, paid) - toy.objective_gradient(
        paid.sum(-1)
    )
    assert bias[0, 0] > BIASED  # the logit of the end, before anything is said


def test_index_centring_is_unbiased_at_a_fixed_length():
    toy = world(fixed_length=True)
    estimated = toy.estimated_gradient(index_centred_advantages, toy.causal, 2)
    assert difference(estimated, toy.objective_gradient(toy.causal.sum(-1))) < EQUAL


def test_a_deviation_of_two_turns_the_return_into_wins_and_losses():
    toy = world()
    worth = toy.causal.sum(-1)
    wins = (toy.probabilities.detach() * (worth[:, None] - worth).sign()).sum(-1)
    scaled = partial(grpo_advantages, epsilon=1e-12)
    estimated = toy.estimated_gradient(scaled, toy.causal, 2)
    assert difference(estimated, toy.objective_gradient(wins) / 2**0.5) < 1e-8
    true = toy.objective_gradient(worth)
    along = (estimated * true).sum() / true.square().sum()
    assert difference(estimated, along * true) > BIASED


def test_whitening_over_a_large_batch_is_a_scale():
    """A batch in which every response occurs in proportion to its chance is an infinite one."""
    toy = world()
    even = World(torch.zeros(3, 3).double().requires_grad_(), toy.causal, toy.ahead, toy.mask)
    rows = torch.arange(7).repeat_interleave(torch.tensor([3, 1, 1, 1, 1, 1, 1]))
    to_go = reinforce_advantages(toy.causal, toy.mask)[rows]
    deviation = to_go[toy.mask[rows]].std(correction=0)
    whitened = reinforce_plus_plus_advantages(toy.causal[rows], toy.mask[rows], epsilon=0.0)
    surrogate = (whitened * even.logprobs[rows]).sum() / len(rows)
    estimated = torch.autograd.grad(surrogate, even.logits)[0]
    true = even.objective_gradient(toy.causal.sum(-1))
    assert difference(estimated, true / deviation) < EQUAL


def test_whitening_over_a_small_batch_is_more_than_a_scale():
    toy = world()

    def batches_of_two(rewards: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        pairs = zip(rewards.split(2), mask.split(2), strict=True)
        return torch.cat([reinforce_plus_plus_advantages(r, m) for r, m in pairs])

    estimated = toy.estimated_gradient(batches_of_two, toy.causal, 2)
    true = toy.objective_gradient(toy.causal.sum(-1))
    along = (estimated * true).sum() / true.square().sum()
    assert difference(estimated, along * true) > BIASED
