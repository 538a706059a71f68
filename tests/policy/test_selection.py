import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import selection as reference

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.policy.selection import (
    SELECTIONS,
    kept_responses,
    resampled_responses,
    score_reliability,
)

NAN = math.nan
SCORES = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
seeds = st.integers(0, 10**6)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(keep: str, scores=SCORES, groups=GROUPS, count: int = 1, seed: int = 0) -> list[int]:
    found = kept_responses(scores, groups, keep=keep, count=count, rng=rng(seed))
    return found.tolist()


def test_literals():
    assert kept("all") == [0, 1, 2, 3, 4, 5]
    assert kept("best") == [1, 5]
    assert kept("best", count=2) == [1, 2, 3, 5]
    assert kept("best-worst") == [0, 1, 4, 5]


@given(seeds, st.sampled_from([("best", 1), ("best", 2), ("best-worst", 1)]))
def test_against_the_reference(seed, how):
    torch.manual_seed(seed)
    keep, count = how
    scores = torch.randint(0, 4, (12,)).float()  # with many alike
    groups = torch.arange(12) // 4
    assert kept(keep, scores, groups, count) == reference.kept(
        scores.tolist(), groups.tolist(), keep, count
    )


def test_the_best_and_one_of_the_others_each_as_often():
    counts = torch.zeros(6)
    for seed in range(300):
        rows = kept("best-random", seed=seed)
        assert len(rows) == 4
        assert {1, 5} <= set(rows)
        counts[rows] += 1
    assert counts[[1, 5]].tolist() == [300.0, 300.0]
    others = counts[[0, 2, 3, 4]]
    assert (others - 150).abs().max() < 40  # four and a half standard deviations


@pytest.mark.parametrize(("keep", "each"), [("best", 1), ("best-random", 2), ("best-worst", 2)])
def test_every_group_keeps_as_many_whatever_could_not_be_scored(keep, each):
    scores = torch.tensor([NAN, 3.0, NAN, NAN, NAN, NAN, 1.0, 2.0, NAN])
    groups = torch.arange(9) // 3
    rows = kept(keep, scores, groups)
    assert [sum(row // 3 == group for row in rows) for group in range(3)] == [each] * 3
    assert 1 in rows
    assert 7 in rows
    if each == 2:
        assert 6 in rows  # the only other one with a score


def test_groups_may_stand_in_any_order():
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    rows = kept("best-worst", SCORES[order], GROUPS[order])
    assert sorted(order[rows].tolist()) == [0, 1, 4, 5]


def drawn(keep: str, count: int = 1, scores=SCORES) -> torch.Tensor:
    counts = torch.zeros(len(scores))
    for seed in range(400):
        rows = resampled_responses(scores, GROUPS, keep=keep, count=count, rng=rng(seed))
        assert len(rows) == len(scores)
        assert rows.tolist() == sorted(rows.tolist())
        counts += torch.bincount(rows, minlength=len(scores))
    return counts / counts.sum()


@pytest.mark.parametrize(
    ("keep", "weights"),
    [
        ("best", [0, 1, 0, 0, 0, 1]),
        ("best-worst", [1, 1, 0, 0, 1, 1]),
        ("best-random", [0.1, 0.4, 0.1, 0.1, 0.1, 0.4]),
    ],
)
def test_responses_are_drawn_again_by_the_published_weights(keep, weights):
    expected = torch.tensor(weights) / sum(weights)
    found = drawn(keep)
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 0.03  # three and more standard deviations


def test_what_could_not_be_scored_is_not_drawn_again():
    scores = torch.tensor([NAN, 3.0, 2.0, 5.0, NAN, 6.0])
    for keep in ("best", "best-random", "best-worst"):
        assert (drawn(keep, scores=scores)[[0, 4]] == 0).all()


def test_reliability_is_the_coefficient_of_determination():
    scores = torch.randn(20)
    judged = 0.5 * scores + torch.randn(20)
    expected = reference.determination(scores.tolist(), judged.tolist())
    assert float(score_reliability(scores, judged)) == pytest.approx(expected, rel=1e-4)
    assert float(score_reliability(scores, 3 - 2 * scores)) == pytest.approx(1.0)
    assert score_reliability(scores, torch.ones(20)) == 0.0
    assert score_reliability(scores[:1], judged[:1]) == 0.0


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(ConfigError, match=r"keep is 'bst'.*did you mean 'best'"):
        kept("bst")
    with pytest.raises(ConfigError, match=r"has 3 responses .* count 4; expected at least 4"):
        kept("best", count=4)
    with pytest.raises(ConfigError, match=r"has 1 responses .*at least 2"):
        kept("best-worst", SCORES[:1], GROUPS[:1])


@pytest.mark.usefixtures("unchecked")
def test_every_response_has_a_group():
    with pytest.raises(ShapeError, match="6 scores and 2 numbers of groups"):
        kept_responses(SCORES, GROUPS[:2], keep="all", rng=rng())


def test_every_selection_says_how_many_it_needs():
    for name, row in SELECTIONS.items():
        assert row.samples == (1 if name == "all" else 2)
        assert row.text
