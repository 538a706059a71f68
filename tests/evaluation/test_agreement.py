import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import agreement as reference

from tokencredit.errors import NumericError
from tokencredit.evaluation.agreement import (
    pearson_correlation,
    spearman_correlation,
    token_auroc,
    token_average_precision,
)

LABELLED = [
    (token_auroc, reference.auroc),
    (token_average_precision, reference.average_precision),
]
CORRELATED = [
    (pearson_correlation, reference.pearson),
    (spearman_correlation, reference.spearman),
]


def random_documents(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores with many ties, other scores, labels and a mask with holes."""
    torch.manual_seed(seed)
    scores, truth = torch.randint(-3, 4, (2, 5, 9)).float()
    return scores, truth, torch.rand(5, 9) < 0.4, torch.rand(5, 9) < 0.7


def test_literal():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.5, 7.0]])
    labels = torch.tensor([[True, False, True, False, False]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert token_auroc(scores, labels, mask).item() == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    expected = 0.5 * 1 + 0.5 * (2 / 3)
    assert token_average_precision(scores, labels, mask).item() == pytest.approx(expected)


def test_literal_correlations():
    scores, truth = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 2.0, -9.0]])
    mask = torch.ones(1, 3).bool()
    assert pearson_correlation(scores, truth, mask).item() == pytest.approx(
        -59 / math.sqrt(14 * 266)
    )
    assert spearman_correlation(scores, truth, mask).item() == pytest.approx(-1)


@pytest.mark.parametrize(("function", "expected"), LABELLED)
@given(seed=st.integers(0, 10**6))
def test_labels_against_the_reference(function, expected, seed):
    scores, _, labels, mask = random_documents(seed)
    wanted = [
        expected(s[m].tolist(), y[m].tolist()) for s, y, m in zip(scores, labels, mask, strict=True)
    ]
    torch.testing.assert_close(function(scores, labels, mask), torch.tensor(wanted), equal_nan=True)


@pytest.mark.parametrize(("function", "expected"), CORRELATED)
@given(seed=st.integers(0, 10**6))
def test_correlations_against_the_reference(function, expected, seed):
    scores, truth, _, mask = random_documents(seed)
    wanted = [
        expected(s[m].tolist(), u[m].tolist()) for s, u, m in zip(scores, truth, mask, strict=True)
    ]
    torch.testing.assert_close(function(scores, truth, mask), torch.tensor(wanted), equal_nan=True)


@pytest.mark.parametrize(("function", "_"), LABELLED)
def test_direction_is_a_change_of_scores(function, _):
    scores, _, labels, mask = random_documents(0)
    same = partial(torch.testing.assert_close, equal_nan=True)
    same(function(scores, labels, mask, direction="low"), function(-scores, labels, mask))
    same(
        function(scores, labels, mask, direction="magnitude"), function(scores.abs(), labels, mask)
    )


@pytest.mark.parametrize(("function", "_"), LABELLED + CORRELATED)
def test_garbage_under_the_mask_and_padding_change_nothing(function, _):
    scores, truth, labels, mask = random_documents(3)
    other = labels if (function, _) in LABELLED else truth
    expected = function(scores, other, mask)
    dirty = scores.masked_fill(~mask, math.nan)
    torch.testing.assert_close(function(dirty, other, mask), expected, equal_nan=True)
    pad = partial(torch.nn.functional.pad, pad=(2, 3))
    padded = function(pad(scores), pad(other), pad(mask))
    torch.testing.assert_close(padded, expected, equal_nan=True)
    rows = [function(scores[i : i + 1], other[i : i + 1], mask[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(rows), expected, equal_nan=True)


@pytest.mark.parametrize(("function", "_"), CORRELATED)
def test_scale_and_shift_change_no_correlation(function, _):
    scores, truth, _, mask = random_documents(4)
    torch.testing.assert_close(
        function(3 * scores - 7, truth, mask), function(scores, truth, mask), equal_nan=True
    )


def test_undefined_documents_are_nan_and_defined_ones_are_not():
    scores = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 1.0]])
    labels = torch.tensor([[True, True], [False, False], [True, False]])
    mask = torch.ones(3, 2).bool()
    assert token_auroc(scores, labels, mask).isnan().tolist() == [True, True, False]
    assert token_average_precision(scores, labels, mask).isnan().tolist() == [False, True, False]
    for correlation in (pearson_correlation, spearman_correlation):
        assert correlation(scores, scores, mask).isnan().tolist() == [False, False, True]
        assert correlation(scores, scores, ~mask).isnan().all()


def test_equal_scores_that_are_no_binary_fractions_have_no_correlation():
    constant = torch.full((1, 7), 0.1, dtype=torch.float64)
    assert pearson_correlation(constant, torch.arange(7.0)[None], constant > 0).isnan().all()


def test_no_documents_give_no_numbers():
    empty = torch.zeros(0, 3)
    assert pearson_correlation(empty, empty, empty.bool()).shape == (0,)


@pytest.mark.parametrize(("function", "_"), LABELLED + CORRELATED)
def test_scores_that_are_not_finite_raise(function, _):
    scores, truth, labels, mask = random_documents(5)
    other = labels if (function, _) in LABELLED else truth
    with pytest.raises(NumericError, match="NaN or infinite score inside the mask"):
        function(scores.masked_fill(mask, math.inf), other, mask)
