import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import credit as reference

from tokencredit.credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
    quoted_credit,
    terminal_credit,
    uniform_credit,
)
from tokencredit.errors import ConfigError, NumericError, ShapeError

seeds = st.integers(0, 10**6)


def random_mask(batch: int, time: int) -> torch.Tensor:
    return torch.rand(batch, time) < 0.7


def test_uniform_literal():
    mask = torch.tensor([[True, True, False, True], [False] * 4])
    token_scores = uniform_credit(torch.tensor([6.0, 5.0]), mask)
    assert token_scores.tolist() == [[2, 2, 0, 2], [0, 0, 0, 0]]


def test_attention_literal():
    weights = torch.tensor([[1.0, 3.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    token_scores = attention_credit(torch.tensor([10.0]), weights, mask, credit_beta=0.8)
    torch.testing.assert_close(token_scores, torch.tensor([[1.0, 3.0, 6.0, 0.0]]))


def test_attention_received_literals():
    attention = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.3, 0.1, 0.6]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(
        mean_attention_received(attention, mask), torch.tensor([[0.6, 0.3, 0.6]])
    )
    torch.testing.assert_close(
        last_attention_received(attention, mask), torch.tensor([[0.3, 0.1, 0.6]])
    )


def test_attention_lands_on_the_token_that_received_it():
    """Everybody looks at token 1: it gets the weight, not token 2 as in the published code."""
    attention = torch.zeros(1, 4, 4)
    attention[0, 1:, 1] = 1.0
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert mean_attention_received(attention, mask).tolist() == [[0, 1, 0, 0]]
    assert last_attention_received(attention, mask).tolist() == [[0, 1, 0, 0]]


@given(seeds)
def test_uniform_against_the_reference(seed):
    torch.manual_seed(seed)
    scores, mask = torch.randn(3, dtype=torch.float64), random_mask(3, 5)
    expected = [
        reference.uniform(score, row)
        for score, row in zip(scores.tolist(), mask.tolist(), strict=True)
    ]
    torch.testing.assert_close(uniform_credit(scores, mask), torch.tensor(expected))


@given(seeds, st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_attention_against_the_reference(seed, credit_beta):
    torch.manual_seed(seed)
    scores, mask = torch.randn(3, dtype=torch.float64), random_mask(3, 5)
    weights = torch.rand(3, 5, dtype=torch.float64)
    weights[0] = 0.0
    expected = [
        reference.attention(*row, credit_beta)
        for row in zip(scores.tolist(), weights.tolist(), mask.tolist(), strict=True)
    ]
    token_scores = attention_credit(scores, weights, mask, credit_beta=credit_beta)
    torch.testing.assert_close(token_scores, torch.tensor(expected))


@given(seeds)
@pytest.mark.parametrize("name", ["mean_attention_received", "last_attention_received"])
def test_attention_received_against_the_reference(name, seed):
    torch.manual_seed(seed)
    attention, mask = torch.rand(3, 5, 5, dtype=torch.float64), random_mask(3, 5)
    expected = [
        getattr(reference, name)(*row)
        for row in zip(attention.tolist(), mask.tolist(), strict=True)
    ]
    actual = {
        "mean_attention_received": mean_attention_received,
        "last_attention_received": last_attention_received,
    }[name](attention, mask)
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_reductions():
    scores, mask = torch.randn(4), random_mask(4, 6)
    weights = torch.rand(4, 6)
    uniform, terminal = uniform_credit(scores, mask), terminal_credit(scores, mask)
    torch.testing.assert_close(attention_credit(scores, torch.ones(4, 6), mask), uniform)
    torch.testing.assert_close(attention_credit(scores, torch.zeros(4, 6), mask), uniform)
    torch.testing.assert_close(attention_credit(scores, weights, mask, credit_beta=0.0), terminal)
    torch.testing.assert_close(attention_credit(scores, terminal.abs(), mask), terminal)
    half = attention_credit(scores, weights, mask, credit_beta=0.5)
    whole = attention_credit(scores, weights, mask)
    torch.testing.assert_close(half, (whole + terminal) / 2)


@pytest.mark.parametrize("scale", [1e-44, 1e-39, 1e-20, 1.0, 1e30])
def test_the_scale_of_the_weights_never_costs_a_part_of_the_score(scale):
    weights = torch.tensor([[1.0, 2.0, 5.0]]) * scale
    token_scores = attention_credit(torch.tensor([8.0]), weights, torch.ones(1, 3).bool())
    assert token_scores.sum().item() == pytest.approx(8.0, rel=1e-6)


def test_gradient_is_the_share():
    scores = torch.tensor([2.0], requires_grad=True)
    weights, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(attention_credit(scores, weights, mask)[0, 1], scores)
    assert gradient.item() == 0.75
    (gradient,) = torch.autograd.grad(uniform_credit(scores, mask)[0, 1], scores)
    assert gradient.item() == 0.5


@pytest.mark.parametrize("function", [mean_attention_received, last_attention_received])
def test_gradient_of_the_weights(function):
    attention = torch.rand(2, 3, 3, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    function(attention, mask).sum().backward()
    step = 1e-2
    for place in [(0, 2, 1), (0, 0, 2), (1, 1, 0), (1, 2, 0)]:
        moved = attention.detach().clone()
        moved[place] += step
        slope = (function(moved, mask) - function(attention.detach(), mask)).sum().item() / step
        assert attention.grad[place].item() == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("credit_beta", [-0.1, 1.1, math.nan])
def test_credit_beta_is_a_share(credit_beta):
    ones = torch.ones(1, 2)
    with pytest.raises(ConfigError, match=r"credit_beta is .*from 0 to 1"):
        attention_credit(torch.ones(1), ones, ones.bool(), credit_beta=credit_beta)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_are_finite_and_not_negative(weight):
    weights = torch.tensor([[1.0, weight]])
    with pytest.raises(NumericError, match="credit_weights"):
        attention_credit(torch.ones(1), weights, torch.tensor([[True, True]]))
    fine = attention_credit(torch.ones(1), weights, torch.tensor([[True, False]]))
    assert fine.tolist() == [[1.0, 0.0]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("time", [1, 2, 4])
def test_weights_of_another_length_are_not_realigned(time):
    with pytest.raises(ShapeError, match="align"):
        attention_credit(torch.ones(2), torch.ones(2, time), torch.ones(2, 3).bool())


@pytest.mark.usefixtures("unchecked")
def test_one_score_for_several_responses_is_not_broadcast():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ShapeError, match="one score per response"):
        uniform_credit(torch.ones(1), mask)
    with pytest.raises(ShapeError, match="one score per response"):
        attention_credit(torch.ones(1), torch.ones(2, 3), mask)


def test_quoted_literal():
    quoted, mask = torch.tensor([[0.0, 2.0, -1.0, 9.0]]), torch.tensor([[True, True, True, False]])
    even = quoted_credit(torch.tensor([4.0]), quoted, mask)
    assert even.tolist() == [[1.0, 3.0, 0.0, 0.0]]
    assert quoted_credit(torch.tensor([4.0]), quoted, mask, rest="end").tolist() == [[0, 2, 2, 0]]


@given(seeds, st.sampled_from(["even", "end"]))
def test_quoted_against_the_reference(seed, rest):
    torch.manual_seed(seed)
    mask, scores, quoted = random_mask(3, 6), torch.randn(3), torch.randn(3, 6)
    found = quoted_credit(scores, quoted, mask, rest=rest)
    for row in range(3):
        expected = reference.quoted(
            scores[row].item(), quoted[row].tolist(), mask[row].tolist(), rest
        )
        assert found[row].tolist() == pytest.approx(expected, abs=1e-5)


def test_without_quotes_it_is_uniform_or_terminal():
    scores, mask = torch.tensor([3.0, -1.0]), random_mask(2, 5)
    nothing = torch.zeros(2, 5)
    for rest, plain in (("even", uniform_credit), ("end", terminal_credit)):
        assert torch.equal(quoted_credit(scores, nothing, mask, rest=rest), plain(scores, mask))


@pytest.mark.usefixtures("unchecked")
def test_quoted_scores_that_cannot_be():
    scores, mask = torch.tensor([3.0]), torch.tensor([[True, False]])
    with pytest.raises(ConfigError, match="expected 'even' or 'end'"):
        quoted_credit(scores, torch.zeros(1, 2), mask, rest="start")
    with pytest.raises(ShapeError, match="one score per response token"):
        quoted_credit(scores, torch.zeros(1, 3), mask)
    with pytest.raises(NumericError, match="NaN"):
        quoted_credit(scores, torch.tensor([[math.nan, 0.0]]), mask)
