import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import shaping as reference

from tokencredit.aggregation.references import win_probabilities
from tokencredit.aggregation.transforms import (
    SCORE_TRANSFORMS,
    ReferenceScores,
    RunningMoments,
    ScoreSettings,
    counted_scores,
    normalised_scores,
    priced_scores,
    transformed_scores,
)
from tokencredit.batch import ResponseScores
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import attention_credit, uniform_credit
from tokencredit.errors import ConfigError


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=4))
def test_running_moments_equal_those_of_everything_at_once(batches):
    moments = RunningMoments()
    for scores in batches:
        moments = moments.updated(torch.tensor(scores, dtype=torch.float64))
    everything = [score for scores in batches for score in scores]
    mean, std = reference.moments(everything)
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(mean, abs=1e-9)
    if std > 1e-6:
        assert moments.std == pytest.approx(std, rel=1e-6)


def test_moments_without_variance_scale_by_one():
    assert RunningMoments().std == 1.0
    assert RunningMoments().updated(torch.tensor([2.0, 2.0])).std == 1.0


def test_normalised_scores_literal():
    scores = torch.tensor([[1.0, 9.0], [-9.0, 3.0]])
    normal = normalised_scores(scores, mean=1.0, std=2.0, clip=3.0)
    assert normal.tolist() == [[0.0, 3.0], [-3.0, 1.0]]
    assert normalised_scores(scores).equal(scores)


def test_clipping_before_spreading_does_not_depend_on_the_length():
    """Two responses with the same score, short and long, are worth the same after the clip."""
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    clipped = normalised_scores(torch.tensor([9.0, 9.0]), clip=4.0)
    totals = uniform_credit(clipped, mask).sum(-1)
    torch.testing.assert_close(totals, torch.tensor([4.0, 4.0]))
    totals = attention_credit(clipped, torch.rand(2, 8), mask).sum(-1)
    torch.testing.assert_close(totals, torch.tensor([4.0, 4.0]))


def test_normalised_prefix_scores_telescope_to_the_normalised_score():
    prefix_scores, mask = torch.randn(3, 6) * 4, torch.ones(3, 5, dtype=torch.bool)
    normal = normalised_scores(prefix_scores, mean=0.3, std=1.7, clip=1.5)
    credit = prefix_difference_credit(normal, mask)
    torch.testing.assert_close(credit.sum(-1), normal[:, -1] - normal[:, 0])


