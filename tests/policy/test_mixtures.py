"""The geometric mixture of two policies, token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.policy.mixtures import geometric_mixture_logits


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_it_is_the_normalised_product_of_powers(seed, share):
    policy, ref = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    found = geometric_mixture_logits(policy, ref, reference_share=share).softmax(-1)
    products = [
        math.exp((1 - share) * a + share * b)
        for a, b in zip(
            policy.double().log_softmax(-1).tolist(),
            ref.double().log_softmax(-1).tolist(),
            strict=True,
        )
    ]
    assert found.tolist() == pytest.approx([one / sum(products) for one in products], rel=1e-4)


def test_at_its_ends_it_is_one_of_the_two():
    policy, ref = torch.randn(2, 3, 7)
    assert torch.equal(geometric_mixture_logits(policy, ref, reference_share=0.0), policy)
    assert torch.equal(geometric_mixture_logits(policy, ref, reference_share=1.0), ref)
    half = geometric_mixture_logits(policy.bfloat16(), ref, reference_share=0.5)
    assert half.dtype == torch.float32


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ConfigError, match=r"reference_share is -0\.1; expected a share"):
        geometric_mixture_logits(torch.zeros(2), torch.zeros(2), reference_share=-0.1)
    with pytest.raises(ShapeError, match=r"shape \(2,\) and those of the reference \(3,\)"):
        geometric_mixture_logits(torch.zeros(2), torch.zeros(3), reference_share=0.5)
