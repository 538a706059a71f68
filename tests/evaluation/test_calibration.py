import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import calibration as reference

from tokencredit.errors import ConfigError, DataError
from tokencredit.evaluation.calibration import (
    expected_calibration_error,
    label_reliability_curve,
    pair_reliability_curve,
    rating_reliability_curve,
    reliability_curve,
)

SEEDS = st.integers(0, 10**6)


def test_literal():
    probabilities = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0])
    curve = reliability_curve(probabilities, torch.tensor([0, 1, 1, 0, 1]), bins=2)
    low, high = curve
    assert (low["low"], low["high"], low["count"]) == (0.0, 0.5, 2)
    assert (low["predicted"], low["observed"]) == (pytest.approx(0.2), 0.5)
    assert (high["low"], high["high"], high["count"]) == (0.5, 1.0, 3)
    assert (high["predicted"], high["observed"]) == (pytest.approx(0.8), pytest.approx(2 / 3))
    error = expected_calibration_error(curve)
    assert error == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)


def test_empty_bins_have_no_row():
    curve = reliability_curve(torch.tensor([0.05, 0.95]), torch.tensor([0, 1]), bins=10)
    assert [row["low"] for row in curve] == pytest.approx([0.0, 0.9])


@given(SEEDS, st.integers(1, 12))
def test_labels_against_the_reference(seed, bins):
    torch.manual_seed(seed)
    scores, labels = 2 * torch.randn(30), (torch.rand(30) < 0.5).long()
    predicted = [reference.sigmoid(score) for score in scores.tolist()]
    expected = reference.expected_error(predicted, labels.tolist(), bins, 0.0)
    curve = label_reliability_curve(scores, labels, bins=bins)
    assert expected_calibration_error(curve) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(SEEDS, st.integers(1, 12))
def test_pairs_against_the_reference(seed, bins):
    torch.manual_seed(seed)
    chosen, rejected = torch.randn(2, 30)
    leads = (chosen - rejected).tolist()
    expected = reference.expected_error(
        [reference.sigmoid(abs(lead)) for lead in leads], [float(lead > 0) for lead in leads],
        bins, 0.5,
    )  # fmt: skip
    curve = pair_reliability_curve(chosen, rejected, bins=bins)
    assert expected_calibration_error(curve) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_tie_is_half_right_and_says_so():
    curve = pair_reliability_curve(torch.ones(3), torch.ones(3))
    assert [(row["predicted"], row["observed"], row["count"]) for row in curve] == [(0.5, 0.5, 3)]


def test_the_order_of_a_pair_does_not_matter_for_how_sure_it_is():
    chosen, rejected = torch.randn(2, 50)
    there, back = (pair_reliability_curve(*sides) for sides in ((chosen, rejected),
                                                                (rejected, chosen)))  # fmt: skip
    for one, other in zip(there, back, strict=True):
        assert one["predicted"] == other["predicted"]
        assert one["observed"] == pytest.approx(1 - other["observed"])


def test_what_draws_from_its_own_probabilities_is_calibrated():
    scores = 3 * torch.randn(20_000)
    labels = (torch.rand(20_000) < scores.sigmoid()).long()
    assert expected_calibration_error(label_reliability_curve(scores, labels)) < 0.02
    boastful = label_reliability_curve(4 * scores, labels)
    assert expected_calibration_error(boastful) > 0.1


def test_ratings_lie_in_bins_of_equal_size_by_score():
    scores = torch.tensor([3.0, 1.0, 2.0, 9.0, 8.0])
    ratings = torch.tensor([7, 1, 3, 2, 10])
    curve = rating_reliability_curve(scores, ratings, bins=2)
    assert curve == [
        {"low": 1.0, "high": 3.0, "predicted": 2.0, "observed": pytest.approx(11 / 3), "count": 3},
        {"low": 8.0, "high": 9.0, "predicted": 8.5, "observed": 6.0, "count": 2},
    ]
    assert len(rating_reliability_curve(scores, ratings, bins=50)) == 5


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.tensor([math.nan])])
def test_there_are_numbers_to_judge(scores):
    labels = torch.zeros(len(scores))
    for curve in (
        lambda: pair_reliability_curve(scores, labels),
        lambda: label_reliability_curve(scores, labels),
        lambda: rating_reliability_curve(scores, labels),
        lambda: reliability_curve(scores, labels),
    ):
        with pytest.raises(DataError, match="expected at least one, and none of them NaN"):
            curve()
    with pytest.raises(DataError, match="has no rows"):
        expected_calibration_error([])


def test_there_is_a_bin():
    scores = torch.zeros(2)
    for curve in (reliability_curve, rating_reliability_curve, label_reliability_curve):
        with pytest.raises(ConfigError, match="bins is 0"):
            curve(scores, scores, bins=0)
    with pytest.raises(ConfigError, match="bins is 0"):
        pair_reliability_curve(scores, scores, bins=0)
