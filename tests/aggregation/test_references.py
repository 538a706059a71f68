import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import aggregation as reference
from torch.autograd import gradcheck

from tokencredit.aggregation.combining import weighted_sum_scores
from tokencredit.aggregation.references import (
    log_win_probabilities,
    reference_quantiles,
    win_margins,
    win_probabilities,
)
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.errors import ConfigError, DataError

DOUBLE, NAN = torch.float64, math.nan
seeds = st.integers(0, 10**6)


def test_literals():
    scores, references = torch.tensor([2.0, -1.0]), torch.tensor([[2.0, 0.0], [NAN, -1.0]])
    wins = win_probabilities(scores, references, slope=math.log(3.0) / 2)
    assert wins.tolist() == pytest.approx([(0.5 + 0.75) / 2, 0.5])
    quantiles = reference_quantiles(torch.tensor([[1.0, 3.0], [NAN, 5.0]]), quantile=0.85)
    assert quantiles.tolist() == pytest.approx([2.0 + 1.0364333895, 5.0])
    logs = log_win_probabilities(torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.log(3.0)]))
    assert logs.tolist() == pytest.approx([-math.log(2.0), -math.log(4.0)])


@given(seeds, st.integers(1, 4))
def test_against_the_reference(seed, count):
    torch.manual_seed(seed)
    scores = torch.randn(3, 4, dtype=DOUBLE) * 3
    references = torch.randn(3, count, dtype=DOUBLE) * 3
    references[0, 1:] = NAN
    wins = win_probabilities(scores, references, slope=0.7)
    quantiles = reference_quantiles(references, quantile=0.85)
    logs = log_win_probabilities(scores, quantiles)
    above = 1.0364333894937898  # of 85 % of a standard normal
    for row, others in enumerate(references.tolist()):
        quantile = reference.reference_quantile(others, above)
        assert float(quantiles[row]) == pytest.approx(quantile, rel=1e-9)
        for column, score in enumerate(scores[row].tolist()):
            expected = reference.win_probability(score, others, 0.7)
            assert float(wins[row, column]) == pytest.approx(expected, rel=1e-9)
            expected = reference.log_win_probability(score, quantile)
            assert float(logs[row, column]) == pytest.approx(expected, rel=1e-9)


def test_the_references_own_response_has_one_half():
    scores = torch.randn(5)
    assert win_probabilities(scores, scores[:, None]).tolist() == [0.5] * 5


def test_the_margin_over_an_equal_is_zero_and_turns_with_the_sides():
    scores, others = torch.randn(2, 5, dtype=DOUBLE)
    margins = win_margins(scores, others[:, None], slope=0.7)
    torch.testing.assert_close(win_margins(others, scores[:, None], slope=0.7), -margins)
    assert win_margins(scores, scores[:, None]).tolist() == [0.0] * 5
    everyone = win_margins(scores, scores.expand(5, 5))  # each against all of the same policy
    assert everyone.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert win_margins(torch.tensor([1e9]), torch.zeros(1, 2)).item() == 0.5


@given(seeds)
def test_probabilities_rise_with_the_score_and_logs_stay_below_zero(seed):
    torch.manual_seed(seed)
    scores = (torch.randn(1, 9, dtype=DOUBLE) * 5).sort().values
    references = torch.randn(1, 3, dtype=DOUBLE)
    wins = win_probabilities(scores, references)
    assert ((wins > 0) & (wins < 1)).all()
    assert (wins.diff() > 0).all()
    logs = log_win_probabilities(scores, reference_quantiles(references))
    assert (logs < 0).all()
    assert (logs.diff() > 0).all()


def test_log_sigmoids_of_one_model_keep_the_ranking_within_a_prompt():
    scores, quantiles = torch.randn(6), torch.full((6,), 0.3)
    summed = weighted_sum_scores(log_win_probabilities(scores, quantiles)[:, None], torch.ones(1))
    assert torch.equal(summed.argsort(), scores.argsort())


@pytest.mark.parametrize(
    "transform",
    [
        win_probabilities,
        lambda scores, references: log_win_probabilities(scores, reference_quantiles(references)),
    ],
    ids=["par", "lsc"],
)
def test_transformed_prefix_scores_are_a_potential(transform):
    prefix_scores, references = torch.randn(2, 6), torch.randn(2, 3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    changed = transform(prefix_scores, references)
    torch.testing.assert_close(changed[:, -1], transform(prefix_scores[:, -1], references))
    credit = prefix_difference_credit(changed, mask)
    torch.testing.assert_close(credit.sum(-1), changed[:, -1] - changed[:, 0])
    later = prefix_scores.clone()
    later[:, 4:] += 7.0
    other = prefix_difference_credit(transform(later, references), mask)
    torch.testing.assert_close(other[:, :3], credit[:, :3])


def test_one_row_alone_is_as_in_the_batch_and_what_is_unscored_is_left_out():
    scores, references = torch.randn(3), torch.randn(3, 2)
    wins = win_probabilities(scores, references)
    for row in range(3):
        alone = win_probabilities(scores[row : row + 1], references[row : row + 1])
        torch.testing.assert_close(alone, wins[row : row + 1])
    more = torch.cat([references, torch.full((3, 1), NAN)], dim=-1)
    torch.testing.assert_close(win_probabilities(scores, more), wins)
    torch.testing.assert_close(reference_quantiles(more), reference_quantiles(references))


def test_gradients():
    scores = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    references = torch.randn(2, 2, dtype=DOUBLE)
    assert gradcheck(lambda s: win_probabilities(s, references, slope=0.5), scores)
    assert gradcheck(lambda s: log_win_probabilities(s, references[:, 0]), scores)


@pytest.mark.parametrize("slope", [0.0, -1.0, NAN])
def test_a_slope_is_positive(slope):
    with pytest.raises(ConfigError, match="slope is"):
        win_probabilities(torch.zeros(1), torch.zeros(1, 1), slope=slope)


@pytest.mark.parametrize("quantile", [0.0, 1.0, NAN])
def test_a_quantile_is_a_share(quantile):
    with pytest.raises(ConfigError, match="quantile is"):
        reference_quantiles(torch.zeros(1, 1), quantile=quantile)


@pytest.mark.parametrize("function", [reference_quantiles, None])
def test_a_row_without_a_reference_is_named(function):
    references = torch.tensor([[1.0, NAN], [NAN, NAN]])
    call = function or (lambda others: win_probabilities(torch.zeros(2), others))
    with pytest.raises(DataError, match=r"rows \[1\] have no score of a response of the reference"):
        call(references)
