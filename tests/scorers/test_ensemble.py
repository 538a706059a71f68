import math

import pytest
import torch

from tokencredit.aggregation.methods import AGGREGATIONS, CombinationSettings
from tokencredit.batch import ResponseScores
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.errors import ConfigError, ShapeError
from tokencredit.scorers.ensemble import ensemble_scores, ensemble_token_scores

SUM = CombinationSettings()
every_method = pytest.mark.parametrize("name", AGGREGATIONS)


def causal(shift: float = 0.0) -> ResponseScores:
    prefix_scores = torch.tensor([[0.0, 1.0, 4.0], [2.0, -1.0, 3.0]]) + shift
    return ResponseScores(prefix_scores[:, -1], prefix_scores, torch.tensor([[0.2, 0.8]] * 2))


def encoder() -> ResponseScores:
    return ResponseScores(torch.tensor([1.0, -1.0]), None, None)


def test_literal():
    combined = ensemble_scores([causal(), causal(1.0)], [1.0, -2.0], SUM)
    assert combined.sequence_scores.tolist() == [-6.0, -5.0]
    assert combined.prefix_scores.tolist() == [[-2.0, -3.0, -6.0], [-4.0, -1.0, -5.0]]
    worst = ensemble_scores([causal(), causal(1.0)], [1.0, 1.0], CombinationSettings("worst-case"))
    assert torch.equal(worst.prefix_scores, causal().prefix_scores)


@every_method
def test_the_last_prefix_score_stays_the_sequence_score(name):
    sources = [causal(), causal(-0.5), causal(2.0)]
    combined = ensemble_scores(sources, [1.0, 0.5, 2.0], CombinationSettings(name))
    torch.testing.assert_close(combined.prefix_scores[:, -1], combined.sequence_scores)
    assert combined.attention is None


def test_one_source_alone_keeps_its_attention():
    alone = ensemble_scores([encoder(), causal()], [0.0, 2.0], SUM)
    assert torch.equal(alone.sequence_scores, 2 * causal().sequence_scores)
    assert torch.equal(alone.prefix_scores, 2 * causal().prefix_scores)
    assert torch.equal(alone.attention, causal().attention)


def test_without_the_prefix_scores_of_one_there_are_none():
    combined = ensemble_scores([causal(), encoder()], [1.0, 1.0], SUM)
    assert combined.prefix_scores is None
    assert combined.sequence_scores.tolist() == [5.0, 2.0]


def test_a_source_without_weight_is_not_read():
    broken = ResponseScores(torch.full((2,), math.nan), None, None)
    combined = ensemble_scores([causal(), broken], [1.0, 0.0], SUM)
    assert torch.equal(combined.prefix_scores, causal().prefix_scores)


def test_token_scores_of_a_linear_combination_are_those_of_the_combined_scores():
    prefix_scores = torch.randn(2, 3)
    other = ResponseScores(prefix_scores[:, -1], prefix_scores, None)
    sources, weights = [causal(), other], [0.5, 2.0]
    mask = torch.ones(2, 2, dtype=torch.bool)
    each = [prefix_difference_credit(one.prefix_scores, mask) for one in sources]
    whole = ensemble_scores(sources, weights, SUM)
    torch.testing.assert_close(
        ensemble_token_scores(each, weights, SUM),
        prefix_difference_credit(whole.prefix_scores, mask),
    )


def test_as_many_weights_as_sources():
    with pytest.raises(ShapeError, match="1 weights for 2 rewards"):
        ensemble_scores([causal(), causal()], [1.0], SUM)
    with pytest.raises(ShapeError, match="1 weights for 0 rewards"):
        ensemble_token_scores([], [1.0], SUM)


def test_weights_must_do():
    with pytest.raises(ConfigError, match="expected finite numbers"):
        ensemble_scores([causal()], [math.nan], SUM)
    with pytest.raises(ConfigError, match="0 of 1 rewards carry weight"):
        ensemble_token_scores([torch.zeros(1, 1)], [0.0], SUM)


def test_sources_score_the_same_responses():
    other = ResponseScores(torch.zeros(2), torch.zeros(2, 4), None)
    with pytest.raises(ShapeError, match=r"\[\(2, 3\), \(2, 4\)\]; expected one shape"):
        ensemble_scores([causal(), other], [1.0, 1.0], SUM)
    with pytest.raises(ShapeError, match="expected one shape"):
        ensemble_token_scores([torch.zeros(1, 2), torch.zeros(1, 3)], [1.0, 1.0], SUM)


@every_method
def test_only_linear_combinations_take_token_scores(name):
    settings, scores = CombinationSettings(name), [torch.zeros(1, 2)] * 2
    if AGGREGATIONS[name].acts == "linear":
        assert ensemble_token_scores(scores, [1.0, 1.0], settings).tolist() == [[0.0, 0.0]]
    else:
        with pytest.raises(ConfigError, match=f"'{name}'.*expected 'sum'"):
            ensemble_token_scores(scores, [1.0, 1.0], settings)
