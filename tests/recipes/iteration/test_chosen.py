"""Rows of a round, literally, for every set-up."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from online_settings import online
from reference import preferred as reference

from tokencredit.policy.setups import ONLINE_SETUPS
from tokencredit.recipes.iteration.answers import Answer
from tokencredit.recipes.iteration.chosen import chosen_rows

SCORES = ((1.0, 3.0, 2.0), (5.0, 5.0, 5.0), (0.0, None, 2.0))
"""Of three responses to each of three prompts: one group of equal scores, one answer unscored."""


def answers(scores=SCORES, **more: Any) -> list[Answer]:
    return [
        Answer(group, f"p{group}", f" r{group}{at}", at != 1, 3, score=score, **more)
        for group, some in enumerate(scores)
        for at, score in enumerate(some)
    ]


def pair(group: int, better: int, worse: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": f"p{group}",
        "chosen": f" r{group}{better}",
        "rejected": f" r{group}{worse}",
        "chosen_ended": better != 1,
        "rejected_ended": worse != 1,
        **more,
    }


def scored(group: int, better: int, worse: int) -> dict[str, Any]:
    both = {"chosen_score": SCORES[group][better], "rejected_score": SCORES[group][worse]}
    return pair(group, better, worse, **both)


def single(group: int, best: int) -> dict[str, Any]:
    return {
        "prompt": f"p{group}",
        "response": f" r{group}{best}",
        "ended": best != 1,
        "score": SCORES[group][best],
    }


DROPPED = {"equal_groups": 1.0, "unusable_answers": 1.0}
EXPECTED = {
    "online-dpo": [scored(0, 1, 0), scored(2, 2, 0)],
    "inpo": [scored(0, 1, 0), scored(2, 2, 0)],
    "custom": [scored(0, 1, 0), scored(2, 2, 0)],
    "dno-practical": [scored(0, 1, 2), scored(0, 1, 0), scored(0, 2, 0), scored(2, 2, 0)],
    "superhf": [single(0, 1), single(2, 2)],
    "rejection-sampling": [single(0, 1), single(2, 2)],
}


@pytest.mark.parametrize("setup", sorted(EXPECTED))
def test_rows_by_scores_are_those_by_hand(setup):
    found = chosen_rows(online(setup), answers(), 0)
    assert found.rows == EXPECTED[setup]
    assert found.counts == {"rows": float(len(EXPECTED[setup])), **DROPPED}


def test_every_set_up_has_its_rows_here():
    others = {"aligndistil", "cream", "dno", "spin"}
    assert set(EXPECTED) | others == set(ONLINE_SETUPS)


def test_aligndistil_learns_from_every_own_response():
    own = [Answer(g, f"p{g}", f" own {g}", g != 1, 2) for g in (0, 1)]
    empty, shown = Answer(2, "p2", " ", True, 1), Answer(0, "p0", " shown", True, own=False)
    found = chosen_rows(online("aligndistil"), [own[0], shown, own[1], empty], 0)
    assert found.rows == [
        {"prompt": f"p{g}", "response": f" own {g}", "ended": g != 1} for g in (0, 1)
    ]
    assert found.counts == {"rows": 2.0, "equal_groups": 1.0, "unusable_answers": 1.0}


def test_every_response_may_be_learnt_from_with_its_score():
    settings = online("custom", rows="each", loss="weighted-likelihood")
    found = chosen_rows(settings, answers(), 0)
    assert found.rows == [
        single(g, at) for g, at in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 2))
    ]


def test_dno_has_win_rates_as_scores():
    found = chosen_rows(online("dno"), answers(), 0)
    assert [(row["chosen"], row["rejected"]) for row in found.rows] == [
        (row["chosen"], row["rejected"]) for row in EXPECTED["dno-practical"]
    ]
    rates = reference.win_rates([1.0, 3.0, 2.0], [0, 0, 0])
    assert found.rows[1]["chosen_score"] == pytest.approx(rates[1])
    assert found.rows[1]["rejected_score"] == pytest.approx(rates[0])
    both = found.rows[3]
    assert both["chosen_score"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert both["chosen_score"] + both["rejected_score"] == pytest.approx(1.0)


def test_spin_prefers_the_demonstration_to_own_responses():
    own = [Answer(group, f"p{group}", f" own {group}", True, 2) for group in (0, 1, 2)]
    own[2] = replace(own[2], response=" shown 2")  # says what the demonstration says
    shown = [Answer(g, f"p{g}", f" shown {g}", g != 1, own=False) for g in (0, 1, 2)]
    mixed = [one for both in zip(own, shown, strict=True) for one in both]
    found = chosen_rows(online("spin"), mixed, 0)
    assert found.rows == [
        {
            "prompt": f"p{group}",
            "chosen": f" shown {group}",
            "rejected": f" own {group}",
            "chosen_ended": group != 1,
            "rejected_ended": True,
        }
        for group in (0, 1)
    ]
    assert found.counts == {"rows": 2.0, "equal_groups": 1.0, "unusable_answers": 0.0}


OWN = ((1.0, 3.0, 2.0, 0.0), (4.0, 1.0, 3.0, 2.0))
EARLIER = ((1.0, 2.0, 3.0, 0.0), (2.0, 1.0, 5.0, 0.5))


def judged(earlier=EARLIER) -> list[Answer]:
    return [
        Answer(group, f"p{group}", f" r{group}{at}", True, 3, own_score=own, earlier_score=before)
        for group, (some, others) in enumerate(zip(OWN, earlier, strict=True))
        for at, (own, before) in enumerate(zip(some, others, strict=True))
    ]


@pytest.mark.parametrize("agreement", ["kendall", "spearman", "top-order"])
def test_cream_has_the_consistency_of_two_rankings_as_label(agreement):
    each = [
        reference.consistency(list(own), list(before), agreement)
        for own, before in zip(OWN, EARLIER, strict=True)
    ]
    average = chosen_rows(online("cream", agreement=agreement), judged(), 0)
    dynamic = chosen_rows(
        online("cream", agreement=agreement, consistency="per-prompt"), judged(), 0
    )
    best_and_worst = [(row["chosen"], row["rejected"]) for row in average.rows]
    assert best_and_worst == [(" r01", " r03"), (" r10", " r11")]
    assert [row["soft_label"] for row in dynamic.rows] == pytest.approx(each)
    assert [row["soft_label"] for row in average.rows] == pytest.approx([sum(each) / 2] * 2)
    assert average.counts["consistency"] == pytest.approx(sum(each) / 2)
    assert dynamic.counts["consistency"] == pytest.approx(sum(each) / 2)


def test_without_a_policy_before_its_ranking_is_trusted():
    found = chosen_rows(online("cream"), judged(((None,) * 4,) * 2), 0)
    assert [row["soft_label"] for row in found.rows] == [1.0, 1.0]


def test_lists_go_from_the_best_to_the_worst():
    found = chosen_rows(online("custom", rows="list", loss="pro"), answers(), 0)
    assert found.rows == [
        {
            "prompt": "p0",
            "responses": [" r01", " r02", " r00"],
            "scores": [3.0, 2.0, 1.0],
            "ended": [False, True, True],
        },
        {
            "prompt": "p2",
            "responses": [" r22", " r20"],
            "scores": [2.0, 0.0],
            "ended": [True, True],
        },
    ]
    assert found.counts == {"rows": 2.0, **DROPPED}


def test_close_scores_are_left_out():
    found = chosen_rows(online("dno-practical", least_gap=2.0), answers(), 0)
    assert found.rows == [scored(0, 1, 0), scored(2, 2, 0)]


def test_another_of_the_others_follows_from_seed_and_round():
    drawn = [
        chosen_rows(
            online("custom", rows="best-random", seed=seed), answers([(0.0, 1.0, 2.0)] * 20), number
        ).rows
        for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != drawn[3]


def test_judges_let_the_best_of_those_that_pass_win_over_the_worst_that_fails():
    said = ((False, True, True), (True, True, True), (False, False, False))
    scores = ((9.0, 1.0, 2.0), (1.0, 3.0, 2.0), (3.0, 2.0, 1.0))
    some = [replace(one, passed=said[one.group][at % 3]) for at, one in enumerate(answers(scores))]
    found = chosen_rows(online(judges=["my:judge"]), some, 0)
    assert [(row["chosen"], row["rejected"]) for row in found.rows] == [
        (" r02", " r00"),
        (" r11", " r10"),
    ]
    assert found.counts["equal_groups"] == 1.0  # the prompt without an answer that passes
    best = chosen_rows(online("rejection-sampling", judges=["my:judge"]), some, 0)
    assert [row["response"] for row in best.rows] == [" r02", " r11"]


def test_empty_answers_and_equal_texts_say_nothing():
    some = [
        Answer(0, "p", "  ", True, 1, score=9.0),
        Answer(0, "p", " a", True, 1, score=1.0),
        Answer(0, "p", " a", True, 1, score=0.5),
    ]
    found = chosen_rows(online(), some, 0)
    assert found.rows == []
    assert found.counts == {"rows": 0.0, "equal_groups": 1.0, "unusable_answers": 1.0}
    assert chosen_rows(online("rejection-sampling"), [], 0).rows == []


def test_the_order_of_prompts_changes_no_pair():
    some = answers()
    order = torch.tensor([2, 0, 1]).tolist()
    moved = [one for group in order for one in some if one.group == group]
    rows = {str(row) for row in chosen_rows(online("dno-practical"), moved, 0).rows}
    assert rows == {str(row) for row in EXPECTED["dno-practical"]}
