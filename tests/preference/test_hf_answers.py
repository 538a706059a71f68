"""Pairs, lists and single answers with what was said of them, from rows."""

import json

import pytest

from tokencredit.errors import DataError
from tokencredit.preference.hf_answers import (
    AnswerColumns,
    JudgedAnswers,
    load_answers,
    multi_level_pairs,
)
from tokencredit.preference.hf_rows import LeftOut


def written(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIR = {"prompt": "rate it:", "chosen": " good", "rejected": " bad"}
LIST = {"prompt": "rate it:", "responses": [" good", " bad", " slow"], "scores": [2, 0.5, 1]}
SINGLE = {"prompt": "rate it:", "response": " good", "score": 0.5}


def test_pairs_with_scores_by_any_name_and_answers_that_were_cut_off(tmp_path):
    path = written(
        tmp_path,
        PAIR | {"chosen_score": 2, "rejected_score": 0.5, "rejected_ended": False},
        PAIR | {"score_chosen": 3, "score_rejected": 1},
        PAIR | {"margin": 0.7},
        PAIR | {"best": 5, "worst": 4, "margin": 9},
    )
    first, second, third, fourth = load_answers(path, kind="pairs", scored=True)
    assert first == JudgedAnswers(("rate it:",) * 2, (" good", " bad"), (True, False), (2.0, 0.5))
    assert (second.scores, third.scores, fourth.scores) == ((3.0, 1.0), (0.7, 0.0), (9.0, 0.0))
    named = AnswerColumns(chosen_score="best", rejected_score="worst")
    found = load_answers(path, kind="pairs", scored=True, columns=named, left_out=(out := []))
    assert [row.scores for row in found] == [(5.0, 4.0)]
    assert len(out) == 3
    plain = load_answers(path, kind="pairs", scored=False)
    assert [row.scores for row in plain] == [None] * 4


def test_lists_by_any_name_and_pairs_as_lists(tmp_path):
    path = written(
        tmp_path,
        LIST | {"ended": [True, False, True]},
        {"question": "rate it:", "completions": ["a", "b"], "rewards": [1, 2], "ended": False},
        PAIR | {"margin": 1.0},
    )
    first, second, third = load_answers(path, kind="lists", scored=True)
    assert first.responses == (" good", " bad", " slow")
    assert first.scores == (2.0, 0.5, 1.0)
    assert first.ended == (True, False, True)
    assert (second.prompt, second.scores, second.ended) == ("rate it:", (1.0, 2.0), (False,) * 2)
    assert (third.responses, third.scores) == ((" good", " bad"), (1.0, 0.0))


def test_single_answers(tmp_path):
    chat = [{"role": "user", "content": "rate it"}]
    path = written(tmp_path, SINGLE | {"ended": False}, SINGLE | {"prompt": "again:"})
    first, second = load_answers(path, kind="singles", scored=True)
    assert first == JudgedAnswers(("rate it:",), (" good",), (False,), (0.5,))
    assert second.ended == (True,)
    path = written(tmp_path, SINGLE | {"prompt": chat})
    (row,) = load_answers(path, kind="singles", scored=False)
    assert (row.prompt, row.scores) == (chat, None)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pairs", PAIR, "has no scores; expected columns 'chosen_score' and 'rejected_score'"),
        ("pairs", PAIR | {"rejected": " good", "margin": 1}, "both answers are the same"),
        ("pairs", PAIR | {"margin": "much"}, "expected a number|expected a finite number"),
        ("lists", LIST | {"scores": [1, 2]}, "expected a list of 3 numbers"),
        ("lists", LIST | {"scores": [1, 2, None]}, "answer 2, column 'scores'"),
        ("lists", LIST | {"responses": [" good"]}, "1 answers, 0 of them empty; expected two"),
        ("lists", LIST | {"responses": [" good", " "]}, "2 answers, 1 of them empty"),
        ("lists", LIST | {"responses": [" good", 3]}, "expected a list of texts"),
        ("lists", LIST | {"ended": [True]}, "one of them for each answer"),
        ("lists", {"prompt": "rate it:"}, "no column 'responses'"),
        ("singles", {"prompt": "rate it:", "response": " good"}, "no column 'score'"),
        ("singles", SINGLE | {"response": " "}, "expected text that is not empty"),
    ],
)
def test_bad_rows_are_errors_with_their_place_or_left_out_with_a_count(
    tmp_path, kind, row, message
):
    good = {"pairs": PAIR | {"margin": 1}, "lists": LIST, "singles": SINGLE}[kind]
    path = written(tmp_path, good, row)
    with pytest.raises(DataError, match=message) as error:
        load_answers(path, kind=kind, scored=True)
    assert "row 2" in str(error.value)
    left_out: list[LeftOut] = []
    assert len(load_answers(path, kind=kind, scored=True, left_out=left_out)) == 1
    assert [one.row for one in left_out] == [2]


@pytest.mark.parametrize("label", [1.5, -0.1, None, "yes"])
def test_soft_labels_are_probabilities(tmp_path, label):
    path = written(tmp_path, PAIR | {"soft_label": 0.8}, PAIR | {"soft_label": label})
    with pytest.raises(DataError, match="row 2, column 'soft_label'"):
        load_answers(path, kind="pairs", scored=False, soft_labels=True)
    (row,) = load_answers(path, kind="pairs", scored=False, soft_labels=True, left_out=[])
    assert row.soft_label == 0.8


def test_multi_level_pairs_prefer_an_answer_under_its_own_prompt_and_both_well_answered():
    pairs = [
        JudgedAnswers((ask,) * 2, (good, bad), (True, False))
        for ask, good, bad in (("a?", "A", "x"), ("b?", "B", "y"))
    ]
    made = multi_level_pairs(pairs)
    assert made[:3] == [
        pairs[0],
        JudgedAnswers(("a?", "b?"), ("A", "A"), (True, True)),
        JudgedAnswers(("a?\n\nb?",) * 2, ("A\n\nB", "A\n\ny"), (True, False)),
    ]
    assert len(made) == 6
    assert multi_level_pairs(pairs[:1]) == pairs[:1]  # no other prompt to hold it against
    chat = [{"role": "user", "content": "a?"}]
    talks = [JudgedAnswers((chat,) * 2, ("A", "x"), (True, True)), pairs[1]]
    assert [one.responses for one in multi_level_pairs(talks)] == [
        ("A", "x"),
        ("A", "A"),
        ("B", "y"),
        ("B", "B"),
    ]
