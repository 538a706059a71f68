import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import perturbation as reference

from tokencredit.credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from tokencredit.errors import ConfigError, ModelError, NumericError, ShapeError


def from_zero(score, embeddings, mask, *, steps=8):
    return integrated_gradients_credit(
        score, embeddings, torch.zeros_like(embeddings), mask, steps=steps
    )


every_method = pytest.mark.parametrize(
    "credit", [gradient_times_input_credit, from_zero], ids=["gradient times input", "integrated"]
)


def bent(embeddings):
    """Smooth, not polynomial, every token bearing on every other."""
    sums = embeddings.sum((1, 2))
    return (0.7 * sums).tanh() + 0.1 * embeddings.square().sum((1, 2)) * sums.cos()


def bent_of_rows(rows):
    entries = [value for row in rows for value in row]
    total, squares = sum(entries), sum(value**2 for value in entries)
    return math.tanh(0.7 * total) + 0.1 * squares * math.cos(total)


def random_case(seed, batch=3, time=4, width=2):
    torch.manual_seed(seed)
    embeddings, baseline = 0.5 * torch.randn(2, batch, time, width)
    return embeddings, baseline, torch.rand(batch, time) < 0.7


def test_literals():
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])

    def score(e):
        return e[:, 0, 0] * e[:, 0, 1] * e[:, 1, 0] + 5.0

    assert gradient_times_input_credit(score, embeddings, mask).tolist() == [[12, 6, 0]]
    torch.testing.assert_close(
        from_zero(score, embeddings, mask, steps=2), torch.tensor([[4.0, 2.0, 0.0]])
    )
    baseline = torch.tensor([[[1.0, 2.0], [1.0, 7.0], [0.0, 0.0]]])
    found = integrated_gradients_credit(score, embeddings, baseline, mask, steps=2)
    torch.testing.assert_close(found, torch.tensor([[0.0, 4.0, 0.0]]))


@given(seed=st.integers(0, 10**6))
def test_against_the_reference(seed):
    embeddings, baseline, mask = random_case(seed, batch=2)
    inputs, start = (
        torch.where(mask[:, :, None], part, 0.0).tolist() for part in (embeddings, baseline)
    )
    wanted = [reference.gradient_times_input(bent_of_rows, row) for row in inputs]
    found = gradient_times_input_credit(bent, embeddings, mask)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    wanted = [
        reference.integrated_gradients(bent_of_rows, row, base, 60)
        for row, base in zip(inputs, start, strict=True)
    ]
    found = integrated_gradients_credit(bent, embeddings, baseline, mask, steps=12)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-3, atol=1e-3)


def incompleteness(score, case, steps):
    embeddings, baseline, mask = case
    total = integrated_gradients_credit(score, embeddings, baseline, mask, steps=steps).sum(-1)
    inside = mask[:, :, None]
    expected = score(embeddings.where(inside, 0.0)) - score(baseline.where(inside, 0.0))
    return (total - expected).abs().max().item()


