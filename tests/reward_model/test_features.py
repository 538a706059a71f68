"""Scores of numbers about a text."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import features as reference

from tokencredit.errors import ConfigError, DataError, ShapeError
from tokencredit.reward_model.features import feature_model_of, fitted_feature_model

few = settings(max_examples=15)


def drawn(seed, pairs=30, features=3):
    torch.manual_seed(seed)
    chosen, rejected = torch.randn(2, pairs, features).unbind(0)
    return chosen + 0.5, rejected


@few
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.5]))
def test_one_feature_is_logistic_regression(seed, ridge):
    chosen, rejected = drawn(seed, features=1)
    model = fitted_feature_model(chosen, rejected, ridge=ridge)
    differences = ((chosen - rejected).double() / model.deviation)[:, 0].tolist()
    expected = reference.logistic_weight(differences, ridge)
    assert model.layers[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@few
@given(st.integers(0, 10**6))
def test_no_other_weights_have_a_lower_loss(seed):
    chosen, rejected = drawn(seed)
    model = fitted_feature_model(chosen, rejected, ridge=0.1)
    differences = ((chosen - rejected).double() / model.deviation).tolist()
    best = model.layers[0][0].tolist()
    least = reference.loss(best, differences, 0.1)
    for place in range(3):
        for step in (-0.05, 0.05):
            moved = [one + step * (at == place) for at, one in enumerate(best)]
            assert reference.loss(moved, differences, 0.1) > least


@few
@given(st.integers(0, 10**6))
def test_units_of_features_make_no_difference(seed):
    chosen, rejected = drawn(seed)
    scale, shift = torch.tensor([10.0, 0.1, -3.0]), torch.tensor([5.0, 0.0, 1.0])
    plain = fitted_feature_model(chosen, rejected).scores(chosen)
    moved = fitted_feature_model(chosen * scale + shift, rejected * scale + shift)
    torch.testing.assert_close(moved.scores(chosen * scale + shift), plain, rtol=1e-3, atol=1e-4)


def test_a_hidden_layer_learns_what_no_line_does():
    torch.manual_seed(0)
    near, far = 0.3 * torch.randn(60, 1), 2 + 0.3 * torch.randn(60, 1)
    far = far * torch.tensor([1.0, -1.0]).repeat(30)[:, None]  # on both sides
    line, curve = (fitted_feature_model(near, far, hidden=hidden) for hidden in (0, 4))
    right = [float((one.scores(near) > one.scores(far)).double().mean()) for one in (line, curve)]
    assert right[0] < 0.7
    assert right[1] == 1.0
    again = fitted_feature_model(near, far, hidden=4)
    assert torch.equal(again.scores(far), curve.scores(far))


@pytest.mark.parametrize("hidden", [0, 3])
def test_it_is_written_and_read_as_it_is(hidden):
    chosen, rejected = drawn(1)
    constant = (
        torch.cat([chosen, torch.ones(30, 1)], -1),
        torch.cat([rejected, torch.ones(30, 1)], -1),
    )
    model = fitted_feature_model(*constant, hidden=hidden)
    again = feature_model_of(json.loads(model.as_json()))
    assert torch.equal(again.scores(constant[0]), model.scores(constant[0]))


@pytest.mark.parametrize(
    "change",
    [{"form": 2}, {"mean": "x"}, {"layers": []}, {"deviation": [0.0] * 3}, {"mean": [1.0]}],
)
def test_a_file_of_something_else_is_refused(change):
    values = json.loads(fitted_feature_model(*drawn(2)).as_json())
    with pytest.raises(DataError, match="holds no model of features"):
        feature_model_of(values | change)
    with pytest.raises(DataError, match="holds no model of features"):
        feature_model_of({})


@pytest.mark.usefixtures("unchecked")
def test_features_that_cannot_be():
    chosen, rejected = drawn(3)
    for wrong in ({"ridge": 0.0}, {"hidden": -1}):
        with pytest.raises(ConfigError, match="expected above 0"):
            fitted_feature_model(chosen, rejected, **wrong)
    for others in (rejected[1:], rejected[:, 1:]):
        with pytest.raises(ShapeError, match="both answers of every pair"):
            fitted_feature_model(chosen, others)
    with pytest.raises(ShapeError, match="at least one pair"):
        fitted_feature_model(chosen[:0], rejected[:0])
    with pytest.raises(DataError, match="NaN or infinite"):
        fitted_feature_model(chosen * math.nan, rejected)
    with pytest.raises(ShapeError, match="expected 3 of each text"):
        fitted_feature_model(chosen, rejected).scores(chosen[:, :2])
