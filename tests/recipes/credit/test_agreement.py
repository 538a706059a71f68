from math import isnan

import pytest
import torch
from reference import agreement as reference

from tokencredit.errors import DataError
from tokencredit.evaluation.agreement import token_auroc
from tokencredit.preference.marked_texts import MarkedText, marks_of_annotators
from tokencredit.recipes.credit.agreement import (
    agreement_row,
    directed,
    people_row,
    surface_baselines,
    untied,
    weight_baselines,
)

GOOD = MarkedText("", "a very good film", (((2, 11),), ((7, 11),), ((0, 1), (7, 16))), 1)
BAD = MarkedText("", "no , it is bad", (((11, 14),), ((0, 2), (11, 14))), 0)
TEXTS = [GOOD, BAD]
SCORES = [[0.0, 1.0, 3.0, 2.0], [-1.0, 0.0, 0.5, 0.0, -2.0]]


def test_scores_are_turned_towards_the_marks():
    assert directed(SCORES, TEXTS, "label") == [SCORES[0], [1.0, 0.0, -0.5, 0.0, 2.0]]
    assert directed(SCORES, TEXTS, "high") == SCORES
    assert directed(SCORES, TEXTS, "low")[1] == [1.0, 0.0, -0.5, 0.0, 2.0]
    assert directed(SCORES, TEXTS, "magnitude")[1] == [1.0, 0.0, 0.5, 0.0, 2.0]


def test_labels_are_asked_for():
    with pytest.raises(DataError, match="has no label"):
        directed([[1.0]], [MarkedText("", "a", ((),))], "label")


def test_a_row_by_hand():
    row = agreement_row("mine", "credit", directed(SCORES, TEXTS, "label"), TEXTS)
    # Marked by half: "good"; "no" and "bad".
    assert row["auroc"] == pytest.approx((1.0 + 1.0) / 2)
    assert row["token_f1"] == row["span_iou"] == row["average_precision"] == pytest.approx(1.0)
    assert row["auroc_low"] == row["auroc_high"] == pytest.approx(1.0)
    assert row["documents"] == 2
    each = [
        [reference.auroc(scores, marks) for marks in marks_of_annotators(text)]
        for text, scores in zip(TEXTS, directed(SCORES, TEXTS, "label"), strict=True)
    ]
    expected = sum(sum(row) / len(row) for row in each) / 2
    assert row["auroc_annotator"] == pytest.approx(expected)
    assert expected < 1


def test_a_single_annotator_has_no_column_of_their_own():
    texts = [MarkedText("", "a good film", (((2, 6),),), 1)]
    row = agreement_row("mine", "credit", [[0.0, 1.0, 0.5]], texts)
    assert isnan(row["auroc_annotator"])
    assert people_row(texts) is None


def test_texts_with_nothing_to_find_are_left_out():
    nothing = MarkedText("", "one two", ((),), 1)
    row = agreement_row("mine", "credit", [SCORES[0], [5.0, 1.0]], [GOOD, nothing])
    assert row["documents"] == 1
    assert row["auroc"] == 1.0


def test_people_against_each_other():
    row = people_row([GOOD])
    marks = marks_of_annotators(GOOD)
    shares, halves = [], []
    for one in range(3):
        others = [marks[other] for other in range(3) if other != one]
        share = [sum(votes) / 2 for votes in zip(*others, strict=True)]
        shares.append(reference.auroc(share, marks[one]))
        own = [float(mark) for mark in marks[one]]
        halves.append(reference.auroc(own, [part >= 0.5 for part in share]))
    assert row["auroc_annotator"] == pytest.approx(sum(shares) / 3)
    defined = [area for area in halves if not isnan(area)]
    assert row["auroc"] == pytest.approx(sum(defined) / len(defined))
    assert row["kind"] == "people"


def test_people_who_agree_are_perfect():
    row = people_row([MarkedText("", "a good film", (((2, 6),),) * 3)])
    assert row["auroc"] == row["auroc_annotator"] == row["token_f1"] == 1.0


def test_the_random_baseline_is_chance_and_length_is_not():
    texts = [MarkedText("", f"a b longest{i} c d e f g", (((4, 11),),)) for i in range(400)]
    rows = {
        name: agreement_row(name, "baseline", scores, texts)
        for name, scores in surface_baselines(texts, seed=0).items()
    }
    # One word of eight has the area k / 7: the mean of 400 deviates by 0.0164, here three times.
    assert rows["random"]["auroc"] == pytest.approx(0.5, abs=0.05)
    assert rows["random"]["auroc_low"] < 0.5 < rows["random"]["auroc_high"]
    assert rows["word length"]["auroc"] == 1.0
    assert rows["position, late"]["auroc"] + rows["position, early"]["auroc"] == pytest.approx(1)


def test_lexicons_score_words_by_their_plain_form():
    (scores,) = weight_baselines([BAD], {"mine": {"bad": -2.0, "no": -1.0}}).values()
    assert scores == [[-1.0, 0.0, 0.0, 0.0, -2.0]]


def test_ties_are_broken_and_nothing_else():
    texts = [MarkedText("", " ".join("abcdefgh"), (((0, 1),),))]
    (row,) = untied([[1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 1.0]], texts, seed=0)
    assert len(set(row)) == 8
    order = sorted(range(8), key=lambda at: row[at])
    assert {*order[:2]} == {1, 5}
    assert order[-1] == 3
    assert order[2:-1] != sorted(order[2:-1])
    marks = torch.tensor([[False, True, False, True, False, False, False, False]])
    areas = [
        token_auroc(torch.tensor(untied([[0.0] * 8], texts, seed=seed)), marks, marks | True)
        for seed in range(100)
    ]
    assert float(torch.stack(areas).mean()) == pytest.approx(0.5, abs=0.06)
