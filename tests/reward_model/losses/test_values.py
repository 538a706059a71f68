import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import value_targets as reference
from torch.autograd import gradcheck

from tokencredit.errors import ConfigError
from tokencredit.reward_model.losses.targets import (
    prefix_classification_loss,
    prefix_regression_loss,
)
from tokencredit.reward_model.losses.values import (
    bootstrapped_targets,
    q_classification_loss,
    q_value_loss,
)

NAN = math.nan
SHARES = st.sampled_from([0.0, 0.4, 0.95, 1.0])


def drawn(seed: int, batch: int = 4, time: int = 6):
    """Scores with holes in their mask, NaN there, and outcomes; every row has a token."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, time, generator=generator) < 0.6
    mask[:, 2] = True
    scores = torch.randn(batch, time, generator=generator).masked_fill(~mask, NAN)
    return scores, torch.rand(batch, generator=generator), mask


def test_literal():
    values = torch.tensor([[0.2, NAN, 0.4, 0.6], [0.5, 0.1, NAN, NAN]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    targets = bootstrapped_targets(values, torch.tensor([1.0, 0.0]), mask)
    torch.testing.assert_close(targets, torch.tensor([[0.4, 0.0, 0.6, 1.0], [0.1, 0.0, 0.0, 0.0]]))


def test_a_literal_that_looks_further():
    values, mask = torch.tensor([[9.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    targets = bootstrapped_targets(values, torch.tensor([8.0]), mask, bootstrap_lambda=0.5)
    assert targets.tolist() == [[0.5 * 2 + 0.25 * 4 + 0.25 * 8, 0.5 * 4 + 0.5 * 8, 8.0]]


@given(st.integers(0, 10**6), SHARES)
def test_targets_and_losses_against_the_reference(seed, share):
    scores, outcomes, mask = drawn(seed)
    targets = bootstrapped_targets(scores, outcomes, mask, bootstrap_lambda=share)
    squared, entropies = [], []
    for row, counts in enumerate(mask):
        values, outcome = scores[row][counts].tolist(), outcomes[row].item()
        expected = reference.bootstrapped(values, outcome, share)
        torch.testing.assert_close(targets[row][counts], torch.tensor(expected))
        squared.append(reference.squared_error(values, expected))
        shares = reference.bootstrapped(reference.probabilities(values), outcome, share)
        entropies.append(reference.cross_entropy(values, shares))
    assert targets[~mask].eq(0).all()
    loss = q_value_loss(scores, outcomes, mask, bootstrap_lambda=share)
    assert loss.item() == pytest.approx(sum(squared) / len(squared), rel=1e-4)
    loss = q_classification_loss(scores, outcomes, mask, bootstrap_lambda=share)
    assert loss.item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_looking_only_at_the_end_is_training_on_the_outcome():
    scores, outcomes, mask = drawn(0)
    torch.testing.assert_close(
        q_value_loss(scores, outcomes, mask, bootstrap_lambda=1.0),
        prefix_regression_loss(scores, outcomes, mask),
    )
    torch.testing.assert_close(
        q_classification_loss(scores, outcomes, mask, bootstrap_lambda=1.0),
        prefix_classification_loss(scores, outcomes, mask),
    )


@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize("loss", [q_value_loss, q_classification_loss])
def test_the_gradient_is_that_of_the_scores_with_constant_targets(loss, share):
    scores, outcomes, mask = drawn(1)
    scores = scores.double().masked_fill(~mask, 0.0).requires_grad_()
    loss(scores, outcomes, mask, bootstrap_lambda=share).backward()
    values = scores.sigmoid() if loss is q_classification_loss else scores
    targets = bootstrapped_targets(values, outcomes, mask, bootstrap_lambda=share)
    slope = values - targets if loss is q_classification_loss else 2 * (values - targets)
    expected = slope / mask.sum(-1, keepdim=True) / len(mask)
    torch.testing.assert_close(scores.grad, expected.masked_fill(~mask, 0.0), check_dtype=False)


@pytest.mark.parametrize("loss", [q_value_loss, q_classification_loss])
def test_numerical_gradient_where_no_target_comes_from_the_model(loss):
    scores = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    outcomes, mask = torch.tensor([0.0, 1.0, 0.3]), torch.ones(3, 1, dtype=torch.bool)
    # Losses are float32 whatever comes in, so steps are wide and the check is loose.
    assert gradcheck(lambda s: loss(s, outcomes, mask), (scores,), eps=1e-2, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("loss", [q_value_loss, q_classification_loss])
def test_scores_of_which_each_is_the_mean_of_what_follows_stay(loss):
    """Two responses begin alike and end 0 and 1: the beginning is worth a half, in either unit."""
    first = 0.0 if loss is q_classification_loss else 0.5
    ends = [-20.0, 20.0] if loss is q_classification_loss else [0.0, 1.0]
    shared = torch.tensor(first, requires_grad=True)
    scores = torch.stack([torch.stack([shared, torch.tensor(end)]) for end in ends])
    loss(scores, torch.tensor([0.0, 1.0]), torch.ones(2, 2, dtype=torch.bool)).backward()
    assert shared.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_what_the_mask_hides_changes_neither_loss_nor_gradient():
    found = []
    for garbage in (0.0, NAN, math.inf):
        scores, outcomes, mask = drawn(2)
        scores = scores.masked_fill(~mask, garbage).requires_grad_()
        loss = q_value_loss(scores, outcomes, mask) + q_classification_loss(scores, outcomes, mask)
        loss.backward()
        found.append((loss.detach(), scores.grad))
    for loss, gradient in found:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])
        assert gradient[~mask].eq(0).all()


def test_a_row_without_tokens_has_neither_target_nor_loss():
    scores, mask = torch.full((1, 3), NAN), torch.zeros(1, 3, dtype=torch.bool)
    assert bootstrapped_targets(scores, torch.tensor([5.0]), mask).tolist() == [[0.0] * 3]
    assert q_value_loss(scores, torch.tensor([5.0]), mask).item() == 0.0


def test_half_precision_in_float32_out():
    scores, mask = torch.randn(2, 3).bfloat16(), torch.ones(2, 3, dtype=torch.bool)
    assert bootstrapped_targets(scores, torch.tensor([0, 1]), mask).dtype == torch.float32
    assert q_value_loss(scores, torch.tensor([0, 1]), mask).dtype == torch.float32


@pytest.mark.parametrize("function", [bootstrapped_targets, q_value_loss, q_classification_loss])
def test_lambda_is_a_share(function):
    with pytest.raises(ConfigError, match=r"bootstrap_lambda is 1\.5"):
        function(torch.zeros(1, 1), torch.zeros(1), torch.ones(1, 1).bool(), bootstrap_lambda=1.5)
