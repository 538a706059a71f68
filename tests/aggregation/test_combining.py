import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import aggregation as reference
from torch.autograd import gradcheck

from tokencredit.aggregation.combining import (
    log_sigmoid_sum_scores,
    mean_less_deviation_scores,
    mean_less_variance_scores,
    nominal_and_worst_scores,
    weighted_sum_scores,
    worst_case_scores,
)
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.errors import ConfigError, ShapeError

DOUBLE = torch.float64
seeds = st.integers(0, 10**6)

FUNCTIONS = {
    "sum": lambda scores: weighted_sum_scores(scores, _weights(scores)),
    "worst-case": worst_case_scores,
    "mean-less-variance": lambda scores: mean_less_variance_scores(scores, variance_coef=0.3),
    "mean-less-deviation": lambda scores: mean_less_deviation_scores(scores, deviation_coef=0.7),
    "nominal-and-worst": lambda scores: nominal_and_worst_scores(scores, nominal_share=0.6),
    "log-sigmoid-sum": log_sigmoid_sum_scores,
}
REFERENCES = {
    "sum": lambda row: reference.weighted_sum(row, [0.5 - 0.4 * m for m in range(len(row))]),
    "worst-case": reference.worst_case,
    "mean-less-variance": lambda row: reference.mean_less_variance(row, 0.3),
    "mean-less-deviation": lambda row: reference.mean_less_deviation(row, 0.7),
    "nominal-and-worst": lambda row: reference.nominal_and_worst(row, 0.6),
    "log-sigmoid-sum": reference.log_sigmoid_sum,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def _weights(scores):
    return 0.5 - 0.4 * torch.arange(scores.shape[-1], dtype=scores.dtype)


def test_literals():
    scores = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    weights = torch.tensor([1.0, 0.5, -1.0])
    assert weighted_sum_scores(scores, weights).tolist() == [-2.5, 1.0]
    assert worst_case_scores(scores).tolist() == [1.0, 2.0]
    assert mean_less_variance_scores(scores, variance_coef=0.3).tolist() == pytest.approx(
        [3.0 - 0.3 * (4 + 0 + 4) / 3, 2.0]
    )
    assert mean_less_deviation_scores(scores, deviation_coef=0.5).tolist() == pytest.approx(
        [3.0 - 0.5 * math.sqrt(8 / 3), 2.0]
    )
    mixed = nominal_and_worst_scores(scores.flip(-1), nominal_share=0.75)
    assert mixed.tolist() == [0.75 * 5.0 + 0.25 * 1.0, 2.0]
    summed = log_sigmoid_sum_scores(torch.tensor([[0.0, math.log(3.0)]]))
    assert summed.tolist() == pytest.approx([math.log(0.5 * 0.75)])


@every_function
@given(seeds, st.integers(1, 5))
def test_against_the_reference(name, seed, models):
    torch.manual_seed(seed)
    scores = torch.randn(3, models, dtype=DOUBLE) * 5
    expected = torch.tensor([REFERENCES[name](row) for row in scores.tolist()], dtype=DOUBLE)
    torch.testing.assert_close(FUNCTIONS[name](scores), expected)


@every_function
def test_prefix_scores_are_combined_column_by_column(name):
    prefix_scores = torch.randn(2, 5, 3)
    combined = FUNCTIONS[name](prefix_scores)
    assert combined.shape == (2, 5)
    for column in range(5):
        torch.testing.assert_close(combined[:, column], FUNCTIONS[name](prefix_scores[:, column]))


@every_function
def test_one_response_alone_is_combined_as_in_a_batch(name):
    scores = torch.randn(4, 3)
    alone = torch.stack([FUNCTIONS[name](row) for row in scores])
    torch.testing.assert_close(FUNCTIONS[name](scores), alone)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"log-sigmoid-sum"}))
def test_padding_stays_zero(name):
    assert FUNCTIONS[name](torch.zeros(2, 3, 4)).eq(0).all()


@every_function
def test_combined_prefix_scores_are_a_potential(name):
    """Their differences sum to the combined score, and no token sees what comes after it."""
    prefix_scores, mask = torch.randn(2, 6, 3), torch.ones(2, 5, dtype=torch.bool)
    combined = FUNCTIONS[name](prefix_scores)
    credit = prefix_difference_credit(combined, mask)
    torch.testing.assert_close(credit.sum(-1), combined[:, -1] - combined[:, 0])
    later = prefix_scores.clone()
    later[:, 4:] += 7.0
    changed = prefix_difference_credit(FUNCTIONS[name](later), mask)
    torch.testing.assert_close(changed[:, :3], credit[:, :3])


