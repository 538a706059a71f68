import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import segments as reference

from tokencredit.credit.location import (
    LocationNormaliser,
    fitted_location_normaliser,
    location_normalised,
)
from tokencredit.errors import ConfigError, DataError, ShapeError

NAN = math.nan
seeds = st.integers(0, 10**6)
LLAMA_BY_TOKEN = LocationNormaliser(1.7340, 0.9906, 1.3212, 5.4513)


def rows_of(lengths, seed):
    """Rewards of responses of these numbers of segments, NaN behind each."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rewards = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return rewards.masked_fill(~mask, NAN), mask


def test_literal():
    """With w = 1 / log 2 the lines are 1 lower half way: mean 1, deviation 2; at the end 2, 3."""
    w = 1 / math.log(2)
    normaliser = LocationNormaliser(w, w, 2.0, 3.0)
    rewards = torch.tensor([[5.0, 5.0], [8.0, NAN]])
    mask = torch.tensor([[True, True], [True, False]])
    normal = location_normalised(rewards, mask, normaliser)
    torch.testing.assert_close(normal, torch.tensor([[2.0, 1.0], [2.0, 0.0]]))


@given(seeds, st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_against_the_reference(seed, lengths):
    rewards, mask = rows_of(lengths, seed)
    normaliser = LocationNormaliser(0.8, 1.5, 0.7, 2.0, floor=0.3)
    actual = location_normalised(rewards, mask, normaliser)
    for row, length in enumerate(lengths):
        own = rewards[row, :length].tolist()
        expected = reference.normalised(own, list(vars(normaliser).values()))
        torch.testing.assert_close(
            actual[row, :length], torch.tensor(expected, dtype=torch.float64)
        )
        assert actual[row, length:].eq(0).all()


@pytest.mark.parametrize("length", [245, 246, 2000])
def test_the_floor_keeps_the_sign_where_the_published_line_turns_negative(length):
    deviation = LLAMA_BY_TOKEN.deviation_slope * math.log(1 / length)
    deviation += LLAMA_BY_TOKEN.deviation_at_end
    assert (deviation < 0) == (length >= 246)
    mask = torch.ones(1, length, dtype=torch.bool)
    normal = location_normalised(torch.full((1, length), 3.0), mask, LLAMA_BY_TOKEN)
    assert (normal > 0).all()
    largest = 3.0 - 1.3212 + 1.7340 * math.log(length)
    assert normal.max() <= largest / (0.1 * 5.4513) * (1 + 1e-5)


def test_garbage_outside_moves_no_gradient():
    rewards, mask = rows_of([3, 1], 0)
    rewards.requires_grad_()
    location_normalised(rewards, mask, LLAMA_BY_TOKEN).sum().backward()
    assert rewards.grad.isfinite().all()
    assert rewards.grad[~mask].eq(0).all()


def assert_best(rewards, mask):
    """No small step from the fitted lines lowers Huber's cost."""
    fitted = fitted_location_normaliser(rewards, mask)
    rows = [row[counts].tolist() for row, counts in zip(rewards, mask, strict=True)]
    logs, means, deviations = reference.by_location(rows)
    for y, line in (
        (means, (fitted.mean_slope, fitted.mean_at_end)),
        (deviations, (fitted.deviation_slope, fitted.deviation_at_end)),
    ):
        scale = reference.huber_scale(logs, y, *line, 1.35)
        best = reference.huber_cost(logs, y, *line, scale, 1.35)
        for slope, at_end in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
            moved = (line[0] + slope, line[1] + at_end)
            scale = reference.huber_scale(logs, y, *moved, 1.35)
            assert reference.huber_cost(logs, y, *moved, scale, 1.35) >= best - 1e-9


@settings(max_examples=20)
@given(seeds)
def test_the_fit_is_the_best_line_and_scale(seed):
    assert_best(*rows_of([2, 3, 3, 4, 4, 4, 5, 5], seed))


