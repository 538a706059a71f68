import math

import pytest
import torch

from tokencredit.policy.losses.likelihood import likelihood_losses

MASK = torch.tensor([[True, True], [True, False]])


def test_literal_and_zero_under_the_mask():
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, math.nan]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.5], [2.0, math.nan]], requires_grad=True)
    losses = likelihood_losses(logprobs, weights, MASK)
    assert losses.tolist() == [[1.0, 1.0], [6.0, 0.0]]
    losses.sum().backward()
    assert logprobs.grad.tolist() == [[-1.0, -0.5], [-2.0, 0.0]]
    assert weights.grad is None


def test_with_weights_of_one_it_is_the_likelihood_of_supervised_training():
    logits, ids = torch.randn(2, 2, 5), torch.tensor([[1, 4], [0, 2]])
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    losses = likelihood_losses(logprobs, torch.ones(2, 2), MASK)
    supervised = torch.nn.functional.cross_entropy(logits[MASK], ids[MASK], reduction="sum")
    assert float(losses.sum()) == pytest.approx(float(supervised), rel=1e-5)
