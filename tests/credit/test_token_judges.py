import math

import pytest
import torch
from reference import edits as reference

from tokencredit.credit.token_judges import discriminator_credit
from tokencredit.errors import ShapeError


def test_by_hand():
    logits = torch.tensor([[[1.0, 1.0], [0.0, math.log(3.0)], [math.log(3.0), 0.0], [5.0, 9.0]]])
    mask = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(
        discriminator_credit(logits, mask), torch.tensor([[0.0, 0.5, -0.5, 0.0]])
    )


def test_twice_the_probability_less_one():
    logits, mask = torch.randn(4, 7, 2) * 3, torch.rand(4, 7) > 0.3
    scores = discriminator_credit(logits, mask)
    for row in range(4):
        expected = reference.discriminator(logits[row].tolist(), mask[row].tolist())
        assert scores[row].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_softmax_is_applied_once():
    """A second softmax, as in the published code, would end at tanh(1/2)."""
    sure = discriminator_credit(torch.tensor([[[0.0, 30.0]]]), torch.tensor([[True]]))
    assert sure.item() == pytest.approx(1.0)
    assert math.tanh(0.5) < 0.463


def test_only_the_difference_counts_and_classes_swapped_change_the_sign():
    logits, mask = torch.randn(2, 5, 2), torch.ones(2, 5, dtype=torch.bool)
    scores = discriminator_credit(logits, mask)
    torch.testing.assert_close(discriminator_credit(logits + 4.0, mask), scores)
    torch.testing.assert_close(discriminator_credit(logits.flip(-1), mask), -scores)


def test_gradients_flow_inside_the_mask_alone():
    logits = torch.randn(1, 3, 2, dtype=torch.float64)
    logits[0, 2] = math.nan
    logits.requires_grad_()
    discriminator_credit(logits, torch.tensor([[True, True, False]])).sum().backward()
    assert logits.grad[0, :2].ne(0).all()
    assert logits.grad[0, 2].eq(0).all()


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 1), (2, 5, 2), (1, 4, 2)])
def test_two_logits_for_every_token(unchecked, shape):
    with pytest.raises(ShapeError, match="a negative and a positive logit per token"):
        discriminator_credit(torch.zeros(shape), torch.ones(2, 4, dtype=torch.bool))