def test_normalised_scores_gradient():
    scores = torch.tensor([0.2, 5.0, -5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: normalised_scores(s, std=2.0, clip=1.0), scores)


@pytest.mark.parametrize("options", [{"std": 0.0}, {"std": -1.0}, {"clip": 0.0}, {"clip": -2.0}])
def test_scales_are_positive(options):
    with pytest.raises(ConfigError, match="expected positive numbers"):
        normalised_scores(torch.zeros(2), **options)


def response_scores() -> ResponseScores:
    prefix_scores = torch.tensor([[1.0, 5.0, -3.0], [0.0, 2.0, 9.0]])
    return ResponseScores(prefix_scores[:, -1], prefix_scores, torch.rand(2, 2))


def test_transformed_literal():
    scores = response_scores()
    moments = RunningMoments().updated(scores.sequence_scores)
    both = transformed_scores(scores, ScoreSettings(normalization="running", clip=0.5), moments)
    assert both.raw is scores
    assert both.transformed.sequence_scores.tolist() == [-0.5, 0.5]
    torch.testing.assert_close(
        both.transformed.prefix_scores,
        torch.tensor([[-2.0, 2.0, -6.0], [-3.0, -1.0, 6.0]]).div(6).clamp(-0.5, 0.5),
    )
    assert both.transformed.attention is scores.attention


def test_by_default_nothing_changes_and_moments_are_not_read():
    scores = response_scores()
    moments = RunningMoments().updated(torch.tensor([100.0, 200.0]))
    both = transformed_scores(scores, ScoreSettings(), moments)
    assert both.transformed.sequence_scores.equal(scores.sequence_scores)
    assert both.transformed.prefix_scores.equal(scores.prefix_scores)


def test_the_last_prefix_score_stays_the_sequence_score():
    scores = response_scores()
    moments = RunningMoments().updated(torch.randn(9))
    settings = ScoreSettings(normalization="running", clip=2.0)
    transformed = transformed_scores(scores, settings, moments).transformed
    assert transformed.prefix_scores[:, -1].equal(transformed.sequence_scores)


def test_scores_without_prefixes_are_transformed_alone():
    scores = ResponseScores(torch.tensor([9.0]), None, None)
    both = transformed_scores(scores, ScoreSettings(clip=1.0), RunningMoments())
    assert both.transformed.sequence_scores.tolist() == [1.0]
    assert both.transformed.prefix_scores is None


def test_normalising_needs_scores_that_were_seen():
    with pytest.raises(ConfigError, match="no score has been seen"):
        transformed_scores(
            response_scores(), ScoreSettings(normalization="running"), RunningMoments()
        )


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_is_positive(clip):
    with pytest.raises(ConfigError, match="expected a positive number of nats"):
        ScoreSettings(clip=clip)


MASK = torch.tensor([[True, True], [True, False]])
REFERENCES = ReferenceScores(torch.tensor([[1.0, 3.0], [0.0, 8.0]]), torch.full((2, 2), 2.0))


def changed_by(settings: ScoreSettings, **known) -> ResponseScores:
    moments = RunningMoments().updated(torch.tensor([1.0, 5.0]))
    return transformed_scores(response_scores(), settings, moments, **known).transformed


def test_scale_divides_and_does_not_centre():
    assert changed_by(ScoreSettings("scale")).sequence_scores.tolist() == [-1.5, 4.5]


def test_reference_moments_centre_and_divide():
    assert changed_by(ScoreSettings("reference")).sequence_scores.tolist() == [-3.0, 3.0]


def test_priced_literal():
    priced = priced_scores(
        torch.tensor([9.0, 1.0]), torch.tensor([4.0, 2.0]), ceiling=3.0, length_price=0.5
    )
    assert priced.tolist() == [1.0, 0.0]


def test_prefixes_pay_for_the_tokens_that_they_have():
    settings = ScoreSettings(ceiling=4.0, length_price=0.5)
    found = changed_by(settings, response_mask=MASK)
    assert found.prefix_scores.tolist() == [[1.0, 3.5, -4.0], [0.0, 1.5, 3.5]]
    assert found.sequence_scores.tolist() == [-4.0, 3.5]
    assert counted_scores(response_scores(), settings, MASK).tolist() == [-4.0, 3.5]


def test_the_order_is_that_of_the_settings():
    """Ceiling, length, scale, clip, and then the probability, of both sides alike."""
    settings = ScoreSettings(
        "running", clip=1.5, ceiling=4.0, length_price=0.5, transform="par", slope=2.0
    )
    found = changed_by(settings, response_mask=MASK, references=REFERENCES)

    def normal(value: float, tokens: int) -> float:
        return max(-1.5, min(1.5, (min(value, 4.0) - 0.5 * tokens - 3.0) / 2.0))

    scores = torch.tensor([normal(-3.0, 2), normal(9.0, 1)])
    others = torch.tensor([[normal(1.0, 2), normal(3.0, 2)], [normal(0.0, 2), normal(8.0, 2)]])
    expected = win_probabilities(scores, others, slope=2.0)
    torch.testing.assert_close(found.sequence_scores, expected)


@pytest.mark.parametrize("name", SCORE_TRANSFORMS)
def test_every_transform_keeps_the_end_and_the_attention(name):
    settings = ScoreSettings(transform=name)
    scores = response_scores()
    found = transformed_scores(scores, settings, RunningMoments(), references=REFERENCES)
    ends = found.transformed.prefix_scores[:, -1]
    torch.testing.assert_close(ends, found.transformed.sequence_scores)
    assert found.transformed.attention is scores.attention
    assert found.raw is scores
    assert (settings.reference_responses > 0) == (name != "none")


def test_comparing_needs_something_to_compare_with():
    with pytest.raises(ConfigError, match="'par', which compares with responses of the reference"):
        changed_by(ScoreSettings(transform="par"))


def test_a_price_of_length_needs_the_lengths():
    with pytest.raises(ConfigError, match=r"length_price is 0\.5 and no response mask"):
        changed_by(ScoreSettings(length_price=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "pra"}, "did you mean 'par'"),
        ({"slope": 0.0}, "slope is"),
        ({"quantile": 1.0}, "quantile 1"),
        ({"ceiling": float("nan")}, "ceiling is NaN"),
        ({"length_price": -1.0}, "length_price is"),
        ({"length_price": float("inf")}, "length_price is"),
    ],
)
def test_settings_of_a_transform_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        ScoreSettings(**options)
