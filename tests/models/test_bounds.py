import pytest
import torch

from tokencredit.errors import ConfigError, NumericError
from tokencredit.models.bounds import (
    PessimisticScore,
    difference_covariance,
    elliptical_norms,
    whitening,
)


def drawn(seed=0, count=40, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, width, generator=generator).double().unbind(0)


def test_the_covariance_is_the_loop_over_pairs():
    chosen, rejected = drawn()
    expected = 0.3 * torch.eye(5, dtype=torch.float64)
    for w, loser in zip(chosen, rejected, strict=True):
        expected += torch.outer(w - loser, w - loser) / 40
    found = difference_covariance(chosen, rejected, ridge=0.3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, difference_covariance(rejected, chosen, ridge=0.3))


def test_norms_are_the_quadratic_form():
    chosen, rejected = drawn()
    covariance = difference_covariance(chosen, rejected, ridge=0.1)
    inverse = torch.linalg.inv(covariance)
    for features, norm in zip(chosen, elliptical_norms(chosen, covariance), strict=True):
        assert norm.item() == pytest.approx(float(features @ inverse @ features) ** 0.5)
    torch.testing.assert_close(whitening(covariance) @ whitening(covariance).T, inverse)
    torch.testing.assert_close(
        elliptical_norms(-2 * chosen, covariance), 2 * elliptical_norms(chosen, covariance)
    )


def test_what_data_say_much_of_costs_little():
    """Answers that differ in one direction alone: the other one is unknown."""
    apart = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
    covariance = difference_covariance(apart, torch.zeros(2, 2), ridge=0.01)
    known, unknown = elliptical_norms(torch.eye(2), covariance).tolist()
    assert unknown / known == pytest.approx((16.01 / 0.01) ** 0.5)


def test_the_pessimistic_score_is_the_head_less_the_norm():
    chosen, rejected = drawn()
    covariance = difference_covariance(chosen, rejected, ridge=0.1)
    head = torch.nn.Linear(5, 1, bias=False)
    reference = chosen.mean(0).float()
    score = PessimisticScore(head, whitening(covariance).float(), reference, coef=0.7)
    states = rejected.float().view(8, 5, 5)
    norms = elliptical_norms(states - reference, covariance.float())
    torch.testing.assert_close(score(states)[..., 0], head(states)[..., 0] - 0.7 * norms)
    nothing = PessimisticScore(head, whitening(covariance).float(), reference, coef=0.0)
    assert torch.equal(nothing(states), head(states))
    torch.testing.assert_close(score(reference), head(reference))


def test_errors():
    with pytest.raises(ConfigError, match="ridge is 0"):
        difference_covariance(torch.zeros(1, 2), torch.zeros(1, 2), ridge=0.0)
    with pytest.raises(NumericError, match="is not positive"):
        whitening(-torch.eye(2))
