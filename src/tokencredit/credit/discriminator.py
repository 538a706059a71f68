"""What a classifier of tokens, trained on edits, says of each token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ShapeError


def discriminator_credit(
    token_logits: Float[Tensor, "batch time 2"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    r"""Twice the probability that a token is a good one, less 1.

    .. math::
        r_t = 2 p_t - 1 = \tanh\left(\tfrac{1}{2} (z_t^+ - z_t^-)\right), \quad
        p_t = \mathrm{softmax}(z_t)^+

    Conserves: no. Causal: yes (if the classifier is). Bounded: by 1. Needs: token logits.

    A response is paid for every token, so a classifier that leans to one side pays for length, or
    against it.

    Args:
        token_logits: of a negative and a positive token, in nats, given by the classifier at the
            judged token itself.
        response_mask: True on response tokens.

    Returns:
        Token scores in [-1, 1]; 0 where the classifier cannot tell.

    Raises:
        ShapeError: there are not two logits for every token.

    Source: Yoon et al. 2024, arXiv 2407.16574 (TLCR). Their code applies the softmax twice, so that
    no score exceeds 0.462 in size, and lays the score of a token beside the log-prob of the next
    one; here there is one softmax, and the score belongs to the token that was judged.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 40.0]]])
    >>> discriminator_credit(logits, torch.tensor([[True, True]]))
    tensor([[0., 1.]])
    """
    if token_logits.shape != (*response_mask.shape, 2):
        raise ShapeError(
            f"token_logits have shape {tuple(token_logits.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected a negative and a positive logit per token"
        )
    logits = token_logits.float().masked_fill(~response_mask[:, :, None], 0.0)
    negative, positive = logits.unbind(-1)
    return torch.tanh((positive - negative) / 2)
