"""How a credit lies on a response: on the last token, or spread out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.masking import last_true_index


def last_token_share(
    token_scores: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch"]:
    """Share of the absolute credit of each response that its last token holds.

    >>> last_token_share(torch.tensor([[1.0, -3.0]]), torch.tensor([[True, True]]))
    tensor([0.7500])
    """
    size = token_scores.abs().masked_fill(~mask, 0.0)
    last = size.gather(-1, last_true_index(mask).clamp(min=0)[:, None]).squeeze(-1)
    return last / size.sum(-1).clamp(min=1e-12)


def credit_entropy(
    token_scores: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch"]:
    """Entropy, in nats, of the shares of absolute credit: 0 for one token, log T for even ones.

    >>> credit_entropy(torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]]))
    tensor([0.6931])
    """
    size = token_scores.abs().masked_fill(~mask, 0.0)
    shares = size / size.sum(-1, keepdim=True).clamp(min=1e-12)
    return -torch.special.xlogy(shares, shares).sum(-1)
