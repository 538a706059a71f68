import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import credit as reference

from tokencredit.credit.redistribution import score_column, terminal_credit
from tokencredit.errors import ShapeError


def test_literal():
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    token_scores = terminal_credit(torch.tensor([2.0, 5.0, -1.0]), mask)
    assert token_scores.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, -1]]


@given(st.integers(0, 10**6))
def test_against_the_reference(seed):
    torch.manual_seed(seed)
    scores, mask = torch.randn(4, dtype=torch.float64), torch.rand(4, 5) < 0.6
    expected = [
        reference.terminal(score, row)
        for score, row in zip(scores.tolist(), mask.tolist(), strict=True)
    ]
    torch.testing.assert_close(terminal_credit(scores, mask), torch.tensor(expected))


def test_the_reward_stands_on_the_end_of_sequence_not_behind_it():
    """The position of the reward is the last True of the mask, whatever is padded behind it."""
    mask = torch.tensor([[True, True, True, False, False]])
    assert terminal_credit(torch.ones(1), mask).nonzero().tolist() == [[0, 2]]


def test_gradient_is_that_of_a_copy():
    scores = torch.tensor([2.0, 3.0], requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    terminal_credit(scores, mask).sum().backward()
    assert scores.grad.tolist() == [1.0, 0.0]


def test_no_columns():
    assert terminal_credit(torch.ones(2), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [terminal_credit, score_column])
def test_one_score_for_several_responses_is_not_broadcast(function):
    with pytest.raises(ShapeError, match=r"\(1,\).*\(2, 3\).*one score per response"):
        function(torch.ones(1), torch.ones(2, 3, dtype=torch.bool))
