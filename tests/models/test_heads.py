import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import DataError, ModelError
from tokencredit.models.heads import at_last_token, last_positions, scalar_scores


def test_one_label_is_the_score():
    assert scalar_scores(torch.tensor([[[1.5], [-2.0]]])).tolist() == [[1.5, -2.0]]


def test_two_labels_are_the_log_odds_of_the_second():
    logits = torch.tensor([[1.0, 4.0], [2.0, -1.0]])
    scores = scalar_scores(logits)
    assert scores.tolist() == [3.0, -3.0]
    torch.testing.assert_close(scores.sigmoid(), logits.softmax(-1)[:, 1])


def test_scores_are_float32_and_subtracted_as_such():
    scores = scalar_scores(torch.tensor([[256.0, 257.0], [256.0, 1.0]]).bfloat16())
    assert scores.dtype == torch.float32
    assert scores.tolist() == [0.0, -255.0]


def test_gradients_flow():
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    scalar_scores(logits).sum().backward()
    assert logits.grad.tolist() == [[-1.0, 1.0]] * 3


@pytest.mark.parametrize("labels", [0, 3])
def test_other_numbers_of_labels(labels):
    with pytest.raises(ModelError, match=f"has {labels} outputs"):
        scalar_scores(torch.zeros(2, labels))


def test_last_positions_on_either_side_and_with_holes():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]]).bool()
    assert last_positions(mask).tolist() == [1, 3, 2]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_last_positions_equal_the_loop(rows):
    mask = torch.tensor(rows)
    if all(any(row) for row in rows):
        assert last_positions(mask).tolist() == [max(i for i in range(5) if row[i]) for row in rows]
    else:
        with pytest.raises(DataError):
            last_positions(mask)


def test_at_last_token_ignores_what_lies_under_the_mask():
    values = torch.tensor([[1.0, 2.0, float("nan")], [float("nan"), 4.0, 5.0]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert at_last_token(values, mask).tolist() == [2.0, 5.0]
    assert at_last_token(values[..., None], mask).tolist() == [[2.0], [5.0]]


def test_a_row_without_tokens():
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(DataError, match=r"rows \[1\] have no real token"):
        last_positions(mask)
    with pytest.raises(DataError, match=r"rows \[1\]"):
        at_last_token(torch.zeros(2, 2), mask)
