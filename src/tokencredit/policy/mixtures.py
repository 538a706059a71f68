"""Policies made of two others: the opponent that a policy is compared with."""

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError


def geometric_mixture_logits(
    policy_logits: Float[Tensor, "*batch vocab"],
    ref_logits: Float[Tensor, "*ref_batch ref_vocab"],
    *,
    reference_share: float,
) -> Float[Tensor, "*batch vocab"]:
    """Logits of the geometric mixture of a policy and its reference at one token.

        π_mix(a | s) ∝ π(a | s)^{1 − α} π_ref(a | s)^α

    A mixture of the logits is one of the log-probabilities: their normalisers are the same for all
    tokens. A whole response that is drawn token by token so is not one of the mixture of whole
    responses, which nobody can draw.

    Args:
        policy_logits: where the next token is predicted.
        ref_logits: of the reference, likewise.
        reference_share: α, from 0, the policy, to 1, the reference.

    Returns:
        Float32.

    Raises:
        ConfigError: the share lies outside [0, 1].
        ShapeError: the logits differ in shape.

    Source: Munos et al. 2024, arXiv 2312.00886, Nash-MD, which mixes at each token in practice.

    >>> policy, ref = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.2, 0.8]).log()
    >>> geometric_mixture_logits(policy, ref, reference_share=0.5).softmax(-1)
    tensor([0.5000, 0.5000])
    """
    if not 0 <= reference_share <= 1:
        raise ConfigError(f"reference_share is {reference_share}; expected a share from 0 to 1")
    if policy_logits.shape != ref_logits.shape:
        raise ShapeError(
            f"logits have shape {tuple(policy_logits.shape)} and those of the reference "
            f"{tuple(ref_logits.shape)}; expected the same vocabulary and rows"
        )
    return torch.lerp(policy_logits.float(), ref_logits.float(), reference_share)
