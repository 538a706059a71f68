import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import builders as reference

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.rankings import (
    aspect_mean,
    aspect_ratings,
    pairs_from_ratings,
    ranked_preferences,
)

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_first_factor_that_differs_enough_decides():
    factors = torch.tensor([[[1.0, 0.0], [0.0, 9.0]], [[0.5, 0.0], [0.0, 9.0]], [[0.5, 1], [0, 1]]])
    thresholds = torch.tensor([0.5, 0.0])
    assert ranked_preferences(factors, thresholds).tolist() == [1, -1, 0]


@given(SEEDS, st.integers(1, 4))
def test_preferences_against_the_reference(seed, factors):
    pairs, thresholds = drawn(seed, 5, 2, factors), drawn(seed + 1, factors).abs()
    found = ranked_preferences(pairs, thresholds)
    rows = [[side.tolist() for side in pair] for pair in pairs]
    expected = [reference.ranked_preference(*row, thresholds.tolist()) for row in rows]
    assert found.tolist() == expected
    assert ranked_preferences(pairs.flip(1), thresholds).tolist() == [-one for one in expected]
    scaled = ranked_preferences(pairs * 4.0, thresholds * 4.0)
    assert torch.equal(scaled, found)


@given(SEEDS)
def test_one_factor_without_a_threshold_is_the_sign(seed):
    pairs = drawn(seed, 4, 2, 1)
    found = ranked_preferences(pairs, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(found, (pairs[:, 0, 0] - pairs[:, 1, 0]).sign().long())


def test_thresholds_make_cycles():
    """Each of three is better than the next: with thresholds there may be no best one."""
    rows = torch.tensor([[0.0, 2.0], [0.6, 1.0], [1.2, 0.0]])
    pairs = torch.stack([rows, rows.roll(-1, 0)], dim=1)
    assert ranked_preferences(pairs, torch.tensor([1.0, 0.0])).tolist() == [1, 1, 1]


def test_factors_that_say_nothing():
    with pytest.raises(ConfigError, match="thresholds are"):
        ranked_preferences(torch.zeros(1, 2, 1), torch.tensor([-1.0]))
    with pytest.raises(DataError, match="1 pairs have a factor that is NaN"):
        ranked_preferences(torch.tensor([[[math.nan], [0.0]]]), torch.zeros(1))


def test_only_ratings_apart_make_pairs():
    ratings, errors = torch.tensor([1.0, 2.0, math.nan, 2.2]), torch.tensor([0.1, 0.2, 0.0, 0.2])
    pairs, gaps = pairs_from_ratings(ratings, errors=errors)
    assert pairs.tolist() == [[1, 0], [3, 0]]
    assert gaps.tolist() == pytest.approx([1.0, 1.2])
    assert pairs_from_ratings(ratings, errors=errors, best_share=0.25)[0].tolist() == [[3, 0]]
    assert len(pairs_from_ratings(ratings, errors=errors, z=9.0)[0]) == 0


@given(SEEDS, st.integers(0, 6), st.sampled_from([0.0, 0.5, 3.0]))
def test_rated_pairs_against_the_reference(seed, count, z):
    ratings, errors = drawn(seed, count).round(decimals=1), 0.2 * drawn(seed + 1, count).abs()
    found = pairs_from_ratings(ratings, errors=errors, z=z)[0]
    expected = reference.rated_pairs(ratings.tolist(), errors.tolist(), z)
    assert [tuple(pair) for pair in found.tolist()] == expected
    strict = pairs_from_ratings(ratings, z=z)[0]  # no errors: all that are strictly in order
    zero = reference.rated_pairs(ratings.tolist(), [0.0] * count, z)
    assert [tuple(pair) for pair in strict.tolist()] == zero


@pytest.mark.parametrize(
    "wrong", [{"z": -1.0}, {"best_share": 0.0}, {"errors": torch.tensor([-1.0])}]
)
def test_settings_of_ratings_that_do_not_fit(wrong):
    with pytest.raises(ConfigError, match="expected z and errors of at least 0"):
        pairs_from_ratings(torch.zeros(1), **wrong)


def test_aspects_of_ultrafeedback_without_the_overall_score():
    said = {
        "instruction_following": {"Rating": "5", "Rationale": "..."},
        "honesty": {"Rating": "N/A"},
        "truthfulness": {"Rating": 2},
        "helpfulness": {"Type": ["1"], "Rating": "3"},
    }
    found = aspect_ratings(said)
    assert list(found) == list(said)
    assert [found[name] for name in ("instruction_following", "truthfulness")] == [5.0, 2.0]
    assert math.isnan(found["honesty"])
    assert aspect_mean(said) == pytest.approx(10 / 3)
    assert math.isnan(aspect_mean({"honesty": {"Rating": "N/A"}, "helpfulness": {}}))
