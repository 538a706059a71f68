"""The loss of a policy that learns to say again what was good."""

from jaxtyping import Bool, Float
from torch import Tensor


def likelihood_losses(
    policy_logprobs: Float[Tensor, "batch time"],
    weights: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Negative log-likelihoods of response tokens, each with its weight.

        L_t = −w_t log π(y_t | s_t)

    Args:
        policy_logprobs: of the current policy, in nats.
        weights: of the tokens, 1 for plain likelihood; treated as constants.
        response_mask: True on response tokens; anything may stand outside.

    Returns:
        Losses, zero outside the mask.

    Source: with weights of 1, on the best of several responses: Dong et al. 2023, arXiv 2304.06767
    (RAFT), and the rejection sampling of Touvron et al. 2023, arXiv 2307.09288.

    >>> import torch
    >>> likelihood_losses(torch.tensor([[-2.0]]), torch.tensor([[0.5]]), torch.tensor([[True]]))
    tensor([[1.]])
    """
    logprobs = policy_logprobs.masked_fill(~response_mask, 0.0)
    return -weights.detach().masked_fill(~response_mask, 0.0) * logprobs
