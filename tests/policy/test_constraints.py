import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import objectives as reference

from tokencredit.errors import ConfigError, DataError, NumericError, ShapeError
from tokencredit.policy.bounds import (
    hoeffding_upper_bound,
    pessimism,
    safety_test,
    student_quantile,
)
from tokencredit.policy.constraints import (
    CONSTRAINTS,
    mixed_advantages,
    pessimistic_cost_factors,
    starting_point,
    updated_multiplier,
)

seeds = st.integers(0, 10**6)
every_method = pytest.mark.parametrize("method", CONSTRAINTS)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.95, 1, 6.313752),
        (0.95, 4, 2.131847),
        (0.99, 9, 2.821438),
        (0.975, 30, 2.042272),
        (0.999, 2, 22.327125),
        (0.95, 1000, 1.646379),
        (0.9999, 10**6, 3.719033),
        (0.05, 4, -2.131847),
    ],
)
def test_quantiles_are_those_of_the_tables(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=3e-6)


def test_a_quantile_of_one_degree_is_that_of_cauchy():
    for probability in (0.5001, 0.75, 0.9, 0.999999):
        expected = math.tan(math.pi * (probability - 0.5))
        assert student_quantile(probability, 1) == pytest.approx(expected, rel=1e-8)


def test_the_bound_is_above_the_mean_and_comes_down_to_it():
    widths = [pessimism(0.05, [(1.0, n), (1.0, n)]) for n in (5, 50, 5000, 50_000_000)]
    assert widths == sorted(widths, reverse=True)
    assert 0 < widths[-1] < 1e-3
    assert pessimism(0.05, [(1.0, 20), (0.0, 1)]) == pessimism(0.05, [(1.0, 20)])
    assert pessimism(0.05, [(2.0, 20)]) == 2 * pessimism(0.05, [(1.0, 20)])


@pytest.mark.parametrize("bound", ["student", "hoeffding"])
def test_a_bad_mean_passes_in_at_most_the_failure_probability(bound):
    """10,000 samples of a policy just above the threshold; three deviations of the count."""
    torch.manual_seed(0)
    draws, size, delta = 10_000, 20, 0.05
    samples = torch.randn(draws, size, dtype=torch.float64) + 1e-6
    options = {"threshold": 0.0, "failure_probability": delta, "bound": bound}
    if bound == "hoeffding":
        samples = (samples > 0).double() - 0.5 + 1e-6
        options["cost_range"] = (-0.5, 0.51)
    passed = sum(safety_test(one, **options).safe for one in samples)
    assert passed <= draws * delta + 3 * math.sqrt(draws * delta * (1 - delta))
    if bound == "student":  # a bound that is not too wide either
        assert passed >= draws * delta - 3 * math.sqrt(draws * delta * (1 - delta))


def test_a_good_policy_passes():
    torch.manual_seed(0)
    verdict = safety_test(torch.randn(400) - 1, threshold=0.0, failure_probability=0.05)
    assert verdict.safe
    assert verdict.mean < verdict.bound < 0
    assert verdict.count == 400


def test_hoeffding_by_hand():
    found = hoeffding_upper_bound(0.1, 200, failure_probability=0.05, value_range=(-1.0, 3.0))
    assert found == pytest.approx(0.1 + 4 * math.sqrt(math.log(20) / 400))


@given(seeds)
def test_factors_make_the_published_cost(seed):
    torch.manual_seed(seed)
    costs = torch.randn(9, dtype=torch.float64)
    mean, deviation = float(costs.mean()), float(costs.std())
    factors = pessimistic_cost_factors(costs, mean=mean, deviation=deviation, pessimism=0.7)
    expected = reference.pessimistic_costs(costs.tolist(), mean, deviation, 0.7)
    torch.testing.assert_close(factors * costs, torch.tensor(expected, dtype=torch.float64))
    plain = pessimistic_cost_factors(costs, mean=mean, deviation=deviation, pessimism=0.0)
    assert torch.equal(plain, torch.ones_like(costs))


