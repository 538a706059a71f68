"""Questions with known answers, and rewards for judges that learn to give them."""

from collections import Counter

import pytest

from tokencredit.errors import ConfigError, DataError
from tokencredit.judge.lessons import (
    choice_correctness,
    pair_lessons,
    rollout_lessons,
    strength_correctness,
    written_verdict,
)
from tokencredit.judge.setups import JUDGE_SETUPS

SINGLE, DOUBLE = JUDGE_SETUPS["rlbff"], JUDGE_SETUPS["rm-r1"]


def asked(right, **settings):
    texts = [f"answer {at}" for at in range(len(right))]
    (lesson,) = rollout_lessons(SINGLE, DOUBLE, "1+1?", texts, right, principle="true", **settings)
    return lesson


def test_a_pair_is_asked_in_both_orders_with_opposite_answers():
    first, second = pair_lessons(DOUBLE, ["Q"], ["good"], ["bad"], strengths=[3.0])
    assert (first.correct, second.correct) == (3.0, -3.0)
    shown = [one.question.messages[0]["content"] for one in (first, second)]
    assert shown[0].index("good") < shown[0].index("bad")
    assert shown[1].index("bad") < shown[1].index("good")


def test_each_response_of_a_pair_is_asked_about_by_itself():
    first, second = pair_lessons(SINGLE, ["Q"], ["good"], ["bad"], principle="true")
    shown = [one.question.messages[0]["content"] for one in (first, second)]
    assert ("good" in shown[0], "bad" in shown[0]) == (True, False)
    assert ("good" in shown[1], "bad" in shown[1]) == (False, True)
    assert (first.correct, second.correct) == (1.0, -1.0)
    with pytest.raises(ConfigError, match="rates all responses"):
        pair_lessons(JUDGE_SETUPS["rewardanything"], ["Q"], ["a"], ["b"], principle="true")


@pytest.mark.parametrize("right", [[True, True], [False, False]])
def test_of_rollouts_that_are_all_alike_one_is_judged(right):
    lesson = asked(right, seed=0)
    assert lesson.shown == 1
    assert lesson.correct == (1.0 if right[0] else -1.0)


def test_of_mixed_rollouts_a_share_is_judged_alone_and_the_right_one_stands_anywhere():
    found = [asked([True, False, False], seed=seed) for seed in range(400)]
    single = [one for one in found if one.shown == 1]
    assert 0.2 < len(single) / 400 < 0.4
    places = Counter(one.correct for one in found if one.shown == 2)
    assert min(places.values()) > 100
    for lesson in found:
        text = lesson.question.messages[0]["content"]
        if lesson.shown == 1:
            assert ("answer 0" in text) == (lesson.correct > 0)
        else:
            at = [text.index(one) for one in ("answer 0", "answer 1", "answer 2") if one in text]
            assert (at[0] < at[1]) == (lesson.correct > 0)


def test_the_same_rows_draw_the_same():
    assert asked([True, False], seed=5) == asked([True, False], seed=5)
    assert rollout_lessons(SINGLE, DOUBLE, "Q", [], [], seed=0) == []
    with pytest.raises(DataError, match="expected as many"):
        rollout_lessons(SINGLE, DOUBLE, "Q", ["a"], [], seed=0)
    with pytest.raises(ConfigError, match="compares two"):
        rollout_lessons(DOUBLE, SINGLE, "Q", ["a"], [True], seed=0)


def test_a_choice_is_right_or_not_and_what_cannot_be_read_is_not():
    texts = {"[[A]]": 1.0, "[[B]]": -1.0, "A": -1.0, "[[A]] or [[B]]": -1.0, "": -1.0}
    assert {text: choice_correctness(DOUBLE, text, 2.0) for text in texts} == texts
    assert choice_correctness(DOUBLE, "[[B]]", -1.0) == 1.0


def test_a_strength_has_points_for_form_number_and_sign():
    think = JUDGE_SETUPS["think-rm"]
    points = {"2": 2.0, "1": 1.5, "-2": 1.0, "0": 1.0, "9": 0.0, "two": 0.0}
    found = {n: strength_correctness(think, f"<answer>{n}</answer>", 2.0) for n in points}
    assert found == points


def test_a_judge_of_one_token_may_write_before_its_last_word():
    assert written_verdict(SINGLE, "Well. Yes.").score == 1.0
    assert written_verdict(SINGLE, "Yes and no, hard to say").readable is False
    assert written_verdict(SINGLE, "").readable is False
