"""Slopes of combinations: times the scores they are the combined score."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.aggregation.euler import (
    mean_less_deviation_slopes,
    nominal_and_worst_slopes,
    worst_case_slopes,
)
from tokencredit.aggregation.methods import (
    AGGREGATIONS,
    CombinationSettings,
    combined_scores,
    combining_weights,
)
from tokencredit.errors import ConfigError, ShapeError

HOMOGENEOUS = [name for name, one in AGGREGATIONS.items() if one.slopes is not None]
seeds = st.integers(0, 10**6)


def test_which_combinations_grow_in_step():
    assert HOMOGENEOUS == ["sum", "worst-case", "mean-less-deviation", "nominal-and-worst"]


@given(seeds, st.sampled_from(HOMOGENEOUS))
def test_they_are_the_slopes_and_times_the_scores_the_combined_score(seed, name):
    torch.manual_seed(seed)
    scores = (3 * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    settings = CombinationSettings(name, deviation_coef=0.7, nominal_share=0.3)
    combined = combined_scores(scores, weights, settings)
    found = combining_weights(scores.detach(), weights, settings)
    torch.testing.assert_close((found * scores).sum(-1), combined)
    (slopes,) = torch.autograd.grad(combined.sum(), scores)
    torch.testing.assert_close(found, slopes)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_models_of_weight_zero_take_no_part(name):
    scores = torch.tensor([[float("nan"), 1.0, 2.0]])
    settings = CombinationSettings(name)
    found = combining_weights(scores, torch.tensor([0.0, 1.0, 1.0]), settings)
    assert found[0, 0] == 0
    alone = combining_weights(scores[:, 1:], torch.ones(2), settings)
    assert torch.equal(found[:, 1:], alone)


def test_models_that_agree_share_alike():
    same = torch.full((2, 4), 1.5)
    assert mean_less_deviation_slopes(same).tolist() == [[0.25] * 4] * 2
    assert worst_case_slopes(same).tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    assert nominal_and_worst_slopes(same, nominal_share=1.0).tolist() == [[1.0, 0, 0, 0]] * 2
    assert worst_case_slopes(same.half()).dtype == torch.float32


@pytest.mark.parametrize("name", ["mean-less-variance", "log-sigmoid-sum"])
def test_others_have_none(name):
    settings = CombinationSettings(name)
    with pytest.raises(ConfigError, match="does not grow in step with its scores"):
        combining_weights(torch.zeros(1, 2), torch.ones(2), settings)
    with pytest.raises(ConfigError, match=r"combine\.credit is 'each'.*expected one of sum, worst"):
        CombinationSettings(name, credit="each")


def test_what_is_missing_is_an_error():
    for function in (worst_case_slopes, mean_less_deviation_slopes, nominal_and_worst_slopes):
        with pytest.raises(ShapeError, match="model"):
            function(torch.zeros(2, 0))
    with pytest.raises(ConfigError, match="deviation_coef is -1"):
        mean_less_deviation_slopes(torch.zeros(1, 2), deviation_coef=-1.0)
    with pytest.raises(ConfigError, match="nominal_share is 2"):
        nominal_and_worst_slopes(torch.zeros(1, 2), nominal_share=2.0)
