import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, DataError
from tokencredit.evaluation.pair_scores import (
    best_of_n_outcome,
    pair_outcomes,
    reciprocal_rank,
    wilson_interval,
)


def test_a_tie_counts_half():
    outcomes = pair_outcomes(torch.tensor([3, 2, 1]), torch.tensor([2, 2, 2]))
    assert outcomes.tolist() == [1.0, 0.5, 0.0]
    assert outcomes.dtype == torch.float32


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([4.0], [3.0, 2.0, 1.0], 1.0),
        ([3.0], [4.0, 2.0, 1.0], 0.0),
        ([4.0], [4.0, 4.0, 1.0], 1 / 3),
        ([4.0, 1.0], [3.0], 1.0),
        ([4.0, 4.0], [4.0], 2 / 3),
    ],
)
def test_the_best_of_several(chosen, rejected, expected):
    assert best_of_n_outcome(torch.tensor(chosen), torch.tensor(rejected)) == expected


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_best_of_two_is_the_pair(one, other):
    one, other = torch.tensor([one]), torch.tensor([other])
    assert best_of_n_outcome(one, other) == float(pair_outcomes(one, other))


def test_a_side_without_answers():
    with pytest.raises(DataError, match="at least one better and one worse"):
        best_of_n_outcome(torch.tensor([]), torch.tensor([1.0]))


def test_the_interval_holds_the_shares_that_the_score_test_does_not_refuse():
    """Its ends are where the observed share lies z standard errors of the true one away."""
    right, count, z = 45.5, 60, 1.959963984540054
    for end in wilson_interval(right, count):
        distance = abs(right / count - end) / (end * (1 - end) / count) ** 0.5
        assert distance == pytest.approx(z, rel=1e-6)


def test_the_interval_by_hand():
    # With z = 1 the ends of 1 of 1 are 1 / (1 + z^2) and 1.
    low, high = wilson_interval(1, 1, confidence=0.6826894921370859)
    assert (low, high) == (pytest.approx(0.5), 1.0)
    assert wilson_interval(0, 4)[0] == 0.0


@pytest.mark.parametrize(("right", "count"), [(1, 0), (3, 2), (-1, 2)])
def test_more_right_than_there_were(right, count):
    with pytest.raises(DataError, match="no more right than that"):
        wilson_interval(right, count)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ConfigError, match="a share between 0 and 1"):
        wilson_interval(1, 2, confidence=confidence)


def test_a_tie_counts_against_the_right_answer():
    scores = torch.tensor([3.0, 2.0, 2.0, 1.0])
    assert reciprocal_rank(torch.tensor([4.0]), scores) == 1
    assert reciprocal_rank(torch.tensor([3.0]), scores) == 1 / 2
    assert reciprocal_rank(torch.tensor([2.0, 0.0]), scores) == 1 / 4
    assert reciprocal_rank(torch.zeros(1), torch.zeros(9)) == 1 / 10
    with pytest.raises(DataError, match="a side has no answer"):
        reciprocal_rank(torch.zeros(0), scores)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=2))
def test_against_one_wrong_answer_it_is_pair_accuracy(scores):
    one, other = torch.tensor(scores).chunk(2)
    assert (reciprocal_rank(one, other) == 1) == (pair_outcomes(one, other).item() == 1)
