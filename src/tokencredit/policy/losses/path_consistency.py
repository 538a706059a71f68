"""The loss of soft Q-learning: a policy whose logits are values, and what ties these together.

With an entropy that earns a price, the best policy, its values and the rewards keep to one equation
along every path, whoever drew the path. So responses of others teach as well as the policy's own.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Consistency = Literal["both", "single-step", "multi-step"]
"""Over how many tokens the equation is to hold: one, all up to the end, or the mean of both."""


def path_consistency_losses(
    log_ratios: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    target_log_ratios: Float[Tensor, "batch time"],
    target_values: Float[Tensor, "batch time"],
    rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    consistency: Consistency = "both",
    reversed_share: float = 0.5,
) -> Float[Tensor, "batch time"]:
    """How far a policy is from the one that is best at a price of its entropy or of its KL.

        single-step   e_t = k_t − (r_t + V(s_{t+1}) − V(s_t))
        multi-step    e_t = Σ_{u≥t} k_u − (Σ_{u≥t} r_u − V(s_t))
        loss_t        (1 − share) e_t(k, V̄)² + share · e_t(k̄, V)²

    k is log π, or log π / π_ref where the price is one of KL; V is the soft value, 0 after the last
    token; a bar marks those of a slow copy of the policy. Both errors are 0 at every token where
    π(a | s) ∝ π_ref(a | s) exp Q(s, a), of whatever policy the tokens were drawn. The first term
    teaches the policy, the reversed one the level of its values, which no log-probability shows:
    without it the optimum is reached from the policy's own responses alone.

    Args:
        log_ratios: k of the policy, in nats.
        values: V of the policy before each token, in nats.
        target_log_ratios: k̄ of the slow copy; constants.
        target_values: V̄ of the slow copy; constants.
        rewards: of the tokens, divided by the price of a nat.
        response_mask: True on response tokens; others are skipped as if they were not there.
        consistency: the single-step error, the multi-step one, or the mean of both squares.
        reversed_share: of the reversed term.

    Returns:
        Losses in squared nats, zero outside the mask.

    Source: Guo et al. 2022, arXiv 2106.07704 (the losses v2 and v3 of their code and the mean of
    both), after Nachum et al. 2017, arXiv 1702.08892. Their code pays the last token alone and
    leaves the reversed term out unless a coefficient is named; rewards on every token, and the
    ratio to a reference, are ours.

    >>> one = torch.ones(1, 1)
    >>> path_consistency_losses(-one, one, -one, one, 3 * one, one.bool())
    tensor([[9.]])
    """
    parts = (log_ratios, values, target_log_ratios.detach(), target_values.detach(), rewards)
    k, v, target_k, target_v, r = (part.masked_fill(~response_mask, 0.0) for part in parts)
    following = _next_index(response_mask)

    def squares(ratios: Tensor, levels: Tensor) -> Tensor:
        after = torch.cat([levels, torch.zeros_like(levels[:, :1])], dim=-1).gather(-1, following)
        single = ratios - (r + after - levels)
        several = (ratios - r).flip(-1).cumsum(-1).flip(-1) + levels
        kinds = {
            "single-step": single.square(),
            "multi-step": several.square(),
            "both": (single.square() + several.square()) / 2,
        }
        return kinds[consistency]

    losses = (1 - reversed_share) * squares(k, target_v)
    if reversed_share:
        losses = losses + reversed_share * squares(target_k, v)
    return losses.masked_fill(~response_mask, 0.0)


def _next_index(mask: Bool[Tensor, "batch time"]) -> Tensor:
    """Index of the next True after each column; the number of columns where there is none."""
    time = mask.shape[-1]
    positions = torch.arange(time, device=mask.device)
    here = torch.where(mask, positions, time)
    from_here_on = here.flip(-1).cummin(-1).values.flip(-1)
    none = torch.full_like(from_here_on[:, :1], time)
    return torch.cat([from_here_on[:, 1:], none], dim=-1)
