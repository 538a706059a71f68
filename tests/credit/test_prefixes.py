import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import credit as reference

from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import ShapeError


def test_literal():
    prefix_scores = torch.tensor([[0.5, 2.0, 1.0, 9.0], [4.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    token_scores = prefix_difference_credit(prefix_scores, mask)
    assert token_scores.tolist() == [[1.5, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_row_without_response_is_zero_whatever_its_prompt_scores():
    prefix_scores = torch.tensor([[math.nan, math.inf]])
    assert prefix_difference_credit(prefix_scores, torch.tensor([[False]])).tolist() == [[0.0]]


def test_what_an_unchosen_token_changed_goes_to_the_next_chosen_one():
    """A tool's answer lifts the score from 1 to 5; the token after it, to 6, gets both."""
    prefix_scores = torch.tensor([[0.0, 1.0, 5.0, 6.0]])
    mask = torch.tensor([[True, False, True]])
    assert prefix_difference_credit(prefix_scores, mask).tolist() == [[1.0, 0.0, 5.0]]


@given(st.integers(0, 10**6))
def test_against_the_reference(seed):
    torch.manual_seed(seed)
    prefix_scores, mask = torch.randn(4, 7, dtype=torch.float64), torch.rand(4, 6) < 0.6
    expected = [
        reference.prefix_differences(*row)
        for row in zip(prefix_scores.tolist(), mask.tolist(), strict=True)
    ]
    token_scores = prefix_difference_credit(prefix_scores, mask)
    torch.testing.assert_close(token_scores, torch.tensor(expected))


def test_every_partial_sum_telescopes():
    prefix_scores = torch.randn(3, 6)
    token_scores = prefix_difference_credit(prefix_scores, torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(token_scores.cumsum(-1), prefix_scores[:, 1:] - prefix_scores[:, :1])


def test_a_score_that_stays_at_the_prompts_until_the_end_is_terminal():
    scores, mask = torch.tensor([2.0, -1.0]), torch.tensor([[True] * 4, [True, True, False, False]])
    prefix_scores = torch.zeros(2, 5)
    prefix_scores[0, 4], prefix_scores[1, 2] = scores
    torch.testing.assert_close(
        prefix_difference_credit(prefix_scores, mask), terminal_credit(scores, mask)
    )


def test_gradient_takes_from_the_prefix_before_and_gives_to_the_one_with_the_token():
    prefix_scores = torch.randn(1, 4, requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    prefix_difference_credit(prefix_scores, mask)[0, 2].backward()
    assert prefix_scores.grad.tolist() == [[0.0, -1.0, 0.0, 1.0]]


def test_no_columns():
    empty = torch.zeros(2, 0, dtype=torch.bool)
    assert prefix_difference_credit(torch.ones(2, 1), empty).shape == (2, 0)


@pytest.mark.parametrize("columns", [3, 5])
def test_there_is_one_more_prefix_than_tokens(columns):
    with pytest.raises(ShapeError, match=rf"{columns} prefix scores for 3 tokens"):
        prefix_difference_credit(torch.zeros(2, columns), torch.ones(2, 3, dtype=torch.bool))
