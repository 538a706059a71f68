"""Losses of single responses with a number each: learnt by how far they beat expectation."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, DataError
from tokencredit.masking import masked_sum

Ratio = Literal["sequence", "token", "none"]


def leftover_lunch_losses(
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"] | None,
    advantages: Float[Tensor, "batch"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    ratio: Ratio = "sequence",
    clip_eps: float = 0.9,
    token_weights: Float[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch"]:
    """Negative log-likelihoods, weighed by advantages and by clipped ratios to the reference.

        L = −A Σ_t w_t clip(sg[ρ], 1 − ε, 1 + ε) log π(y_t | s_t)

    ρ is the ratio of the policy to the reference of the whole response, or of each token. It is a
    constant, as A and w are.

    Args:
        policy_logprobs: of the current policy, in nats.
        ref_logprobs: of the reference; None with `ratio` "none".
        advantages: rewards less what is expected of the prompt.
        response_mask: True on response tokens; anything may stand outside.
        ratio: of what ρ is; "none" for 1 (the reference-free form).
        clip_eps: ε; 0 leaves ρ no room, which is the reference-free form too.
        token_weights: w; None for 1.

    Returns:
        One loss per response, a sum over its tokens.

    Raises:
        ConfigError: `clip_eps` is negative or `ratio` is not known.
        DataError: a ratio is asked for and there is no reference.

    Source: Baheti et al. 2023, arXiv 2305.14718 (A-LoL); `ratio="token"` is "seq" in their code,
    `ratio="none"` the form without reference.

    >>> logprobs, mask = torch.tensor([[-1.0, -1.0]]), torch.tensor([[True, True]])
    >>> leftover_lunch_losses(logprobs, logprobs, torch.tensor([0.5]), mask)
    tensor([1.])
    """
    if clip_eps < 0 or ratio not in ("sequence", "token", "none"):
        raise ConfigError(
            f"clip_eps is {clip_eps} and ratio {ratio!r}; expected at least 0, and 'sequence', "
            "'token' or 'none'"
        )
    dtype = torch.promote_types(policy_logprobs.dtype, torch.float32)
    logprobs = policy_logprobs.to(dtype).masked_fill(~response_mask, 0.0)
    weights = torch.ones_like(logprobs)
    if ratio != "none":
        if ref_logprobs is None:
            raise DataError(
                f"ratio is {ratio!r} and there is no reference; expected its log-probabilities, or "
                "ratio 'none'"
            )
        log_ratios = (logprobs - ref_logprobs).detach().masked_fill(~response_mask, 0.0)
        if ratio == "sequence":
            log_ratios = log_ratios.sum(-1, keepdim=True)
        # Clipped before the exponential, which overflows beyond 88 nats in float32.
        least = torch.tensor(max(1 - clip_eps, 0.0), dtype=dtype).log()
        most = torch.tensor(1 + clip_eps, dtype=dtype).log()
        weights = weights * log_ratios.clamp(float(least), float(most)).exp()
    if token_weights is not None:
        weights = weights * token_weights.detach().masked_fill(~response_mask, 0.0)
    return -advantages.detach().to(dtype) * masked_sum(weights * logprobs, response_mask)


def effective_share(weights: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Share of a batch that its weights leave: (Σ w)² / (n Σ w²), 1 where all are equal.

    Args:
        weights: never negative.

    >>> effective_share(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    tensor(0.5000)
    """
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp(min=1e-30)


def prompt_values(
    features: Float[Tensor, "rows width"],
    rewards: Float[Tensor, "rows"],
    *,
    asked: Float[Tensor, "others width"] | None = None,
    ridge: float = 1.0,
) -> Float[Tensor, "asked"]:
    """What is expected of each prompt: rewards regressed on what a frozen model says of it.

        V(x) = (x − x̄)ᵀ (XᵀX + λ n σ² I)⁻¹ Xᵀ (R − R̄) + R̄,   rows of X are x_i − x̄

    Args:
        features: the last hidden state at the end of each prompt, of the frozen reference.
        rewards: of the response to it.
        asked: features of the prompts that are asked about; None for the same.
        ridge: λ, in units of the mean variance σ² of the features; the larger, the nearer values
            stay to the mean reward.

    Returns:
        In the unit of the rewards, float32.

    Raises:
        ConfigError: `ridge` is not positive.

    Source: the prompt value of Baheti et al. 2023, arXiv 2305.14718, a head on the frozen
    reference's prompt states with squared error. Theirs is trained by gradient on generations of
    the reference; here it is the ridge regression on the data itself, which has one solution.

    >>> prompt_values(torch.tensor([[1.0], [-1.0]]), torch.tensor([3.0, 1.0]), ridge=1e-6)
    tensor([3.0000, 1.0000])
    """
    if ridge <= 0:
        raise ConfigError(f"ridge is {ridge}; expected a positive number")
    x, r = features.double(), rewards.double()
    centre, mean = x.mean(0), r.mean()
    x, r = x - centre, r - mean
    price = ridge * len(x) * x.square().mean().clamp(min=1e-12)
    if len(x) < x.shape[1]:  # the same weights from the smaller of the two systems
        weights = x.T @ torch.linalg.solve(x @ x.T + price * _identity(len(x)), r)
    else:
        weights = torch.linalg.solve(x.T @ x + price * _identity(x.shape[1]), x.T @ r)
    there = features if asked is None else asked
    return ((there.double() - centre) @ weights + mean).float()


def _identity(size: int) -> Float[Tensor, "size size"]:
    return torch.eye(size, dtype=torch.float64)
