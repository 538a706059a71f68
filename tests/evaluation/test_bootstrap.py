import random
from math import isnan, nan, sqrt

import pytest
import torch

from tokencredit.errors import ConfigError
from tokencredit.evaluation.bootstrap import mean_interval


def test_equal_values_leave_nothing_open():
    assert mean_interval(torch.full((9,), 0.25)) == (0.25, 0.25)


def test_against_the_normal_interval_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)) + 3
    low, high = mean_interval(values, resamples=4000)
    half = 1.96 * float(values.std()) / sqrt(len(values))
    assert low == pytest.approx(float(values.mean()) - half, abs=0.04 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.04 * half)


def test_against_draws_one_by_one():
    values = [0.0, 1.0, 5.0]
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=3)) / 3 for _ in range(20000))
    low, high = mean_interval(torch.tensor(values), resamples=20000, coverage=0.8)
    assert low == pytest.approx(means[2000], abs=0.01)
    assert high == pytest.approx(means[18000], abs=0.01)


def test_undefined_values_are_left_out_and_none_gives_none():
    values = torch.tensor([0.1, nan, 0.7, 0.4])
    assert mean_interval(values) == mean_interval(values[~values.isnan()])
    assert all(map(isnan, mean_interval(torch.tensor([nan, nan]))))
    assert all(map(isnan, mean_interval(torch.zeros(0))))


def test_a_seed_gives_the_same_interval_and_more_coverage_a_wider_one():
    values = torch.rand(30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)
    (low, high), (lower, higher) = (mean_interval(values, coverage=c) for c in (0.5, 0.99))
    assert lower < low < float(values.mean()) < high < higher


@pytest.mark.parametrize(
    ("options", "message"), [({"resamples": 0}, "resamples is 0"), ({"coverage": 1.0}, "coverage")]
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        mean_interval(torch.rand(3), **options)
