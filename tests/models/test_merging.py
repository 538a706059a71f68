import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import merging as reference
from torch.autograd import gradcheck

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.merging import (
    adaptive_base_shares,
    depth_groups,
    lines_shares,
    merged_weights,
    weight_depths,
)

NAMES = ["embed.weight", *(f"model.layers.{block}.mlp.weight" for block in range(6)), "norm.weight"]
seeds = st.integers(0, 10**6)


def some_weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(3, dtype=torch.float64) for name in NAMES}


@given(seeds)
def test_against_the_reference(seed):
    base, tuned = some_weights(seed), some_weights(seed + 1)
    shares = dict(zip(NAMES, torch.rand(len(NAMES)).tolist(), strict=True))
    merged = merged_weights(base, tuned, shares)
    for name in NAMES:
        expected = reference.merged(base[name].tolist(), tuned[name].tolist(), shares[name])
        assert merged[name].tolist() == pytest.approx(expected)


def test_shares_of_zero_and_one_are_the_models_bit_for_bit():
    base, tuned = some_weights(0), some_weights(1)
    for share, model in ((0.0, base), (1.0, tuned)):
        merged = merged_weights(base, tuned, dict.fromkeys(NAMES, share))
        assert all(torch.equal(merged[name], model[name]) for name in NAMES)


def test_shares_rise_with_the_depth():
    shares = lines_shares(NAMES, alpha=0.25, beta=0.5)
    assert shares["embed.weight"] == shares["norm.weight"] == 0.25
    for block in range(6):
        expected = reference.lines_share(block, 6, 0.25, 0.5)
        assert shares[f"model.layers.{block}.mlp.weight"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("alpha", "beta", "first", "last"),
    [(1.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.7, 0.0, 0.7)],
)
def test_lines_reduce_to_the_models(alpha, beta, first, last):
    shares = lines_shares(NAMES, alpha=alpha, beta=beta)
    assert shares["model.layers.0.mlp.weight"] == shares["embed.weight"] == first
    assert shares["model.layers.5.mlp.weight"] == pytest.approx(last)


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=5), st.floats(0, 1))
def test_the_mean_share_never_changes(logits, mean):
    shares = adaptive_base_shares(torch.tensor(logits, dtype=torch.float64), mean=mean)
    assert float(shares.mean()) == pytest.approx(mean, abs=1e-9)
    assert shares.tolist() == pytest.approx(reference.adaptive_base_shares(logits, mean, 0.2))
    even = adaptive_base_shares(torch.zeros(len(logits)), mean=mean)
    assert even.tolist() == pytest.approx([mean] * len(logits))


def test_shares_have_a_gradient():
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    base, tuned = some_weights(0), some_weights(1)
    groups = depth_groups(NAMES, 3)

    def total(z):
        before = adaptive_base_shares(z)
        shares = {n: 1.0 if g is None else 1 - before[g] for n, g in groups.items()}
        return sum(value.square().sum() for value in merged_weights(base, tuned, shares).values())

    assert gradcheck(total, logits)


def test_blocks_are_the_longest_list_and_groups_are_neighbours():
    names = ["vision.blocks.0.w", "model.layers.0.w", "model.layers.1.experts.9.w", "head.w"]
    depths, count = weight_depths(names)
    assert depths == dict(zip(names, [None, 0, 1, None], strict=True))
    assert count == 2
    groups = depth_groups(NAMES, 4)
    assert [groups[name] for name in NAMES[1:-1]] == [0, 0, 1, 2, 2, 3]
    assert groups["embed.weight"] is None


def test_models_must_fit():
    base = some_weights(0)
    untied = {**some_weights(1), "lm_head.weight": torch.zeros(3)}
    with pytest.raises(ModelError, match=r"'lm_head.weight' in the trained model.*weights tied"):
        merged_weights(base, untied, {})
    wider = {**some_weights(1), "embed.weight": torch.zeros(4)}
    with pytest.raises(ModelError, match=r"'embed.weight' has shape \(3,\) in the base and \(4,\)"):
        merged_weights(base, wider, {})
    with pytest.raises(ModelError, match="none of 1 weights stands in a numbered block"):
        weight_depths(["weight"])
    with pytest.raises(ModelError, match="has 1 block; expected at least 2"):
        lines_shares(["layers.0.w"], alpha=0.0, beta=1.0)
    with pytest.raises(ModelError, match="has 6 blocks; expected at least 7"):
        depth_groups(NAMES, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_numbers(value):
    with pytest.raises(ConfigError, match="alpha is"):
        lines_shares(NAMES, alpha=value, beta=1.0)
    with pytest.raises(ConfigError, match="expected a mean from 0 to 1"):
        adaptive_base_shares(torch.zeros(2), mean=value)
    with pytest.raises(ConfigError, match="positive floor"):
        adaptive_base_shares(torch.zeros(2), floor=-0.1)