def test_the_error_of_the_sum_falls_with_the_steps():
    case = random_case(3)
    errors = [incompleteness(bent, case, steps) for steps in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_polynomials_of_degree_twice_the_steps_are_exact(steps):
    case = random_case(4)
    assert incompleteness(lambda e: e.sum((1, 2)) ** (2 * steps), case, steps) < 1e-4
    assert incompleteness(lambda e: e.sum((1, 2)) ** (2 * steps + 2), case, steps) > 1e-3


def test_a_linear_score_is_divided_as_it_is():
    embeddings, baseline, mask = random_case(5)
    weights = torch.randn(4, 2)

    def score(e):
        return (e * weights).sum((1, 2)) + 3.0

    parts = (embeddings * weights).sum(-1).masked_fill(~mask, 0.0)
    torch.testing.assert_close(gradient_times_input_credit(score, embeddings, mask), parts)
    torch.testing.assert_close(from_zero(score, embeddings, mask, steps=1), parts)
    shifted = parts - (baseline * weights).sum(-1).masked_fill(~mask, 0.0)
    found = integrated_gradients_credit(score, embeddings, baseline, mask, steps=3)
    torch.testing.assert_close(found, shifted)


@every_method
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_garbage_under_the_mask_changes_nothing(credit, garbage):
    embeddings, _, mask = random_case(6)
    dirty = embeddings.masked_fill(~mask[:, :, None], garbage)
    assert torch.equal(credit(bent, dirty, mask), credit(bent, embeddings, mask))
    baseline = torch.zeros_like(embeddings).masked_fill(~mask[:, :, None], garbage)
    found = integrated_gradients_credit(bent, dirty, baseline, mask, steps=8)
    assert torch.equal(found, from_zero(bent, embeddings, mask))


@every_method
def test_padding_and_the_rest_of_the_batch_change_nothing(credit):
    embeddings, _, mask = random_case(7)
    expected = credit(bent, embeddings, mask)
    places = torch.tensor([1, 2, 4, 6])
    wide, wide_mask = torch.full((3, 7, 2), math.nan), torch.zeros(3, 7).bool()
    wide[:, places], wide_mask[:, places] = embeddings, mask
    torch.testing.assert_close(credit(bent, wide, wide_mask)[:, places], expected)
    for row in range(3):
        one = slice(row, row + 1)
        alone = credit(bent, embeddings[one], mask[one])
        torch.testing.assert_close(alone, expected[one])


@every_method
def test_nothing_is_left_behind(credit):
    """No gradient in the result or in the parameters, wherever it is called."""
    embeddings, _, mask = random_case(8)
    weight = torch.ones(2, requires_grad=True)
    embeddings.requires_grad_()

    def score(e):
        return (e * weight).sum((1, 2))

    with torch.no_grad():
        token_scores = credit(score, embeddings, mask)
    assert token_scores.dtype == torch.float32
    assert not credit(score, embeddings, mask).requires_grad
    assert weight.grad is None
    assert embeddings.grad is None
    assert torch.equal(credit(score, embeddings.double(), mask), token_scores)


@every_method
def test_no_tokens_and_no_responses(credit):
    for shape in [(2, 3), (0, 3), (2, 0)]:
        found = credit(bent, torch.ones(*shape, 2), torch.zeros(shape).bool())
        assert found.tolist() == torch.zeros(shape).tolist()


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_positive(steps):
    embeddings, _, mask = random_case(9)
    with pytest.raises(ConfigError, match=f"steps is {steps}"):
        from_zero(bent, embeddings, mask, steps=steps)


@every_method
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_fit(credit):
    embeddings, _, mask = random_case(10)
    with pytest.raises(ShapeError, match="one embedding per response token"):
        credit(bent, embeddings, mask[:, :-1])
    with pytest.raises(ShapeError, match="one score per response"):
        credit(lambda e: e.sum(), embeddings, mask)
    with pytest.raises(ShapeError, match="expand_as"):
        integrated_gradients_credit(bent, embeddings, embeddings[:, :1], mask)


@every_method
def test_a_score_without_gradient(credit):
    embeddings, _, mask = random_case(11)
    other = torch.ones(3, requires_grad=True)
    for score in (lambda e: bent(e).detach(), lambda e: other + bent(e.detach())):
        with pytest.raises(ModelError, match="no gradient"):
            credit(score, embeddings, mask)


@every_method
def test_scores_and_gradients_that_are_no_numbers(credit):
    embeddings, _, mask = random_case(12)
    for score in (
        lambda e: bent(e) * math.nan,
        lambda e: bent(e) + math.inf,
        lambda e: (0.0 * e.sum((1, 2))).sqrt(),
    ):
        with pytest.raises(NumericError, match="NaN or infinite"):
            credit(score, embeddings, mask)