def test_only_the_sum_may_be_taken_of_token_scores():
    prefix_scores = torch.tensor([[[0.0, 0.0], [1.0, 4.0], [6.0, 5.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    each = torch.stack(
        [prefix_difference_credit(prefix_scores[..., m], mask) for m in range(2)], dim=-1
    )
    for name, combined in FUNCTIONS.items():
        whole = prefix_difference_credit(combined(prefix_scores), mask)
        assert torch.allclose(combined(each), whole) == (name == "sum")


@every_function
def test_gradient(name):
    scores = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(FUNCTIONS[name], scores)


def test_gradient_of_the_weights():
    scores, weights = torch.randn(2, 3, dtype=DOUBLE), torch.randn(3, dtype=DOUBLE)
    assert gradcheck(lambda w: weighted_sum_scores(scores, w), weights.requires_grad_())


def test_where_all_agree_the_gradient_is_that_of_the_mean():
    scores = torch.full((1, 4), 2.0, requires_grad=True)
    mean_less_deviation_scores(scores, deviation_coef=3.0).sum().backward()
    assert scores.grad.tolist() == [[0.25] * 4]


@every_function
def test_one_model_alone_is_that_model(name):
    scores = torch.randn(4, 1, dtype=torch.bfloat16)
    combined = FUNCTIONS[name](scores)
    assert combined.dtype == torch.float32
    expected = scores[:, 0].float() * (0.5 if name == "sum" else 1.0)
    if name == "log-sigmoid-sum":  # the model's ranking, not its scores
        expected = expected.sigmoid().log()
        assert torch.equal(combined.argsort(), scores[:, 0].argsort())
    torch.testing.assert_close(combined, expected)


def test_what_reduces_to_what():
    scores = torch.randn(5, 4)
    mean = weighted_sum_scores(scores, torch.full((4,), 0.25))
    torch.testing.assert_close(mean_less_variance_scores(scores, variance_coef=0.0), mean)
    torch.testing.assert_close(mean_less_deviation_scores(scores, deviation_coef=0.0), mean)
    chosen = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert torch.equal(weighted_sum_scores(scores, chosen), scores[:, 2])
    two = scores[:, :2]
    torch.testing.assert_close(mean_less_deviation_scores(two), worst_case_scores(two))
    assert (worst_case_scores(scores) <= mean).all()
    nominal = nominal_and_worst_scores(scores, nominal_share=1.0)
    torch.testing.assert_close(nominal, scores[:, 0])
    worst = nominal_and_worst_scores(scores, nominal_share=0.0)
    torch.testing.assert_close(worst, worst_case_scores(scores))


def test_sums_of_log_sigmoids_are_bounded_and_ask_every_model():
    scores = torch.tensor([[60.0, 60.0], [60.0, -60.0], [0.1, 0.1]])
    combined = log_sigmoid_sum_scores(scores)
    assert (combined <= 0).all()
    assert combined[0] == pytest.approx(0.0, abs=1e-20)
    assert combined[1] == pytest.approx(-60.0)
    assert combined[2] > combined[1]


def test_scaling_all_scores_scales_the_bound_but_not_the_one_with_the_variance():
    scores = torch.tensor([[1.0, 3.0]])
    bound = mean_less_deviation_scores(scores, deviation_coef=0.5)
    torch.testing.assert_close(
        mean_less_deviation_scores(10 * scores, deviation_coef=0.5), 10 * bound
    )
    penalised = mean_less_variance_scores(scores, variance_coef=0.5)
    assert mean_less_variance_scores(10 * scores, variance_coef=0.5) < 0 < 10 * penalised


@pytest.mark.usefixtures("unchecked")
@every_function
@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_there_must_be_models(name, shape):
    function = FUNCTIONS[name]
    if name == "sum":
        function = lambda scores: weighted_sum_scores(scores, torch.ones(0))  # noqa: E731
    with pytest.raises(ShapeError, match="at least one model"):
        function(torch.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_as_many_weights_as_models():
    with pytest.raises(ShapeError, match=r"weights have shape \(2,\).*\(4, 3\)"):
        weighted_sum_scores(torch.zeros(4, 3), torch.ones(2))


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_are_numbers(weight):
    with pytest.raises(ConfigError, match="expected finite numbers"):
        weighted_sum_scores(torch.zeros(1, 2), torch.tensor([1.0, weight]))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_coefficients_are_not_negative(value):
    with pytest.raises(ConfigError, match="variance_coef is"):
        mean_less_variance_scores(torch.zeros(1, 2), variance_coef=value)
    with pytest.raises(ConfigError, match="deviation_coef is"):
        mean_less_deviation_scores(torch.zeros(1, 2), deviation_coef=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_nominal_share_is_a_share(value):
    with pytest.raises(ConfigError, match=r"nominal_share is .*from 0 to 1"):
        nominal_and_worst_scores(torch.zeros(1, 2), nominal_share=value)
