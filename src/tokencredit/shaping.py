"""From token scores to the token rewards that an optimiser sees.

Scores of whole responses are normalised and combined before credit (`tokencredit.aggregation`), so
that this does not depend on how the score is spread; the KL penalty comes last.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimates(
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    *,
    estimator: KlEstimator = "k1",
) -> Float[Tensor, "batch time"]:
    """Per-token estimates of KL(policy || reference) from tokens drawn from the policy.

        d = log π − log π_ref
        k1 = d,   k2 = d² / 2,   k3 = e^{−d} − 1 + d

    k1 and k3 have the right mean; k1 may be negative on single tokens, k3 never is. In a reward
    use k1. In a loss, k2 has the gradient of the true KL; that of k3 is biased.

    Args:
        policy_logprobs: in nats, of the distribution the tokens were drawn from.
        ref_logprobs: of the reference, under the same temperature and suppressed tokens.
        estimator: which one.

    Returns:
        Estimates in nats.

    Raises:
        ConfigError: the estimator is none of the three.

    Source: Schulman 2020, "Approximating KL divergence"; on gradients arXiv 2512.21852.

    >>> kl_estimates(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), estimator="k2")
    tensor([[2.]])
    """
    difference = policy_logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.exp(-difference) - 1 + difference
    raise ConfigError(f"KL estimator is {estimator!r}; expected 'k1', 'k2' or 'k3'")


def kl_penalised_rewards(
    token_scores: Float[Tensor, "batch time"],
    kl: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    kl_coef: float,
) -> Float[Tensor, "batch time"]:
    """Token scores minus the price of leaving the reference.

        r_t = s_t − β_KL · k_t

    Args:
        token_scores: in nats.
        kl: per-token estimates in nats; what lies outside the mask is ignored.
        response_mask: True on response tokens.
        kl_coef: price of one nat.

    Returns:
        Token rewards in nats, zero outside the mask.

    Source: Ziegler et al. 2019, arXiv 1909.08593, equation 2.

    >>> scores, kl = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 9.0]])
    >>> kl_penalised_rewards(scores, kl, torch.tensor([[True, False]]), kl_coef=0.1)
    tensor([[0.8000, 0.0000]])
    """
    return (token_scores - kl_coef * kl).masked_fill(~response_mask, 0.0)


def adapted_kl_coef(
    kl_coef: float, observed_kl: float, *, kl_target: float, responses: int, horizon: int
) -> float:
    """The KL coefficient moved so that the next batch comes nearer to the target.

        β ← β · (1 + clip(KL / KL_target − 1, ±0.2) · n / H)

    Args:
        kl_coef: the present coefficient.
        observed_kl: mean KL per response, in nats.
        kl_target: wanted KL per response, in nats.
        responses: how many responses the observation is a mean of.
        horizon: responses over which a full correction is spread.

    Returns:
        The next coefficient.

    Raises:
        ConfigError: `kl_target` or `horizon` is not positive.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.

    >>> adapted_kl_coef(0.2, 9.0, kl_target=6.0, responses=100, horizon=1000)
    0.20400000000000001
    """
    if kl_target <= 0 or horizon <= 0:
        raise ConfigError(
            f"kl_target is {kl_target} and horizon {horizon}; expected positive numbers"
        )
    error = min(max(observed_kl / kl_target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * responses / horizon)


def potential_shaping(
    potentials: Float[Tensor, "batch time_plus_1"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards that change what is learned when, but not which policy is best.

        F_t = γ Φ(s_{t+1}) − Φ(s_t),   Φ(s_{T+1}) = 0

    Args:
        potentials: column t is the potential of the state before response token t; the last
            column is not read for a full row, its state being terminal. The mask must have no
            holes.
        response_mask: True on response tokens.
        gamma: discount of the return that the policy maximises.

    Returns:
        Rewards to add; their discounted sum is minus the potential of the prompt.

    Source: Ng, Harada and Russell 1999, "Policy invariance under reward transformations".

    >>> potential_shaping(torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([[True, True]]))
    tensor([[ 3., -4.]])
    """
    goes_on = torch.cat([response_mask[:, 1:], torch.zeros_like(response_mask[:, :1])], dim=-1)
    after = potentials[:, 1:].masked_fill(~goes_on, 0.0)
    return (gamma * after - potentials[:, :-1]).masked_fill(~response_mask, 0.0)


def blended_scores(
    token_scores: Float[Tensor, "batch time"],
    terminal_scores: Float[Tensor, "batch time"],
    *,
    share: float,
) -> Float[Tensor, "batch time"]:
    """A convex mixture of a dense credit with another, usually the terminal one.

        r'_t = α r_t + (1 − α) R · 1[t = T]

    Args:
        token_scores: of the dense method, in nats.
        terminal_scores: of `terminal_credit`, or any other credit of the same responses.
        share: α, from 0 (all terminal) to 1.

    Returns:
        Token scores in nats. A row sums to what it summed to if both did.

    Raises:
        ConfigError: `share` lies outside [0, 1].
        ShapeError: the two differ in shape.

    >>> blended_scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]]), share=0.5)
    tensor([[0.5000, 2.5000]])
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"share is {share}; expected a number from 0 to 1")
    if token_scores.shape != terminal_scores.shape:
        raise ShapeError(
            f"token_scores have shape {tuple(token_scores.shape)} and terminal_scores "
            f"{tuple(terminal_scores.shape)}; expected scores of the same responses"
        )
    return share * token_scores.float() + (1 - share) * terminal_scores.float()