def test_the_pessimistic_cost_has_the_gradient_of_the_bound():
    """Exactly, over all answers of a policy: the score-function weight is that of the bound."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    costs, k = torch.randn(6, dtype=torch.float64), 0.4
    chances = logits.softmax(-1)
    mean = (chances * costs).sum()
    deviation = ((chances * costs.square()).sum() - mean.square()).sqrt()
    (expected,) = torch.autograd.grad(mean + k * deviation, logits)
    chances = logits.softmax(-1)
    numbers = {"mean": mean.item(), "deviation": deviation.item(), "pessimism": k}
    weights = costs * pessimistic_cost_factors(costs, **numbers)
    (found,) = torch.autograd.grad((chances * weights).sum(), logits)
    torch.testing.assert_close(found, expected)


@given(seeds)
def test_mixed_against_loops(seed):
    torch.manual_seed(seed)
    kl, others = torch.randn(3, 4).double(), torch.randn(2, 3, 4).double()
    multipliers = torch.rand(2).double()
    expected = reference.mixed(kl.tolist(), others.tolist(), multipliers.tolist())
    found = mixed_advantages(kl, others, multipliers)
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_without_multipliers_there_is_kl_alone():
    kl, others = torch.randn(3, 4), torch.randn(2, 3, 4)
    assert torch.equal(mixed_advantages(kl, others, torch.zeros(2)), 2 * kl)
    assert torch.equal(mixed_advantages(kl, others, torch.ones(2)), others.sum(0))


@every_method
def test_a_multiplier_stays_at_its_threshold(method):
    raw = starting_point(method, None)
    options = {"method": method, "rate": 0.5, "momentum": 0.1}
    assert updated_multiplier(raw, 0.0, 0.0, **options) == (raw, 0.0)


@every_method
def test_a_multiplier_moves_by_what_is_above_the_threshold(method):
    """It grows for costs and falls for rewards."""
    one, raw = CONSTRAINTS[method], starting_point(method, None)
    above, velocity = updated_multiplier(raw, 0.0, 0.3, method=method, rate=0.1)
    assert (one.multiplier(above) - one.multiplier(raw)) * one.sense > 0
    again, _ = updated_multiplier(raw, velocity, 0.3, method=method, rate=0.1, momentum=0.5)
    assert abs(again - raw) == pytest.approx(1.5 * abs(above - raw))


@every_method
def test_slopes_are_derivatives_and_inverses_are_inverse(method):
    one = CONSTRAINTS[method]
    for raw in (0.2, 1.0, 1.7):
        slope = (one.multiplier(raw + 1e-6) - one.multiplier(raw - 1e-6)) / 2e-6
        assert one.slope(raw) == pytest.approx(slope, rel=1e-6)
        assert one.inverse(one.multiplier(raw)) == pytest.approx(raw)
    assert one.multiplier(starting_point(method, None)) == pytest.approx(one.start)


def test_a_lagrangian_is_never_negative():
    assert updated_multiplier(0.1, 0.0, -9.0, method="lagrangian", rate=1.0)[0] == 0.0


@pytest.mark.parametrize(
    ("method", "start", "expected"),
    [
        ("lagrangian", -1.0, "0 or more"),
        ("pessimistic", 0.0, "more than 0"),
        ("at-least", 1.0, "between 0 and 1"),
        ("equal", -1.0, "between -1 and 1"),
        ("equal", math.nan, "between -1 and 1"),
    ],
)
def test_a_start_that_cannot_be(method, start, expected):
    with pytest.raises(ConfigError, match=rf"start is .* {expected}"):
        starting_point(method, start)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_a_failure_probability_outside_is_an_error(delta):
    costs = torch.randn(5)
    with pytest.raises(ConfigError, match=r"failure_probability is .* above 0 and below 1"):
        safety_test(costs, threshold=0.0, failure_probability=delta)
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        pessimism(delta, [(1.0, 5)])


def test_samples_that_cannot_be():
    options = {"threshold": 0.0, "failure_probability": 0.05}
    with pytest.raises(DataError, match="there are 1 costs; expected at least 2"):
        safety_test(torch.ones(1), **options)
    with pytest.raises(NumericError, match="NaN or infinite"):
        safety_test(torch.tensor([1.0, math.nan]), **options)
    with pytest.raises(ConfigError, match="range of costs is None"):
        safety_test(torch.ones(3), **options, bound="hoeffding")
    with pytest.raises(ConfigError, match=r"range of costs is \[1\.0, 0\.0\]"):
        hoeffding_upper_bound(0.0, 3, failure_probability=0.05, value_range=(1.0, 0.0))
    costs = torch.tensor([0.0, 2.0])
    with pytest.raises(DataError, match=r"costs go from 0 to 2 and the range is \[0"):
        safety_test(costs, **options, bound="hoeffding", cost_range=(0.0, 1.0))
    with pytest.raises(ConfigError, match="a sample of 1 has no deviation"):
        pessimism(0.05, [(1.0, 1)])


def test_a_multiplier_for_each_reward(unchecked):
    with pytest.raises(ShapeError, match="1 multipliers for 2 rewards"):
        mixed_advantages(torch.zeros(1, 1), torch.zeros(2, 1, 1), torch.zeros(1))
