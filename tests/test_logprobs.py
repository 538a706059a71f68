import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.logprobs import (
    drawn_entropies,
    drawn_logprobs,
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
    top_allowed,
)

INF = math.inf


def reference_probabilities(logits: list[float]) -> list[float]:
    largest = max(logits)
    weights = [math.exp(value - largest) for value in logits]
    return [weight / sum(weights) for weight in weights]


def reference_nucleus(logits: list[float], top_p: float) -> list[bool]:
    """Take the likeliest tokens one by one until they have top_p together."""
    probabilities = reference_probabilities(logits)
    allowed, mass = [False] * len(logits), 0.0
    for token in sorted(range(len(logits)), key=lambda v: -probabilities[v]):
        if mass >= top_p:
            break
        allowed[token] = True
        mass += probabilities[token]
    return allowed


def test_column_t_is_about_response_token_t():
    """The logits that put everything on the next token give each response token probability 1."""
    input_ids = torch.tensor([[4, 2, 0, 3, 1]])
    next_ids = input_ids.roll(-1, dims=-1)
    logits = torch.nn.functional.one_hot(next_ids, 5) * 1e4
    columns = predicting_positions(logits.float(), 3)
    torch.testing.assert_close(token_logprobs(columns, input_ids[:, 2:]), torch.zeros(1, 3))


def test_values_stand_before_their_token():
    assert predicting_positions(torch.arange(6)[None], 4).tolist() == [[1, 2, 3, 4]]
    assert predicting_positions(torch.arange(6)[None], 0).tolist() == [[]]


@pytest.mark.parametrize("responses", [3, 4])
def test_a_first_token_without_anything_before_it_is_an_error(responses):
    with pytest.raises(ShapeError, match=f"{responses} response tokens in a sequence of 3"):
        predicting_positions(torch.zeros(1, 3), responses)


def test_temperature_and_suppression():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    allowed = torch.tensor([True, False, True])
    drawn = sampled_logits(logits, temperature=0.5, allowed=allowed)
    assert drawn.tolist() == [[2.0, -INF, 6.0]]
    assert drawn.dtype == torch.float32
    assert token_logprobs(drawn, torch.tensor([0])).item() == pytest.approx(
        math.log(math.exp(2) / (math.exp(2) + math.exp(6)))
    )
    assert token_logprobs(drawn, torch.tensor([1])).item() == -INF


def test_a_forced_token_has_probability_one():
    only = torch.tensor([False, True, False])
    drawn = sampled_logits(torch.randn(4, 3), allowed=only)
    assert token_logprobs(drawn, torch.ones(4, dtype=torch.long)).eq(0).all()
    assert token_entropies(drawn).eq(0).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        sampled_logits(torch.zeros(2), temperature=temperature)


@pytest.mark.parametrize("options", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": -0.5}])
def test_something_must_be_left_to_draw(options):
    with pytest.raises(ConfigError, match="top_k"):
        top_allowed(torch.zeros(3), **options)


def test_top_k_literal():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [-INF, 1.0, -INF, -INF]])
    assert top_allowed(logits, top_k=2).tolist() == [
        [False, True, False, True],
        [False, True, False, False],
    ]
    assert top_allowed(logits[:1], top_k=9).all()


def test_top_p_counts_what_top_k_left():
    """Of 0.4, 0.3, 0.2, 0.1 the first two are left by top-k, as 4/7 and 3/7."""
    logits = torch.tensor([0.2, 0.4, 0.1, 0.3]).log()
    assert top_allowed(logits, top_k=2, top_p=0.5).tolist() == [False, True, False, False]
    assert top_allowed(logits, top_k=2, top_p=0.6).tolist() == [False, True, False, True]


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.9, 0.999]))
def test_top_p_against_the_reference(seed, top_p):
    torch.manual_seed(seed)
    logits = torch.randn(3, 7, dtype=torch.float64) * 3
    expected = [reference_nucleus(row, top_p) for row in logits.tolist()]
    assert top_allowed(logits, top_p=top_p).tolist() == expected


