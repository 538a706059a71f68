import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import macro_actions as reference

from tokencredit.errors import ConfigError, DataError, ShapeError
from tokencredit.policy.advantages import gae_advantages, macro_gae_advantages
from tokencredit.text.pooling import pooled_by_segment
from tokencredit.text.segments import ngram_segments, random_ngram_segments

NAN = math.nan
DOUBLE = {"dtype": torch.float64}
seeds = st.integers(0, 10**6)
discounts = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 8, generator=generator) < 0.6
    mask[:, 3] = True
    segment_ids = random_ngram_segments(mask, lengths=[1, 2, 3], generator=generator)
    rewards, values = torch.randn(2, 4, 8, generator=generator, **DOUBLE)
    return rewards, values, mask, segment_ids


def test_literal():
    """Rewards 3 and 4, values 1 and 6 of the two segments; gamma and lambda one half.

    Errors 3 + 3 - 1 and 4 - 6, advantages 5 - 2 / 4 and -2.
    """
    rewards, values = torch.tensor([[1.0, 2.0, 9.0, 4.0]]), torch.tensor([[1.0, 3.0, 9.0, 6.0]])
    mask, ids = torch.tensor([[True, True, False, True]]), torch.tensor([[0, 0, -1, 1]])
    advantages, returns = macro_gae_advantages(
        rewards, values, mask, ids, gamma=0.5, gae_lambda=0.5
    )
    assert advantages.tolist() == [[4.5, 4.5, 0.0, -2.0]]
    assert returns.tolist() == [[5.5, 5.5, 0.0, 4.0]]


@given(
    seeds,
    discounts,
    discounts,
    st.sampled_from(["mean", "first", "last", "position"]),
    st.sampled_from(["sum", "mean", "last", "position"]),
)
def test_against_the_reference_with_holes_and_garbage(seed, gamma, gae_lambda, value, reward):
    rewards, values, mask, segment_ids = drawn(seed)
    bootstrap = torch.randn(4, **DOUBLE)
    expected = [
        reference.macro_gae(r, v, ids, gamma, gae_lambda, b, value, reward)
        for r, v, ids, b in zip(
            rewards.tolist(), values.tolist(), segment_ids.tolist(), bootstrap.tolist(), strict=True
        )
    ]
    actual = macro_gae_advantages(
        rewards.masked_fill(~mask, NAN),
        values.masked_fill(~mask, math.inf),
        mask,
        segment_ids,
        gamma=gamma,
        gae_lambda=gae_lambda,
        bootstrap_values=bootstrap,
        value_pooling=value,
        reward_pooling=reward,
    )
    for part, own in enumerate(actual):
        torch.testing.assert_close(own, torch.tensor([row[part] for row in expected], **DOUBLE))


@given(seeds, discounts, discounts)
def test_one_token_per_segment_is_gae_exactly(seed, gamma, gae_lambda):
    rewards, values, mask, _ = drawn(seed)
    options = {
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "bootstrap_values": torch.ones(4, **DOUBLE),
    }
    expected = gae_advantages(rewards, values, mask, **options)
    for pooling in ("mean", "first", "last", "position"):
        actual = macro_gae_advantages(
            rewards, values, mask, ngram_segments(mask, n=1), value_pooling=pooling, **options
        )
        for own, other in zip(actual, expected, strict=True):
            assert torch.equal(own, other)


@given(seeds)
def test_one_segment_is_the_terminal_advantage(seed):
    rewards, values, mask, _ = drawn(seed)
    whole = ngram_segments(mask, n=8)
    advantages, returns = macro_gae_advantages(rewards, values, mask, whole, value_pooling="first")
    totals = rewards.masked_fill(~mask, 0.0).sum(-1, keepdim=True)
    first, _ = pooled_by_segment(values, whole, how="first")
    torch.testing.assert_close(advantages, (totals - first).expand(4, 8).masked_fill(~mask, 0.0))
    torch.testing.assert_close(returns, totals.expand(4, 8).masked_fill(~mask, 0.0))


@given(seeds)
def test_the_mean_of_the_code_divides_a_penalty_by_the_length(seed):
    """A penalty of 1 on every token counts by tokens under "sum", by segments under "mean"."""
    _, _, mask, _ = drawn(seed)
    penalty, nothing = -torch.ones(4, 8), torch.zeros(4, 8)
    ids = ngram_segments(mask, n=2)
    counts, firsts = mask.sum(-1), mask.long().argmax(-1)
    for pooling, expected in (("sum", -counts), ("mean", -(ids.amax(-1) + 1))):
        _, returns = macro_gae_advantages(
            penalty, nothing, mask, ids, gae_lambda=1.0, reward_pooling=pooling
        )
        torch.testing.assert_close(returns[torch.arange(4), firsts], expected.float())


def test_lambda_one_with_a_perfect_critic_leaves_no_advantage():
    rewards, mask = torch.randn(3, 6, **DOUBLE), torch.ones(3, 6, dtype=torch.bool)
    ids = ngram_segments(mask, n=2)
    values = rewards.flip(-1).cumsum(-1).flip(-1)
    advantages, returns = macro_gae_advantages(rewards, values, mask, ids, value_pooling="first")
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))
    torch.testing.assert_close(returns[:, ::2], values[:, ::2])


@pytest.mark.parametrize(("left", "right"), [(0, 3), (2, 0)])
def test_padding_and_company_change_nothing(left, right):
    rewards, values, mask, ids = drawn(5)
    together = macro_gae_advantages(rewards, values, mask, ids)
    for row in range(4):
        alone = [
            torch.nn.functional.pad(tensor[row : row + 1], (left, right), value=filler)
            for tensor, filler in ((rewards, NAN), (values, NAN), (mask, False), (ids, -1))
        ]
        for own, all_rows in zip(macro_gae_advantages(*alone), together, strict=True):
            torch.testing.assert_close(own[0, left : left + 8], all_rows[row])


def test_a_row_without_tokens():
    mask = torch.tensor([[False, False], [True, True]])
    ids = torch.tensor([[-1, -1], [0, 0]])
    advantages, returns = macro_gae_advantages(torch.ones(2, 2), torch.zeros(2, 2), mask, ids)
    assert advantages.tolist() == returns.tolist() == [[0.0, 0.0], [2.0, 2.0]]


def test_gradient_of_the_advantages():
    rewards, values, mask, ids = drawn(2)
    rewards.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: macro_gae_advantages(r, values, mask, ids, gamma=0.9)[0], rewards
    )


def test_segments_must_tile():
    mask, zeros = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    with pytest.raises(DataError, match="segment_ids of row 0"):
        macro_gae_advantages(zeros, zeros, mask, torch.tensor([[1, 2]]))


@pytest.mark.usefixtures("unchecked")
def test_shapes_and_options_must_fit():
    mask, zeros, ids = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), torch.tensor([[0, 1]])
    with pytest.raises(ShapeError, match=r"values have shape \(1, 1\)"):
        macro_gae_advantages(zeros, zeros[:, :1], mask, ids)
    with pytest.raises(ConfigError, match="how is 'max'"):
        macro_gae_advantages(zeros, zeros, mask, ids, value_pooling="max")
