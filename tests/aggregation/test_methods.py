import inspect
import math

import pytest
import torch

from tokencredit.aggregation import combining
from tokencredit.aggregation.methods import (
    AGGREGATIONS,
    CombinationSettings,
    combined_scores,
    require_weights,
)
from tokencredit.errors import ConfigError, ShapeError

NAN = math.nan
FUNCTIONS = {
    "sum": combining.weighted_sum_scores,
    "worst-case": combining.worst_case_scores,
    "mean-less-variance": combining.mean_less_variance_scores,
    "mean-less-deviation": combining.mean_less_deviation_scores,
    "nominal-and-worst": combining.nominal_and_worst_scores,
    "log-sigmoid-sum": combining.log_sigmoid_sum_scores,
}


def test_every_method_has_its_function():
    assert set(AGGREGATIONS) == set(FUNCTIONS)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_methods_say_of_themselves_what_the_table_says(name):
    docstring, method = inspect.getdoc(FUNCTIONS[name]), AGGREGATIONS[name]
    said = {"linear": "Combines: linearly.", "elementwise": "Combines: elementwise."}
    assert said[method.acts] in docstring
    assert method.text.rpartition("arXiv ")[2].rstrip(")") in docstring


def test_literals_by_name():
    scores, weights = torch.tensor([[2.0, 3.0, NAN]]), torch.tensor([1.0, 2.0, 0.0])
    expected = {
        "sum": 8.0,
        "worst-case": 2.0,
        "mean-less-variance": 4.0 - 0.5 * 4.0,
        "mean-less-deviation": 4.0 - 0.25 * 2.0,
        "nominal-and-worst": 2.0 * 0.25 + 2.0 * 0.75,
        "log-sigmoid-sum": -math.log((1 + math.exp(-2.0)) * (1 + math.exp(-6.0))),
    }
    for name, value in expected.items():
        settings = CombinationSettings(name, variance_coef=0.5, deviation_coef=0.25)
        found = combined_scores(scores, weights, settings)
        assert found.tolist() == pytest.approx([value], rel=1e-6)


def test_the_nominal_model_is_the_first_that_carries_weight():
    scores, settings = torch.tensor([[NAN, 3.0, 1.0]]), CombinationSettings("nominal-and-worst")
    assert combined_scores(scores, torch.tensor([0.0, 1.0, 1.0]), settings).tolist() == [2.0]


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_sequence_and_prefix_scores_alike(name):
    prefix_scores, weights = torch.randn(3, 5, 2), torch.tensor([1.0, 0.5])
    settings = CombinationSettings(name)
    combined = combined_scores(prefix_scores, weights, settings)
    assert combined.shape == (3, 5)
    last = combined_scores(prefix_scores[:, -1], weights, settings)
    torch.testing.assert_close(combined[:, -1], last)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'worst_case'.*did you mean 'worst-case'"):
        CombinationSettings("worst_case")


@pytest.mark.parametrize("value", [-0.1, NAN, math.inf])
def test_coefficients_are_checked(value):
    with pytest.raises(ConfigError, match="variance_coef is"):
        CombinationSettings(variance_coef=value)
    with pytest.raises(ConfigError, match="deviation_coef is"):
        CombinationSettings(deviation_coef=value)
    with pytest.raises(ConfigError, match="nominal_share is"):
        CombinationSettings(nominal_share=value)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_weights_are_numbers(value):
    settings = CombinationSettings()
    with pytest.raises(ConfigError, match="expected finite numbers"):
        require_weights([1.0, value], settings)
    with pytest.raises(ConfigError, match="expected finite numbers"):
        combined_scores(torch.zeros(1, 2), torch.tensor([1.0, value]), settings)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_as_many_models_as_needed_carry_weight(name):
    settings, least = CombinationSettings(name), AGGREGATIONS[name].models
    weights = torch.tensor([1.0] * (least - 1) + [0.0] * (3 - least + 1))
    with pytest.raises(ConfigError, match=rf"{least - 1} of 3 rewards.*at least {least}.*{name}"):
        combined_scores(torch.ones(1, 3), weights, settings)
    enough = torch.tensor([1.0] * least + [0.0] * (3 - least))
    assert combined_scores(torch.ones(1, 3), enough, settings).isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_as_many_weights_as_models():
    with pytest.raises(ShapeError, match=r"weights have shape \(2,\)"):
        combined_scores(torch.zeros(1, 3), torch.ones(2), CombinationSettings())
