import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objectives as reference

from tokencredit.errors import ShapeError
from tokencredit.policy.estimators import grpo_advantages, rloo_advantages
from tokencredit.policy.objectives import (
    OBJECTIVE_MIXES,
    Objectives,
    least_nonnegative_advantages,
    normalised_advantages,
    normalised_then_summed_advantages,
    summed_then_normalised_advantages,
    worst_objectives,
)

seeds = st.integers(0, 10**6)
WEIGHTS = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)


def drawn(seed: int, objectives: int = 3, batch: int = 8, time: int = 5):
    torch.manual_seed(seed)
    advantages = torch.randn(objectives, batch, time, dtype=torch.float64)
    lengths = torch.randint(1, time + 1, (batch,))
    mask = torch.arange(time) < lengths[:, None]
    return advantages, mask, torch.arange(batch) // 4


def mixes(advantages, mask, groups):
    returns = advantages.masked_fill(~mask, 0.0).sum(-1)
    one = Objectives(advantages, returns, mask, groups, WEIGHTS[: len(advantages)])
    return {name: row.mixed(one) for name, row in OBJECTIVE_MIXES.items()}


def test_literals():
    advantages = torch.tensor([[[1.0, 2.0, -1.0]], [[3.0, 0.5, 4.0]]])
    mask = torch.tensor([[True, True, True]])
    assert least_nonnegative_advantages(advantages, mask).tolist() == [[1.0, 0.5, 0.0]]
    returns = torch.tensor([[1.0, 9.0, 2.0], [2.0, 3.0, 2.0]])
    counts = torch.ones(3).bool()
    assert worst_objectives(returns, counts, torch.tensor([0, 0, 1])).tolist() == [1, 1, 0]


@settings(max_examples=12)
@given(seeds)
def test_against_loops(seed):
    advantages, mask, groups = drawn(seed)
    rows, masks, ids = advantages.tolist(), mask.tolist(), groups.tolist()
    weights = WEIGHTS.tolist()

    def assert_equal(found, expected):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))

    assert_equal(least_nonnegative_advantages(advantages, mask), reference.pama(rows, masks))
    each = [reference.normalised(one, masks, ids, 1e-4) for one in rows]
    assert_equal(
        normalised_then_summed_advantages(advantages, mask, groups, WEIGHTS),
        reference.normalised(reference.summed(each, weights), masks, [0] * 8, 1e-4),
    )
    assert_equal(
        summed_then_normalised_advantages(advantages, mask, groups, WEIGHTS),
        reference.normalised(reference.summed(rows, weights), masks, ids, 1e-4),
    )
    returns = advantages.masked_fill(~mask, 0.0).sum(-1)
    found = worst_objectives(returns, mask.any(-1), groups)
    assert found.tolist() == reference.worst(returns.tolist(), ids)


@settings(max_examples=12)
@given(seeds)
def test_pama_of_one_and_of_equal_copies_is_the_positive_part(seed):
    advantages, mask, _ = drawn(seed, objectives=1)
    positive = advantages[0].clamp(min=0).masked_fill(~mask, 0.0)
    assert torch.equal(least_nonnegative_advantages(advantages, mask), positive)
    copies = advantages.expand(4, -1, -1)
    assert torch.equal(least_nonnegative_advantages(copies, mask), positive)


@settings(max_examples=12)
@given(seeds)
def test_pama_pays_nothing_where_any_objective_is_not_positive(seed):
    advantages, mask, _ = drawn(seed)
    found = least_nonnegative_advantages(advantages, mask)
    assert torch.equal(found > 0, (advantages > 0).all(0) & mask)


@settings(max_examples=12)
@given(seeds)
def test_normalising_first_is_blind_to_the_scale_and_offset_of_each_reward(seed):
    """A number that every response earns more falls out with the mean of the group."""
    rewards, mask, groups = drawn(seed)
    ends = torch.zeros_like(rewards[0]).scatter(1, mask.sum(-1, keepdim=True) - 1, 1.0)
    changed = rewards.clone()
    changed[1] = 30 * rewards[1] + 7 * ends
    found = [
        normalised_then_summed_advantages(
            torch.stack([rloo_advantages(one, mask, groups) for one in some]),
            mask,
            groups,
            WEIGHTS,
            epsilon=0.0,
        )
        for some in (rewards, changed)
    ]
    torch.testing.assert_close(found[0], found[1])
    summed = summed_then_normalised_advantages(changed, mask, groups, WEIGHTS)
    assert not torch.allclose(
        summed, summed_then_normalised_advantages(rewards, mask, groups, WEIGHTS)
    )


