"""The whole score on the last token: what RLHF does when nobody asks for more."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ShapeError
from tokencredit.masking import last_true_index


def score_column(
    sequence_scores: Float[Tensor, "batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch 1"]:
    """Sequence scores in float32 as a column to multiply a (batch, time) tensor with.

    Raises:
        ShapeError: there is not one score per response; broadcasting would hide it.

    >>> score_column(torch.tensor([2.0]), torch.tensor([[True, True]]))
    tensor([[2.]])
    """
    if sequence_scores.shape != response_mask.shape[:1]:
        raise ShapeError(
            f"sequence_scores have shape {tuple(sequence_scores.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one score per response"
        )
    return sequence_scores.float()[:, None]


def terminal_credit(
    sequence_scores: Float[Tensor, "batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    r"""Each sequence score on the last response token, zero elsewhere.

    .. math:: r_t = R \cdot 1[t = T]

    Conserves: yes. Causal: yes. Bounded: by |R|. Needs: sequence scores.

    Args:
        sequence_scores: in nats.
        response_mask: True on response tokens.

    Returns:
        Token scores in nats; each row sums to its sequence score. A row without response tokens is
        all zero.

    Raises:
        ShapeError: there is not one score per response.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.

    >>> terminal_credit(torch.tensor([2.0]), torch.tensor([[True, True, False]]))
    tensor([[0., 2., 0.]])
    """
    time = torch.arange(response_mask.shape[-1], device=response_mask.device)
    is_last = time == last_true_index(response_mask)[:, None]
    return torch.where(is_last, score_column(sequence_scores, response_mask), 0.0)
