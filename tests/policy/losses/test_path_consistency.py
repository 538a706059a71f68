"""Path consistency: against loops, and on a tree of which the soft optimum is known."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import path_consistency as reference

from tokencredit.policy.losses.divergences import chunked_log_normalisers
from tokencredit.policy.losses.path_consistency import path_consistency_losses

NAN, DOUBLE = math.nan, torch.float64
KINDS = ("both", "single-step", "multi-step")
MASK = torch.tensor([[True, True, True], [True, True, False]])
SYMBOLS, DEPTH = 3, 2
PATHS = list(product(range(SYMBOLS), repeat=DEPTH))
STATES = [prefix for length in range(DEPTH) for prefix in product(range(SYMBOLS), repeat=length)]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_literal():
    k, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    zeros = torch.zeros(1, 2)
    rewards = torch.tensor([[0.0, 4.0]])
    alone = {"reversed_share": 0.0}
    parts = (k, zeros, zeros, v, rewards, mask)
    single = path_consistency_losses(*parts, consistency="single-step", **alone)
    assert single.tolist() == [[(1 - (0 + 3 - 0.5)) ** 2, (2 - (4 - 3)) ** 2]]
    several = path_consistency_losses(*parts, consistency="multi-step", **alone)
    assert several.tolist() == [[(3 - (4 - 0.5)) ** 2, (2 - (4 - 3)) ** 2]]
    both = path_consistency_losses(*parts, **alone)
    torch.testing.assert_close(both, (single + several) / 2)
    turned = path_consistency_losses(zeros, v, k, zeros, rewards, mask, reversed_share=1.0)
    torch.testing.assert_close(turned, both)


@given(st.integers(0, 10**6), st.sampled_from(KINDS))
def test_against_the_reference(seed, kind):
    k, v, target_k, target_v, rewards = numbers(5, 2, 3, seed=seed)
    found = path_consistency_losses(
        k, v, target_k, target_v, rewards, MASK, consistency=kind, reversed_share=0.3
    )
    for row, length in enumerate([3, 2]):
        parts = [one[row, :length].tolist() for one in (k, v, target_k, target_v, rewards)]
        assert found[row, :length].tolist() == pytest.approx(reference.losses(*parts, 0.3)[kind])
        assert not found[row, length:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_are_skipped_as_if_they_were_not_there(kind):
    parts = numbers(5, 2, 4)
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    broken = [part.masked_fill(~mask, NAN) for part in parts]
    found = path_consistency_losses(*broken, mask, consistency=kind)
    for row in range(2):
        packed = [part[row][mask[row]][None] for part in parts]
        alone = path_consistency_losses(
            *packed, torch.ones_like(packed[0]).bool(), consistency=kind
        )
        torch.testing.assert_close(found[row][mask[row]][None], alone)
    assert not found[~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    k, v = (one.requires_grad_() for one in numbers(2, 2, 3))
    target_k, target_v, rewards = numbers(3, 2, 3, seed=1)

    def summed(k, v):
        return path_consistency_losses(
            k, v, target_k, target_v, rewards, MASK, consistency=kind, reversed_share=0.4
        ).sum()

    assert torch.autograd.gradcheck(summed, (k, v))


def test_no_gradient_reaches_the_slow_copy():
    parts = [one.requires_grad_() for one in numbers(5, 2, 3)]
    path_consistency_losses(*parts, MASK).sum().backward()
    assert parts[0].grad is not None
    assert parts[2].grad is None
    assert parts[3].grad is None


class Tree:
    """Responses of two tokens out of three, all nine of them, with a reward on every token."""

    def __init__(self) -> None:
        self.reference = dict(zip(STATES, numbers(len(STATES), SYMBOLS, seed=3), strict=True))
        of_tokens = [(*state, a) for state in STATES for a in range(SYMBOLS)]
        self.rewards = dict(zip(of_tokens, numbers(len(of_tokens), seed=4).tolist(), strict=True))

    def along(self, table) -> torch.Tensor:
        """(paths, time, vocabulary) of what stands at each state."""
        return torch.stack([torch.stack([table[path[:t]] for t in range(DEPTH)]) for path in PATHS])

    @property
    def of_paths(self) -> torch.Tensor:
        return torch.tensor(
            [[self.rewards[path[: t + 1]] for t in range(DEPTH)] for path in PATHS], dtype=DOUBLE
        )

    def view(self, table) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-ratios to the reference and soft values, from logits by state."""
        ids = torch.tensor(PATHS)[..., None]
        logits, ref = self.along(table), self.along(self.reference)
        ratios = logits.log_softmax(-1).gather(-1, ids) - ref.log_softmax(-1).gather(-1, ids)
        return ratios.squeeze(-1), logits.logsumexp(-1) - ref.logsumexp(-1)

    def optimum(self) -> dict[tuple[int, ...], float]:
        return {
            state: reference.soft_value(
                state, DEPTH, lambda s: self.reference[s].softmax(-1).tolist(), self.rewards.get
            )
            for state in STATES
        }


@pytest.mark.parametrize("kind", KINDS)
def test_all_errors_are_zero_at_the_soft_optimum(kind):
    tree = Tree()
    values = tree.optimum()
    best = {
        state: tree.reference[state]
        + torch.tensor(
            [tree.rewards[(*state, a)] + values.get((*state, a), 0.0) for a in range(SYMBOLS)]
        )
        for state in STATES
    }
    k, v = tree.view(best)
    mask = torch.ones(len(PATHS), DEPTH, dtype=torch.bool)
    losses = path_consistency_losses(k, v, k, v, tree.of_paths, mask, consistency=kind)
    assert losses.max() < 1e-12
    shifted = {state: logits + 1.0 for state, logits in best.items()}
    moved_k, moved_v = tree.view(shifted)
    torch.testing.assert_close(moved_k, k)
    torch.testing.assert_close(moved_v, v + 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_learnt_from_the_responses_of_anyone(kind):
    """Each path as often as every other, whatever the policy would draw."""
    tree = Tree()
    table = {state: logits.clone().requires_grad_() for state, logits in tree.reference.items()}
    slow = {state: logits.detach().clone() for state, logits in table.items()}
    optimizer = torch.optim.Adam(table.values(), lr=0.1)
    mask = torch.ones(len(PATHS), DEPTH, dtype=torch.bool)
    for _ in range(250):
        losses = path_consistency_losses(
            *tree.view(table), *tree.view(slow), tree.of_paths, mask, consistency=kind
        )
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        for state, logits in table.items():
            slow[state].lerp_(logits.detach(), 0.3)
    _, found = tree.view(table)
    expected = tree.optimum()
    for row, path in enumerate(PATHS):
        for t in range(DEPTH):
            assert found[row, t].item() == pytest.approx(expected[path[:t]], abs=1e-2)
    assert losses.max() < 1e-3


def test_soft_values_take_a_chunk_at_a_time():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    found = chunked_log_normalisers(logits, chunk_size=3)
    torch.testing.assert_close(found, logits.logsumexp(-1))
    (slope,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(slope, logits.softmax(-1))
    none = logits.detach().clone()
    none[..., 2] = -math.inf
    assert chunked_log_normalisers(none).isfinite().all()
