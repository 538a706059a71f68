"""Per-token losses of PPO; the caller sums them over the mask and divides by its token count.

They are left unreduced so that micro-batches can be accumulated to exactly the full batch.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_policy_losses(
    policy_logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    clip_eps: float = 0.2,
) -> Float[Tensor, "batch time"]:
    """The clipped surrogate of PPO, as a loss.

        L_t = −min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t),   ρ_t = π(y_t | s_t) / π_old(y_t | s_t)

    Args:
        policy_logprobs: of the current policy, in nats.
        old_logprobs: of the policy that drew the tokens.
        advantages: treated as constants.
        response_mask: True on response tokens; anything may stand outside.
        clip_eps: half-width of the trusted range of the ratio.

    Returns:
        Losses, zero outside the mask.

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7.

    >>> one, mask = torch.ones(1, 1), torch.tensor([[True]])
    >>> clipped_policy_losses(one, 0 * one, 2 * one, mask)
    tensor([[-2.4000]])
    """
    log_ratios = (policy_logprobs - old_logprobs).masked_fill(~response_mask, 0.0)
    ratios = log_ratios.exp()
    gains = advantages.detach().masked_fill(~response_mask, 0.0)
    return -torch.minimum(ratios * gains, ratios.clamp(1 - clip_eps, 1 + clip_eps) * gains)


def clipped_value_losses(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    value_clip_eps: float | None = 0.2,
) -> Float[Tensor, "batch time"]:
    """Half the squared error of the critic, the worse of clipped and unclipped.

        L_t = 1/2 · max((V_t − G_t)², (clip(V_t, V_{old,t} ± ε_v) − G_t)²)

    Args:
        values: of the current critic, in nats.
        old_values: at rollout.
        returns: to regress on; constants.
        response_mask: True on response tokens; anything may stand outside.
        value_clip_eps: how far a value may move per update, in nats; None does not clip. It is in
            the unit of the reward, so it must fit its scale.

    Returns:
        Losses, zero outside the mask.

    Source: the PPO of OpenAI baselines; Schulman et al. 2017, arXiv 1707.06347, has no such clip.

    >>> one, mask = torch.ones(1, 1), torch.tensor([[True]])
    >>> clipped_value_losses(3 * one, one, 2 * one, mask)
    tensor([[0.5000]])
    """
    errors = (values - returns.detach()).masked_fill(~response_mask, 0.0).square()
    if value_clip_eps is None:
        return errors / 2
    near = old_values + (values - old_values).clamp(-value_clip_eps, value_clip_eps)
    clipped = (near - returns.detach()).masked_fill(~response_mask, 0.0).square()
    return torch.maximum(errors, clipped) / 2


def clipped_tokens(
    policy_logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    clip_eps: float = 0.2,
) -> Float[Tensor, ""]:
    """Number of response tokens whose ratio lies outside the trusted range.

    A count, so that it adds up over micro-batches; divide by the number of tokens.

    >>> clipped_tokens(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), torch.tensor([[True, True]]))
    tensor(1.)
    """
    ratios = (policy_logprobs - old_logprobs).masked_fill(~response_mask, 0.0).exp()
    return ((ratios - 1).abs() > clip_eps).float().sum()
