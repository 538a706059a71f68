import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import calibration
from reference import reward_losses as reference

from tokencredit.errors import DataError, ShapeError
from tokencredit.evaluation.prefix_accuracy import (
    FRACTIONS,
    label_accuracy_by_fraction,
    pair_accuracy_by_fraction,
    rating_accuracy_by_fraction,
    scores_at_fractions,
)


def test_fractions_of_five_tokens_are_whole_tokens():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert scores_at_fractions(scores, scores > 0).tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]


def test_a_fraction_of_whole_tokens_is_not_rounded_up():
    """0.55 * 100 is a little more than 55 in floating point."""
    scores = torch.arange(1.0, 101.0)[None]
    assert scores_at_fractions(scores, scores > 0, fractions=(0.55,)).tolist() == [[55.0]]


def test_one_token_is_seen_at_every_fraction():
    scores = torch.tensor([[7.0, math.nan]])
    mask = torch.tensor([[True, False]])
    assert scores_at_fractions(scores, mask).tolist() == [[7.0] * 5]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_against_the_reference(lengths, side):
    width = max(lengths)
    columns, sizes = torch.arange(width), torch.tensor(lengths)[:, None]
    mask = columns < sizes if side == "right" else columns >= width - sizes
    scores = torch.randn(len(lengths), width).masked_fill(~mask, math.nan)
    expected = [
        [reference.score_at_fraction(row[here].tolist(), tenths) for tenths in (2, 4, 6, 8, 10)]
        for row, here in zip(scores, mask, strict=True)
    ]
    torch.testing.assert_close(scores_at_fractions(scores, mask), torch.tensor(expected))


def test_tokens_that_do_not_count_are_not_seen():
    """A tool's answer in the middle is no part of the fraction: the mask equals deletion."""
    scores = torch.tensor([[1.0, 50.0, 60.0, 2.0]])
    mask = torch.tensor([[True, False, False, True]])
    assert scores_at_fractions(scores, mask).tolist() == [[1.0, 1.0, 2.0, 2.0, 2.0]]


def test_a_response_without_tokens_has_no_score():
    mask = torch.tensor([[True], [False]])
    with pytest.raises(DataError, match="response 1 has no tokens"):
        scores_at_fractions(torch.zeros(2, 1), mask)


def test_pairs():
    """Right, wrong, tied: half of the pairs by the end, and one more at the beginning."""
    chosen = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    rows = pair_accuracy_by_fraction(chosen, torch.zeros(3, 2), fractions=(0.5, 1.0))
    assert rows == [
        {"fraction": 0.5, "accuracy": pytest.approx(2.5 / 3), "count": 3},
        {"fraction": 1.0, "accuracy": pytest.approx(1.5 / 3), "count": 3},
    ]


def test_labels():
    scores = torch.tensor([[2.0] * 5, [-2.0] * 5, [2.0, -2.0, 2.0, -2.0, 2.0]])
    rows = label_accuracy_by_fraction(scores, torch.tensor([1, 0, 0]))
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == pytest.approx([2 / 3, 1.0, 2 / 3, 1.0, 2 / 3])
    assert [row["fraction"] for row in rows] == list(FRACTIONS)


def test_swapped_pairs_are_wrong_where_they_were_right():
    chosen, rejected = torch.randn(2, 9, 5)
    forwards = pair_accuracy_by_fraction(chosen, rejected)
    backwards = pair_accuracy_by_fraction(rejected, chosen)
    for there, back in zip(forwards, backwards, strict=True):
        assert there["accuracy"] + back["accuracy"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "rows",
    [lambda s: pair_accuracy_by_fraction(s, s), lambda s: label_accuracy_by_fraction(s, s[:, 0])],
)
def test_bad_shapes(rows):
    with pytest.raises(ShapeError, match="3 columns of scores for 5 fractions"):
        rows(torch.zeros(2, 3))
    with pytest.raises(DataError, match="no responses to score"):
        rows(torch.zeros(0, 5))


@given(st.integers(0, 10**6))
def test_the_order_of_ratings_against_the_reference(seed):
    torch.manual_seed(seed)
    scores, ratings = torch.randint(0, 4, (9, 2)).float(), torch.randint(0, 3, (9,))
    ratings[:2] = torch.tensor([0, 2])
    rows = rating_accuracy_by_fraction(scores, ratings, fractions=(0.5, 1.0))
    for column, row in enumerate(rows):
        expected = calibration.concordance(scores[:, column].tolist(), ratings.tolist())
        assert row["accuracy"] == pytest.approx(expected)
        assert row["count"] == 9


def test_two_ratings_are_ordered_as_labels_are_told_apart():
    """With a good and a bad one it is the area under the ROC curve, here 3 of 4 pairs."""
    scores = torch.tensor([[0.9], [0.4], [0.5], [0.1]])
    (row,) = rating_accuracy_by_fraction(scores, torch.tensor([1, 1, 0, 0]), fractions=(1.0,))
    assert row["accuracy"] == 0.75


def test_ratings_that_are_all_alike_have_no_order():
    with pytest.raises(DataError, match="all of them rated alike"):
        rating_accuracy_by_fraction(torch.zeros(3, 1), torch.ones(3), fractions=(1.0,))
    with pytest.raises(ShapeError, match="1 columns of scores for 5 fractions"):
        rating_accuracy_by_fraction(torch.zeros(3, 1), torch.arange(3))