@settings(max_examples=12)
@given(seeds)
def test_one_objective_is_grpo_up_to_the_deviation_of_the_batch(seed):
    rewards, mask, groups = drawn(seed, objectives=1)
    centred = grpo_advantages(rewards[0], mask, groups, scale="none")
    whole = grpo_advantages(rewards[0], mask, groups, scale="group", epsilon=0.0)
    one = torch.ones(1)
    options = {"epsilon": 0.0}
    summed = summed_then_normalised_advantages(centred[None], mask, groups, one, **options)
    torch.testing.assert_close(summed, whole)
    first = normalised_then_summed_advantages(centred[None], mask, groups, one, **options)
    per_response = torch.stack([row[m][0] for row, m in zip(whole, mask, strict=True)])
    torch.testing.assert_close(first, whole / per_response.std())


def test_numbers_of_trl():
    """`normalize_then_sum` of TRL 1.16 on numbers of whole responses, written out."""
    torch.manual_seed(1)
    rewards, weights = torch.randn(8, 2, dtype=torch.float64), torch.tensor([1.0, 3.0]).double()
    grouped = rewards.view(2, 4, 2)
    each = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    total = (each.view(8, 2) * weights).sum(1)
    expected = (total - total.mean()) / (total.std() + 1e-4)
    mask, groups = torch.ones(8, 3).bool(), torch.arange(8) // 4
    streams = rewards.T[:, :, None].expand(2, 8, 3)
    found = normalised_then_summed_advantages(streams, mask, groups, weights)
    torch.testing.assert_close(found, expected[:, None].expand(8, 3))


def test_max_min_takes_one_objective_for_the_step_or_for_each_prompt():
    advantages, mask, groups = drawn(3, objectives=2)
    advantages[0, :4], advantages[1, :4] = -1.0, 1.0
    advantages[0, 4:], advantages[1, 4:] = 5.0, 1.0
    found = mixes(advantages, mask, groups)
    worst = advantages[1].masked_fill(~mask, 0.0)
    returns = advantages.masked_fill(~mask, 0.0).sum(-1).mean(-1)
    assert returns[1] < returns[0]
    assert torch.equal(found["max-min"], worst)
    each = torch.cat([advantages[0, :4], advantages[1, 4:]]).masked_fill(~mask, 0.0)
    assert torch.equal(found["max-min-per-prompt"], each)


@pytest.mark.parametrize("name", OBJECTIVE_MIXES)
def test_padding_and_what_stands_under_a_mask_change_nothing(name):
    advantages, mask, groups = drawn(5)
    if OBJECTIVE_MIXES[name].kl == "apart":
        advantages = advantages.masked_fill(~mask, 0.0)
    found = mixes(advantages, mask, groups)[name]
    garbage = advantages.masked_fill(~mask, float("nan"))
    assert torch.equal(mixes(garbage, mask, groups)[name], found)
    wide = torch.nn.functional.pad(advantages, (0, 2), value=9.0)
    padded = mixes(wide, torch.nn.functional.pad(mask, (0, 2)), groups)[name]
    torch.testing.assert_close(padded[:, :5], found)
    assert not padded[:, 5:].any()
    order = torch.randperm(8)
    moved = mixes(advantages[:, order], mask[order], groups[order])[name]
    torch.testing.assert_close(moved, found[order])


def test_a_response_without_a_token_is_in_no_group():
    advantages, mask, groups = drawn(6, objectives=1)
    mask[0] = False
    found = normalised_advantages(advantages[0], mask, groups)
    torch.testing.assert_close(
        found[1:], normalised_advantages(advantages[0, 1:], mask[1:], groups[1:])
    )
    assert not found[0].any()


def test_what_cannot_be_is_an_error(unchecked):
    advantages, mask, groups = drawn(0)
    with pytest.raises(ShapeError, match="3 objectives and 2 weights; expected"):
        normalised_then_summed_advantages(advantages, mask, groups, WEIGHTS[:2])
    with pytest.raises(ShapeError, match="0 objectives"):
        least_nonnegative_advantages(advantages[:0], mask)
