"""How far a policy is from its reference, and how undecided it is: terms of losses and rewards.

Those over the vocabulary are exact at each token, and take a few columns of the logits at a time:
in the backward pass too, no more than one chunk of them stands in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokencredit.logprobs import sampled_logits, token_entropies

LARGEST_LOG_RATIO = 10.0
"""Log-ratios, in nats, beyond which exponentials go on as straight lines."""
LEAST_CHI_SQUARE = 1e-4
"""Below this a chi-square is taken for it: a root has no slope at 0."""


def chi_square_terms(log_ratios: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Estimates of χ²(policy || reference) from responses drawn from the policy, never negative.

        f(d) = (e^d − 1) + (e^{−d} − 1),   d = Σ_t log π(y_t) − log π_ref(y_t)

    The first part alone has the mean χ² = E_π[π / π_ref] − 1; the second has mean 0 and keeps the
    sum at 0 or more. Beyond 10 nats the exponentials go on as straight lines, so that one response
    cannot blow up a batch.

    Args:
        log_ratios: d of each response, in nats.

    Returns:
        Float32, 0 where policy and reference agree.

    Source: Laidlaw et al. 2024, arXiv 2403.03185, the loss of their RLHF code. Its gradient is that
    of χ² / 2 plus that of KL(reference || policy).

    >>> chi_square_terms(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 1.0862])
    """
    ratios = in_float32(log_ratios)
    return (_bounded_exp(ratios) - 1) + (_bounded_exp(-ratios) - 1)


def dense_chi_square_penalties(
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    chi_square: float,
) -> Float[Tensor, "batch time"]:
    """What each token adds to the price of a response's chi-square: penalties that telescope.

        p_t = (ρ_{≤t} − ρ_{<t}) / √χ²,   ρ_{≤t} = Π_{u ≤ t} π(y_u | s_u) / π_ref(y_u | s_u)

    They sum to (ρ − 1) / √χ², whose policy gradient is that of √χ², and no token pays for what
    comes after it. Beyond 10 nats ρ goes on as a straight line of its logarithm.

    Args:
        policy_logprobs: of the tokens, in nats.
        ref_logprobs: of the reference.
        response_mask: True on response tokens; anything may stand outside.
        chi_square: of the policy, over a batch: the mean of `chi_square_terms`. Less than 1e-4 is
            taken for 1e-4.

    Returns:
        Float32, zero outside the mask.

    Source: Laidlaw et al. 2024, arXiv 2403.03185, for a whole response; the dense form is ours.

    >>> half, mask = torch.tensor([[0.0, 0.0]]).log_softmax(-1), torch.tensor([[True, True]])
    >>> dense_chi_square_penalties(half + 0.6931472, half, mask, chi_square=1.0)
    tensor([[1., 2.]])
    """
    log_ratios = in_float32(policy_logprobs - ref_logprobs).masked_fill(~response_mask, 0.0)
    ratios = _bounded_exp(log_ratios.cumsum(-1))
    before = torch.cat([torch.ones_like(ratios[:, :1]), ratios[:, :-1]], dim=-1)
    penalties = (ratios - before) / max(chi_square, LEAST_CHI_SQUARE) ** 0.5
    return penalties.masked_fill(~response_mask, 0.0)


def root_slope(chi_square: float) -> float:
    """Slope of √max(χ², 1e-4): by it the gradient of a mean becomes that of its root.

    >>> root_slope(0.25), root_slope(0.0)
    (1.0, 0.0)
    """
    return 0.5 / chi_square**0.5 if chi_square > LEAST_CHI_SQUARE else 0.0


def chunked_entropies(
    logits: Float[Tensor, "batch time vocab"], *, chunk_size: int = 512
) -> Float[Tensor, "batch time"]:
    """Entropy of the distribution at each column, in nats, with a gradient.

    Args:
        logits: of the distribution that is sampled from, in any precision.
        chunk_size: tokens of which the vocabulary stands in float32 at the same time.

    >>> chunked_entropies(torch.zeros(1, 2, 4), chunk_size=1)
    tensor([[1.3863, 1.3863]])
    """
    return by_chunks(lambda part, _: token_entropies(in_float32(part)), [logits], None, chunk_size)


