import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import faithfulness as reference

from tokencredit.errors import NumericError
from tokencredit.evaluation.spans import (
    as_many_as_marked,
    highest_tokens,
    span_iou,
    token_f1,
)

OVERLAPS = [(span_iou, reference.iou), (token_f1, reference.f1)]


def random_documents(seed):
    """Scores with many ties, predictions, labels and a mask with holes."""
    torch.manual_seed(seed)
    scores = torch.randint(-3, 4, (5, 9)).float()
    predicted, labels, mask = torch.rand(3, 5, 9) < torch.tensor([0.3, 0.3, 0.7])[:, None, None]
    return scores, predicted, labels, mask


def test_literals():
    predicted = torch.tensor([[True, True, True, False, True], [False] * 5])
    labels = torch.tensor([[True, False, True, True, True], [False, True, False, False, False]])
    mask = torch.tensor([[True] * 4 + [False], [True] * 5])
    assert span_iou(predicted, labels, mask).tolist() == [0.5, 0.0]
    torch.testing.assert_close(token_f1(predicted, labels, mask), torch.tensor([2 / 3, 0.0]))
    scores = torch.tensor([[0.5, -3.0, 2.0, 0.5, 9.0]]).expand(2, 5)
    taken = as_many_as_marked(scores, labels, mask).tolist()
    assert taken == [[True, False, True, True, False], [False, False, False, False, True]]
    counts = torch.tensor([2, 0])
    low = highest_tokens(scores, mask, counts, direction="low").tolist()
    assert low == [[True, True, False, False, False], [False] * 5]
    far = highest_tokens(scores, mask, counts, direction="magnitude").tolist()
    assert far == [[False, True, True, False, False], [False] * 5]


@given(seed=st.integers(0, 10**6))
def test_against_the_reference(seed):
    scores, predicted, labels, mask = random_documents(seed)
    for function, expected in OVERLAPS:
        wanted = [
            expected(p[m].tolist(), y[m].tolist())
            for p, y, m in zip(predicted, labels, mask, strict=True)
        ]
        found = function(predicted, labels, mask)
        torch.testing.assert_close(found, torch.tensor(wanted), equal_nan=True)
    counts = torch.randint(0, 5, (5,)).minimum(mask.sum(-1))
    taken = highest_tokens(scores, mask, counts)
    for row in range(5):
        expected_tokens = reference.highest(scores[row, mask[row]].tolist(), counts[row].item())
        assert taken[row, mask[row]].nonzero().flatten().tolist() == sorted(expected_tokens)


@given(seed=st.integers(0, 10**4))
def test_as_many_are_taken_as_are_marked(seed):
    scores, _, labels, mask = random_documents(seed)
    taken = as_many_as_marked(scores, labels, mask)
    assert not (taken & ~mask).any()
    assert torch.equal(taken.sum(-1), (labels & mask).sum(-1))
    perfect = as_many_as_marked(labels.float(), labels, mask)
    assert torch.equal(perfect, labels & mask)
    assert torch.equal(
        as_many_as_marked(-labels.float(), labels, mask, direction="low"), labels & mask
    )


def test_no_more_are_taken_than_there_are():
    scores, _, _, mask = random_documents(1)
    assert torch.equal(highest_tokens(scores, mask, torch.full((5,), 20)), mask)


def test_iou_and_f1_say_the_same_in_other_words():
    _, predicted, labels, mask = random_documents(2)
    iou, f1 = span_iou(predicted, labels, mask), token_f1(predicted, labels, mask)
    torch.testing.assert_close(f1, 2 * iou / (1 + iou), equal_nan=True)


def test_what_lies_off_the_mask_changes_nothing():
    scores, predicted, labels, mask = random_documents(3)
    taken = as_many_as_marked(scores, labels, mask)
    dirty = scores.masked_fill(~mask, math.nan)
    assert torch.equal(as_many_as_marked(dirty, labels | ~mask, mask), taken)
    pad = torch.nn.functional.pad
    wide = as_many_as_marked(pad(scores, (2, 1)), pad(labels, (2, 1)), pad(mask, (2, 1)))
    assert torch.equal(wide, pad(taken, (2, 1)))
    for function, _ in OVERLAPS:
        expected = function(predicted, labels, mask)
        same = function(predicted | ~mask, labels & mask, mask)
        torch.testing.assert_close(same, expected, equal_nan=True)
        rows = [function(predicted[i][None], labels[i][None], mask[i][None]) for i in range(5)]
        torch.testing.assert_close(torch.cat(rows), expected, equal_nan=True)


def test_overlap_of_nothing_with_nothing_is_not_defined():
    none, some = torch.zeros(1, 3).bool(), torch.tensor([[True, False, False]])
    for function, _ in OVERLAPS:
        assert function(none, none, ~none).isnan().all()
        assert function(some, some, ~some).isnan().all()
        assert function(none, some, ~none).tolist() == [0.0]
        assert function(some, none, ~none).tolist() == [0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_raise(bad):
    scores, _, labels, mask = random_documents(4)
    scores[1, mask[1].nonzero()[0]] = bad
    with pytest.raises(NumericError, match=r"rows \[1\] hold a NaN or infinite score"):
        as_many_as_marked(scores, labels, mask)
    with pytest.raises(NumericError, match=r"rows \[1\] hold a NaN or infinite score"):
        highest_tokens(scores, mask, labels.sum(-1))
