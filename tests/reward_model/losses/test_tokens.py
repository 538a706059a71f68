import math

import pytest
import torch
from reference import edits as reference
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from tokencredit.errors import ShapeError
from tokencredit.reward_model.losses.tokens import (
    step_classification_loss,
    token_classification_loss,
)

MASK = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 4, 2)


def soft_labels() -> torch.Tensor:
    """Negative, positive and neutral tokens of the edit labels."""
    choices = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    return choices[torch.tensor([[0, 1, 2, 0], [2, 1, 1, 1], [0, 0, 0, 0]])]


def test_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]], [[0.0, 0.0], [9.0, -9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    labels = torch.tensor([[1, 0], [1, -100]])
    first = (math.log(4 / 3) + math.log(2)) / 2
    loss = token_classification_loss(logits, labels, mask)
    assert loss.item() == pytest.approx((first + math.log(2)) / 2)


@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_token_by_token(logits, weights):
    class_weights = None if weights is None else torch.tensor(weights)
    loss = token_classification_loss(logits, soft_labels(), MASK, class_weights=class_weights)
    expected = reference.token_cross_entropy(
        logits.tolist(), soft_labels().tolist(), MASK.tolist(), weights or [1.0, 1.0]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_classes_are_certain_probabilities(logits):
    labels = torch.tensor([[0, 1, 1, -100], [-100, 0, -100, -100], [-100] * 4])
    certain = torch.nn.functional.one_hot(labels.clamp(min=0), 2).float()
    torch.testing.assert_close(
        token_classification_loss(logits, labels, MASK),
        token_classification_loss(logits, certain, MASK),
    )


def test_one_full_row_is_plain_cross_entropy():
    logits, labels = torch.randn(1, 5, 3), torch.tensor([[0, 1, 2, 2, 0]])
    loss = token_classification_loss(logits, labels, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(loss, cross_entropy(logits[0], labels[0]))


def test_a_neutral_token_costs_least_where_nothing_is_said():
    mask, neutral = torch.ones(1, 1, dtype=torch.bool), torch.full((1, 1, 2), 0.5)
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    loss = token_classification_loss(logits, neutral, mask)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad.eq(0).all()
    assert token_classification_loss(logits + torch.tensor([0.0, 1.0]), neutral, mask) > loss


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_lies_off_the_mask_changes_neither_value_nor_gradient(logits, garbage):
    gradients = []
    for filler in (0.0, garbage):
        given = logits.masked_fill(~MASK[:, :, None], filler).requires_grad_()
        labels = soft_labels().masked_fill(~MASK[:, :, None], filler)
        loss = token_classification_loss(given, labels, MASK)
        gradients.append((loss, *torch.autograd.grad(loss, given)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_response_without_tokens_counts_nowhere(logits):
    whole = token_classification_loss(logits, soft_labels(), MASK)
    torch.testing.assert_close(
        whole, token_classification_loss(logits[:2], soft_labels()[:2], MASK[:2])
    )
    assert token_classification_loss(logits[2:], soft_labels()[2:], MASK[2:]).item() == 0.0


def test_padding_on_either_side_changes_nothing(logits):
    for pad in ((0, 2), (2, 0)):
        wide = torch.nn.functional.pad(logits, (0, 0, *pad), value=math.nan)
        labels = torch.nn.functional.pad(soft_labels(), (0, 0, *pad), value=math.nan)
        mask = torch.nn.functional.pad(MASK, pad)
        torch.testing.assert_close(
            token_classification_loss(wide, labels, mask),
            token_classification_loss(logits, soft_labels(), MASK),
        )


def test_gradients(logits):
    def loss(given):
        return token_classification_loss(
            given, soft_labels(), MASK, class_weights=torch.tensor([0.5, 2.0])
        )

    # The loss is float32 whatever comes in, so steps are wide and the check is loose.
    double = logits.double().requires_grad_()
    assert gradcheck(loss, (double,), eps=1e-2, atol=5e-3, rtol=1e-3)
    ids = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1], [-1, -1, -1, -1]])
    steps = torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert gradcheck(
        lambda given: step_classification_loss(given, steps, ids),
        (double,),
        eps=1e-2,
        atol=5e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    ("labels", "mask"),
    [
        (torch.zeros(3, 4, 3), MASK),
        (torch.zeros(3, 5, 2), MASK),
        (torch.zeros(3, 4).long(), MASK[:, :3]),
        (torch.zeros(2, 4).long(), MASK[:2]),
    ],
)
def test_one_label_per_token(unchecked, logits, labels, mask):
    with pytest.raises(ShapeError, match="expected one label per token"):
        token_classification_loss(logits, labels, mask)


def test_one_weight_per_class(unchecked, logits):
    for weights in (torch.ones(3), torch.ones(1)):
        with pytest.raises(ShapeError, match=r"class_weights for 2 classes; expected one each"):
            token_classification_loss(logits, soft_labels(), MASK, class_weights=weights)
        with pytest.raises(ShapeError, match=r"class_weights for 2 classes"):
            step_classification_loss(
                logits, torch.zeros(3, 1).long(), torch.zeros(3, 4).long(), class_weights=weights
            )


def test_steps_are_judged_at_their_last_tokens(logits):
    ids = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1], [-1, -1, -1, -1]])
    steps = torch.tensor([[1, 0], [0, 1], [1, 1]])
    ends = torch.tensor([[False, True, True, False], [True, False, False, True], [False] * 4])
    labels = torch.tensor([[-100, 1, 0, -100], [0, -100, -100, 1], [-100] * 4])
    loss = step_classification_loss(logits, steps, ids)
    torch.testing.assert_close(loss, token_classification_loss(logits, labels, ends))
    first = cross_entropy(logits[0, [1, 2]], torch.tensor([1, 0]))
    second = cross_entropy(logits[1, [0, 3]], torch.tensor([0, 1]))
    torch.testing.assert_close(loss, (first + second) / 2)


def test_a_step_of_every_token_is_the_loss_of_tokens(logits):
    labels = torch.randint(0, 2, (3, 4))
    ids = torch.arange(4).expand(3, 4)
    weights = torch.tensor([0.2, 1.0])
    torch.testing.assert_close(
        step_classification_loss(logits, labels, ids, class_weights=weights),
        token_classification_loss(logits, labels, ids >= 0, class_weights=weights),
    )


def test_one_label_per_step(logits):
    with pytest.raises(ShapeError, match="name 3 steps and step_labels have 2 columns"):
        step_classification_loss(
            logits, torch.zeros(3, 2).long(), torch.tensor([[0, 1, 2, -1]] * 3)
        )