def chunked_log_normalisers(
    logits: Float[Tensor, "batch time vocab"], *, chunk_size: int = 512
) -> Float[Tensor, "batch time"]:
    """Logarithm of the sum of the exponentials of all logits at each column, with a gradient.

    Where logits are soft values of tokens, it is the soft value of the state.

    Args:
        logits: in any precision; -inf for tokens that cannot be drawn.
        chunk_size: tokens of which the vocabulary stands in float32 at the same time.

    >>> chunked_log_normalisers(torch.zeros(1, 2, 4), chunk_size=1)
    tensor([[1.3863, 1.3863]])
    """
    return by_chunks(lambda part, _: in_float32(part).logsumexp(-1), [logits], None, chunk_size)


def chunked_forward_kls(
    policy_logits: Float[Tensor, "batch time vocab"],
    ref_logits: Float[Tensor, "batch time vocab"],
    *,
    temperature: float = 1.0,
    allowed: Bool[Tensor, "*#batch vocab"] | None = None,
    chunk_size: int = 512,
) -> Float[Tensor, "batch time"]:
    """KL(reference || policy) over the vocabulary at each column, with a gradient to the policy.

        k_t = Σ_a π_ref(a | s_t) (log π_ref(a | s_t) − log π(a | s_t))

    It keeps probability on what the reference would say, where KL(policy || reference) keeps it off
    what the reference would not.

    Args:
        policy_logits: of the distribution that is sampled from (`sampled_logits`), in any
            precision.
        ref_logits: the reference's own, in the same columns; constants.
        temperature: of sampling, for the reference.
        allowed: False for tokens that cannot be drawn, for the reference.
        chunk_size: tokens of which the vocabulary stands in float32 at the same time.

    Returns:
        Float32, in nats, never negative but for rounding.

    Source: Mukobi et al. 2023, arXiv 2310.16763, the direction of their penalty (SuperHF). Their
    code adds it over the rows of a minibatch, one position late; here it is that of each token.

    >>> logits = torch.tensor([[[0.0, 0.0]]])
    >>> chunked_forward_kls(logits, torch.tensor([[[0.0, 1.0986123]]]))
    tensor([[0.1308]])
    """

    def kls(part: Tensor, ref: Tensor, here: Tensor | None) -> Tensor:
        policy = in_float32(part).log_softmax(-1)
        reference = sampled_logits(ref, temperature=temperature, allowed=here).log_softmax(-1)
        drawable = reference > -torch.inf
        terms = (reference - policy).masked_fill(~drawable, 0.0)
        return (reference.exp() * terms).sum(-1)

    return by_chunks(kls, [policy_logits, ref_logits.detach()], allowed, chunk_size)


def by_chunks(
    function: Callable[..., Tensor],
    tensors: list[Tensor],
    allowed: Bool[Tensor, "*#batch vocab"] | None,
    chunk_size: int,
) -> Float[Tensor, "batch time"]:
    """A function of some columns at a time, computed again in the backward pass.

    Args:
        function: of a few columns of each tensor, and of `allowed` there or None.
        tensors: whose second axis is that of the columns.
        allowed: False for tokens that cannot be drawn; None for none.
        chunk_size: entries of the first two axes at the same time.
    """
    if allowed is not None and allowed.ndim == 1:
        allowed = allowed[None]
    batch, time = tensors[0].shape[:2]
    width = max(1, chunk_size // max(1, batch))
    columns = [torch.split(tensor, width, dim=1) for tensor in tensors]
    here: list[Any] = [None] * len(columns[0])
    if allowed is not None:
        here = list(torch.split(allowed.expand(*allowed.shape[:-2], time, -1), width, dim=-2))
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    found = [
        checkpoint(function, *parts, mask, **options)
        for *parts, mask in zip(*columns, here, strict=True)
    ]
    return torch.cat(found, dim=1) if found else tensors[0].new_zeros(batch, 0)


def _bounded_exp(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """e^x, a straight line beyond 10."""
    below = values.clamp(max=LARGEST_LOG_RATIO).exp()
    return below * (1 + (values - LARGEST_LOG_RATIO).clamp(min=0.0))


def in_float32(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