def test_places_of_very_long_responses_stay_above_nought():
    """1 / 2500 rounds to 0.000, whose logarithm would pull at the whole line."""
    assert_best(*rows_of([2500, 2500], 0))


def on_the_lines(*, places):
    """Four rewards at each of so many places, with their mean and deviation on known lines."""
    p = torch.arange(1, places + 1, dtype=torch.float64) / places
    mean, deviation = 0.7 * p.log() + 1.5, 0.2 * p.log() + 2.0
    return mean + deviation * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])


def test_known_lines_come_back():
    rewards = on_the_lines(places=20)
    fitted = fitted_location_normaliser(rewards, torch.ones(4, 20, dtype=torch.bool))
    found = [fitted.mean_slope, fitted.deviation_slope, fitted.mean_at_end, fitted.deviation_at_end]
    assert found == pytest.approx([0.7, 0.2, 1.5, 2.0], abs=1e-6)


def test_known_lines_come_back_in_spite_of_outliers():
    """A quarter of the locations are far off; least squares would follow them."""
    rewards = on_the_lines(places=20)
    rewards[:, 2::4] *= 30.0
    fitted = fitted_location_normaliser(rewards, torch.ones(4, 20, dtype=torch.bool))
    found = [fitted.mean_slope, fitted.deviation_slope, fitted.mean_at_end, fitted.deviation_at_end]
    assert found == pytest.approx([0.7, 0.2, 1.5, 2.0], abs=1e-4)


def test_what_was_fitted_normalises():
    generator = torch.Generator().manual_seed(0)
    rewards = 3.0 + 2.0 * torch.randn(4000, 10, generator=generator)
    rewards += torch.arange(1, 11).div(10).log()
    mask = torch.ones(4000, 10, dtype=torch.bool)
    normal = location_normalised(rewards, mask, fitted_location_normaliser(rewards, mask))
    assert normal.mean(0).abs().max() < 0.1
    assert (normal.std(0) - 1).abs().max() < 0.1


def test_locations_with_a_single_reward_do_not_count():
    """The third row is alone at 1/3 and 2/3; its rewards there are wild."""
    rewards = torch.tensor([[0.0, 2.0, NAN], [2.0, 4.0, NAN], [99.0, -99.0, 3.0]])
    mask = ~rewards.isnan()
    fitted = fitted_location_normaliser(rewards, mask)
    assert fitted.mean_at_end == pytest.approx(3.0)
    assert fitted.mean_slope == pytest.approx(2.0 / math.log(2))
    assert fitted.deviation_at_end == pytest.approx(math.sqrt(2 / 3))


@pytest.mark.parametrize("deviation", [0.0, -1.0, NAN])
def test_a_deviation_is_positive(deviation):
    with pytest.raises(ConfigError, match="deviation_at_end is"):
        LocationNormaliser(0.0, 0.0, 0.0, deviation)


@pytest.mark.parametrize("floor", [0.0, 1.1, NAN])
def test_a_floor_is_a_share(floor):
    with pytest.raises(ConfigError, match="floor"):
        LocationNormaliser(0.0, 0.0, 0.0, 1.0, floor=floor)


def test_too_little_to_fit():
    rewards, mask = rows_of([1, 1, 3], 0)
    with pytest.raises(DataError, match="1 locations have two segment rewards"):
        fitted_location_normaliser(rewards, mask)
    with pytest.raises(DataError, match="expected segment rewards that vary"):
        fitted_location_normaliser(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"epsilon is 0\.5"):
        fitted_location_normaliser(rewards, mask, epsilon=0.5)


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_fit():
    rewards, mask = torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"segment_rewards have shape \(2, 3\)"):
        location_normalised(rewards, mask, LLAMA_BY_TOKEN)
    with pytest.raises(ShapeError, match=r"segment_rewards have shape \(2, 3\)"):
        fitted_location_normaliser(rewards, mask)
