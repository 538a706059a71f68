import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import preferred as reference

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.policy.preferred import (
    PAIRINGS,
    preferred_pairs,
    ranking_consistencies,
    win_rates,
)

NAN = math.nan
SCORES = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
AGREEMENTS = ("kendall", "spearman", "top-order")
seeds = st.integers(0, 10**6)


def pairs(pairing: str, scores=SCORES, groups=GROUPS, seed: int = 0, **options) -> list[list[int]]:
    rng = torch.Generator().manual_seed(seed)
    return preferred_pairs(scores, groups, pairing=pairing, rng=rng, **options).tolist()


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randint(0, 4, (12,)).float(), torch.arange(12) // 4  # with many alike


def test_literals():
    assert pairs("best-worst") == [[1, 0], [5, 4]]
    assert pairs("best-second") == [[1, 2], [5, 3]]
    assert pairs("all-pairs") == [[1, 2], [1, 0], [2, 0], [5, 3], [5, 4], [3, 4]]
    assert pairs("all-pairs", least_gap=2.0) == [[1, 0], [5, 4]]


def test_the_best_and_one_of_the_others_each_as_often():
    found = [tuple(pair) for seed in range(300) for pair in pairs("best-random", seed=seed)]
    assert {better for better, _ in found} == {1, 5}
    for pair in [(1, 0), (1, 2), (5, 3), (5, 4)]:
        assert abs(found.count(pair) - 150) < 40  # four and a half standard deviations


@given(seeds, st.sampled_from([0.0, 2.0]))
def test_all_pairs_are_those_of_the_reference(seed, least_gap):
    scores, groups = drawn(seed)
    found = {tuple(pair) for pair in pairs("all-pairs", scores, groups, least_gap=least_gap)}
    assert found == reference.all_pairs(scores.tolist(), groups.tolist(), least_gap)


@pytest.mark.parametrize("pairing", sorted(PAIRINGS))
def test_equal_scores_alone_or_unknown_ones_make_no_pair(pairing):
    assert pairs(pairing, torch.tensor([2.0, 2.0, 2.0]), GROUPS[:3]) == []
    assert pairs(pairing, torch.tensor([2.0]), GROUPS[:1]) == []
    assert pairs(pairing, torch.tensor([NAN, 2.0, NAN]), GROUPS[:3]) == []
    assert pairs(pairing, SCORES[:0], GROUPS[:0]) == []


@pytest.mark.parametrize("pairing", sorted(PAIRINGS))
def test_what_has_no_score_is_as_good_as_not_there(pairing):
    scores = torch.tensor([NAN, 1.0, 3.0, NAN, 2.0])
    kept = [1, 2, 4]
    alone = pairs(pairing, scores[kept], torch.zeros(3, dtype=torch.long))
    whole = pairs(pairing, scores, torch.zeros(5, dtype=torch.long))
    assert whole == [[kept[a], kept[b]] for a, b in alone]


def test_win_rates_by_hand():
    scores = torch.tensor([0.0, math.log(3.0), NAN, 7.0])
    found = win_rates(scores, torch.tensor([0, 0, 0, 1]))
    assert found[:2].tolist() == pytest.approx([0.25, 0.75])
    assert bool(found[2].isnan())
    assert float(found[3]) == 0.5


@given(seeds)
def test_win_rates_are_those_of_the_reference_and_a_half_on_average(seed):
    scores, groups = drawn(seed)
    found = win_rates(scores.double(), groups)
    assert found.tolist() == pytest.approx(reference.win_rates(scores.tolist(), groups.tolist()))
    assert found.view(3, 4).mean(-1).tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("agreement", AGREEMENTS)
@given(seed=seeds)
def test_consistencies_are_those_of_the_reference(agreement, seed):
    scores, groups = drawn(seed)
    others, _ = drawn(seed + 1)
    found = ranking_consistencies(scores, others, groups, agreement=agreement)
    expected = [
        reference.consistency(scores[rows].tolist(), others[rows].tolist(), agreement)
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert bool(((found >= 0) & (found <= 1)).all())


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_the_same_ranking_is_consistent_and_the_reverse_is_not(agreement):
    scores, groups = torch.tensor([0.5, 3.0, -1.0]), torch.zeros(3, dtype=torch.long)

    def consistency(others):
        return ranking_consistencies(scores, others, groups, agreement=agreement).tolist()

    assert consistency(scores.exp()) == [1.0]
    assert consistency(-scores) == [0.0]


def test_consistency_by_hand_with_what_could_not_be_scored_left_out():
    now = torch.tensor([1.0, 2.0, 3.0, 9.0, 1.0])
    before = torch.tensor([1.0, 3.0, 2.0, NAN, 5.0])
    groups = torch.tensor([4, 4, 4, 4, 2])
    # Of three pairs two agree: tau is 1/3. The one response to the other prompt agrees with itself.
    assert ranking_consistencies(now, before, groups).tolist() == pytest.approx([2 / 3, 1.0])


def test_numbers_that_do_not_fit(unchecked):
    with pytest.raises(ShapeError, match="2 scores and 3 numbers of groups"):
        pairs("all-pairs", SCORES[:2], GROUPS[:3])
    with pytest.raises(ShapeError, match="2 scores and 3 numbers of groups"):
        win_rates(SCORES[:2], GROUPS[:3])
    with pytest.raises(ShapeError, match="2 scores, 3 earlier ones and 2 numbers of groups"):
        ranking_consistencies(SCORES[:2], SCORES[:3], GROUPS[:2])
    with pytest.raises(ConfigError, match=r"pairing is 'best-wurst'; expected .*'best-worst'"):
        pairs("best-wurst")
