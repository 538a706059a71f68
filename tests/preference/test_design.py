import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.design import (
    consensus_pairs,
    contrast_instructions,
    d_optimal_pairs,
)


def test_the_best_of_those_that_agree_is_preferred_to_the_others():
    assert consensus_pairs([3, 7, 3, 3, 8], [0.0, 9.0, 2.0, 1.0, 9.0]) == (2, [1, 4])


@pytest.mark.parametrize("groups", [[1, 1, 1], [1, 2, 3], [1, 1, 2, 2], [1, 1, 2, 3, 4]], ids=str)
def test_without_a_consensus_there_is_no_pair(groups):
    assert consensus_pairs(groups, [0.0] * len(groups)) is None


def test_what_makes_no_consensus():
    with pytest.raises(ConfigError, match="least_share is 0"):
        consensus_pairs([1], [0.0], least_share=0.0)
    with pytest.raises(DataError, match="2 answers and 1 scores"):
        consensus_pairs([1, 2], [0.0])


def test_a_question_that_was_asked_gives_way_to_another_direction():
    features = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 2.9]])
    chosen, gains = d_optimal_pairs(features, 4)
    assert chosen[:2].tolist() == [0, 2]
    assert gains[:2].tolist() == pytest.approx([math.log(10), math.log(1 + 2.9**2)])


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.1, 1.0]))
def test_gains_are_those_of_the_determinant_and_fall(seed, width, ridge):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(5, width, generator=generator, dtype=torch.float64)
    chosen, gains = d_optimal_pairs(features, 6, ridge=ridge)
    matrix = ridge * torch.eye(width, dtype=torch.float64)
    for at, gain in zip(chosen.tolist(), gains.tolist(), strict=True):
        each = [torch.logdet(matrix + torch.outer(b, b)) - torch.logdet(matrix) for b in features]
        assert gain == pytest.approx(float(each[at]), rel=1e-4)
        assert gain == pytest.approx(max(map(float, each)), rel=1e-4)
        matrix = matrix + torch.outer(features[at], features[at])
    assert gains.min() > 0
    assert (gains.diff() <= 1e-6).all()


def test_designs_that_cannot_be():
    for wrong in ({"ridge": 0.0, "count": 1}, {"count": 0}):
        with pytest.raises(ConfigError, match="expected a ridge above 0 and at least one pair"):
            d_optimal_pairs(torch.ones(1, 1), **wrong)
    for features in (torch.ones(0, 1), torch.tensor([[math.nan]])):
        with pytest.raises(DataError, match="expected at least one pair, and finite features"):
            d_optimal_pairs(features, 1)


@given(st.integers(0, 10**6), st.integers(0, 6))
def test_contrasts_against_a_loop(seed, count):
    generator = torch.Generator().manual_seed(seed)
    likeness = torch.rand(count, count, generator=generator, dtype=torch.float64)
    found = contrast_instructions(likeness, least=0.3, most=0.7).tolist()
    expected = []
    for i, row in enumerate(likeness.tolist()):
        near = [(s, -j) for j, s in enumerate(row) if j != i and 0.3 <= s <= 0.7]
        if near:
            expected.append([i, -max(near)[1]])
    assert found == expected


def test_contrasts_that_cannot_be():
    with pytest.raises(ConfigError, match="expected least <= most"):
        contrast_instructions(torch.eye(2), least=0.9, most=0.1)
    with pytest.raises(DataError, match="expected a number for every two"):
        contrast_instructions(torch.tensor([[1.0, math.nan], [0.5, 1.0]]))
    assert contrast_instructions(torch.full((1, 1), math.nan)).shape == (0, 2)
