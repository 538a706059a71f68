import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reward_losses as reference
from torch.autograd import gradcheck

from tokencredit.errors import DataError
from tokencredit.reward_model.losses.pairs import bradley_terry_loss, prefix_bradley_terry_loss
from tokencredit.reward_model.losses.rankings import (
    plackett_luce_loss,
    prefix_plackett_luce_loss,
)

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, *shape: int, **kind) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kind)


def test_plackett_luce_literal():
    """Three answers in the order 2, 1, 3; of the last there is nothing to choose."""
    scores, ranks = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2, 1, 3]])
    first = math.log(1 + math.exp(-1) + math.exp(-1.5))
    second = math.log(1 + math.exp(-0.5))
    found = plackett_luce_loss(scores, ranks, torch.ones(1, 3, dtype=torch.bool))
    assert found.item() == pytest.approx(first + second)


def test_answers_behind_the_last_place_and_ties_are_not_compared_with_each_other():
    scores, mask = torch.tensor([[1.0, 2.0, 0.5]]), torch.ones(1, 3, dtype=torch.bool)
    expected = math.log(1 + math.exp(1) + math.exp(-0.5))
    for ranks in ([[1.0, math.inf, math.inf]], [[1, 2, 2]], [[-7, 5, 5]]):
        found = plackett_luce_loss(scores, torch.tensor(ranks), mask)
        assert found.item() == pytest.approx(expected)
    both = plackett_luce_loss(scores, torch.tensor([[1, 1, 2]]), mask)
    assert both.item() == pytest.approx(math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-1.5)))
    same = scores.clone().requires_grad_()
    plackett_luce_loss(same, torch.tensor([[3, 3, 3]]), mask).backward()
    assert same.grad.eq(0).all()


@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=5), min_size=1, max_size=3), SEEDS)
def test_rankings_against_the_reference(rankings, seed):
    most = max(map(len, rankings))
    generator = torch.Generator().manual_seed(seed)
    scores, mask = torch.full((len(rankings), most, 4), math.nan), torch.zeros(0)
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    ranks, whole, prefixes = torch.full((len(rankings), most), math.nan), [], []
    for row, said in enumerate(rankings):
        answers = [
            (2 * torch.randn(1 + (row + at) % 4, generator=generator)).tolist()
            for at in range(len(said))
        ]
        for at, answer in enumerate(answers):
            scores[row, at, : len(answer)] = torch.tensor(answer)
            mask[row, at, : len(answer)] = True
        ranks[row, : len(said)] = torch.tensor(said, dtype=torch.float)
        whole.append(reference.plackett_luce([answer[0] for answer in answers], said))
        prefixes.append(reference.prefix_plackett_luce(answers, said))
    found = plackett_luce_loss(scores[..., 0], ranks, mask[..., 0])
    assert found.item() == pytest.approx(sum(whole) / len(whole), rel=1e-4, abs=1e-6)
    found = prefix_plackett_luce_loss(scores, ranks, mask)
    assert found.item() == pytest.approx(sum(prefixes) / len(prefixes), rel=1e-4, abs=1e-6)


@given(SEEDS)
def test_two_answers_are_bradley_terry(seed):
    scores = drawn(seed, 3, 2, 4)
    lengths = torch.randint(1, 5, (3, 2, 1), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(4) < lengths
    ranks = torch.tensor([[1, 2]] * 3)
    found = plackett_luce_loss(scores[..., 0], ranks, mask[..., 0])
    torch.testing.assert_close(found, bradley_terry_loss(scores[:, 0, 0], scores[:, 1, 0]))
    found = prefix_plackett_luce_loss(scores, ranks, mask)
    sides = (scores[:, 0], scores[:, 1], mask[:, 0], mask[:, 1])
    torch.testing.assert_close(found, prefix_bradley_terry_loss(*sides))


@given(SEEDS)
def test_shifts_permutations_batches_and_padding_change_nothing(seed):
    scores, mask = drawn(seed, 2, 4), torch.tensor([[True] * 4, [True, True, True, False]])
    ranks = torch.tensor([[2, 1, 3, 3], [3, 1, 2, 9]])
    plain = plackett_luce_loss(scores, ranks, mask)
    torch.testing.assert_close(plackett_luce_loss(scores + 5, ranks, mask), plain)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    permuted = plackett_luce_loss(scores[:, order], ranks[:, order], mask[:, order])
    torch.testing.assert_close(permuted, plain)
    one_by_one = [plackett_luce_loss(scores[i : i + 1], ranks[i : i + 1], mask[i : i + 1])
                  for i in range(2)]  # fmt: skip
    torch.testing.assert_close(torch.stack(one_by_one).mean(), plain)
    cut = plackett_luce_loss(scores[1:, :3], ranks[1:, :3], mask[1:, :3])
    torch.testing.assert_close(cut, one_by_one[1])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -7.0])
def test_what_the_mask_hides_changes_neither_loss_nor_gradient(garbage):
    mask = torch.tensor([[[True, True], [True, False], [False, False]]])
    found = []
    for filler in (0.0, garbage):
        scores = drawn(0, 1, 3, 2).masked_fill(~mask, filler).requires_grad_()
        ranks = torch.tensor([[2.0, 1.0, math.nan if math.isnan(garbage) else filler]])
        loss = prefix_plackett_luce_loss(scores, ranks, mask)
        loss = loss + plackett_luce_loss(scores[..., 0], ranks, mask[..., 0])
        loss.backward()
        found.append((loss.detach(), scores.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[1][1][~mask].eq(0).all()


def test_gradients_sum_to_0_in_every_ranking():
    scores = drawn(0, 2, 3, dtype=torch.float64).requires_grad_()
    ranks, mask = torch.tensor([[2, 1, 3], [1, 1, 2]]), torch.ones(2, 3, dtype=torch.bool)
    # Losses are float32 whatever comes in, so steps are wide and the check is loose.
    assert gradcheck(
        lambda s: plackett_luce_loss(s, ranks, mask), [scores], eps=1e-2, atol=2e-3, rtol=1e-3
    )
    plackett_luce_loss(scores, ranks, mask).backward()
    assert scores.grad.sum(-1).abs().max() < 1e-6
    assert scores.grad.abs().max() > 0.1


def test_a_rank_that_is_no_number():
    with pytest.raises(DataError, match="1 answers have the rank NaN"):
        plackett_luce_loss(
            torch.zeros(1, 2), torch.tensor([[1.0, math.nan]]), torch.ones(1, 2, dtype=torch.bool)
        )