@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0]))
def test_logprobs_and_entropies_against_the_reference(seed, temperature):
    torch.manual_seed(seed)
    logits = torch.randn(2, 3, 5, dtype=torch.float64) * 4
    allowed = torch.rand(2, 3, 5) < 0.7
    allowed[..., 0] = True
    drawn = sampled_logits(logits, temperature=temperature, allowed=allowed)
    token_ids = torch.randint(0, 5, (2, 3))
    logprobs, entropies = token_logprobs(drawn, token_ids), token_entropies(drawn)
    for b in range(2):
        for t in range(3):
            row = [
                value / temperature if ok else -INF
                for value, ok in zip(logits[b, t].tolist(), allowed[b, t].tolist(), strict=True)
            ]
            probabilities = reference_probabilities(row)
            expected = probabilities[token_ids[b, t]]
            assert logprobs[b, t].exp().item() == pytest.approx(expected, rel=1e-4, abs=1e-30)
            entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
            assert entropies[b, t].item() == pytest.approx(entropy, rel=1e-4, abs=1e-6)


def test_uniform_logits_reduce_to_the_logarithm_of_the_vocabulary():
    logits = torch.zeros(2, 8)
    torch.testing.assert_close(token_entropies(logits), torch.full((2,), math.log(8)))
    torch.testing.assert_close(
        token_logprobs(logits, torch.tensor([0, 7])), torch.full((2,), -math.log(8))
    )


@pytest.mark.parametrize("of", [lambda x: token_logprobs(x, torch.tensor([1, 2])), token_entropies])
def test_gradients(of):
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of, logits)
    suppressed = torch.tensor([True, False, False, False])
    of(logits.masked_fill(suppressed, -INF)).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, 0].eq(0).all()


ALLOWED = {
    "all": None,
    "everywhere": torch.tensor([True, False, True, True, True]),
    "by place": torch.tensor([[True, True, False, True, True], [True, False, True, True, True]]),
    "by row and place": torch.tensor([[[True, True, True, False, True]] * 2] * 3),
}


@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_drawn_logprobs_are_those_of_the_steps(allowed, temperature):
    torch.manual_seed(0)
    whole = torch.randn(3, 4, 5, requires_grad=True)
    parted = whole.detach().clone().requires_grad_()
    ids, weights = torch.tensor([[0, 4], [4, 0], [0, 0]]), torch.randn(3, 2)
    found = drawn_logprobs(whole, ids, temperature=temperature, allowed=allowed)
    drawn = sampled_logits(
        predicting_positions(parted, 2), temperature=temperature, allowed=allowed
    )
    expected = token_logprobs(drawn, ids)
    assert found.tolist() == expected.tolist()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(whole.grad, parted.grad, rtol=1e-6, atol=1e-7)
    assert whole.grad[:, [0, 3]].eq(0).all()  # of the prompt, and of what comes after the last
    entropies = drawn_entropies(whole, 2, temperature=temperature, allowed=allowed)
    assert entropies.tolist() == token_entropies(drawn).tolist()
    assert not entropies.requires_grad
    with torch.no_grad():
        again = drawn_logprobs(whole, ids, temperature=temperature, allowed=allowed)
    assert again.tolist() == expected.tolist()


def test_a_token_that_could_not_be_drawn_moves_no_logit_of_its_own():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    found = drawn_logprobs(logits, torch.tensor([[2]]), allowed=torch.tensor([True, True, False]))
    assert found.tolist() == [[-INF]]
    found.sum().backward()
    assert logits.grad.tolist() == [[[-0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]]


def test_the_gradient_of_drawn_logprobs_has_the_precision_of_the_logits():
    logits = torch.zeros(1, 3, 2, dtype=torch.bfloat16, requires_grad=True)
    found = drawn_logprobs(logits, torch.tensor([[1, 0]]))
    assert found.dtype == torch.float32
    found.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.tolist() == [[[-0.5, 0.5], [0.5, -0.5], [0.0, 0.0]]]


def test_drawn_tokens_have_something_before_them():
    with pytest.raises(ShapeError, match="3 response tokens in a sequence of 3"):
        drawn_logprobs(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ShapeError, match="3 response tokens in a sequence of 3"):
        drawn_entropies(torch.zeros(1, 3, 2), 3)
