"""The highest-scored tokens of a document against the tokens that people marked.

Areas under curves (`tokencredit.evaluation.agreement`) ask about every threshold; these ask about
one choice of tokens. Every number is per document, NaN where it is not defined.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import NumericError
from tokencredit.evaluation.agreement import Direction


def highest_tokens(
    token_scores: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    counts: Int[Tensor, "batch"],
    *,
    direction: Direction = "high",
) -> Bool[Tensor, "batch time"]:
    """The given number of tokens of each document, the highest-scored first.

    Args:
        token_scores: in any unit.
        mask: True on tokens that count; what lies outside it is not read.
        counts: how many tokens of each document; no more are taken than it has.
        direction: "high", or first the lowest ("low") or those farthest from zero ("magnitude").

    Returns:
        True on the tokens taken. Of equal scores the earlier token is taken: add noise to the
        scores where another order is wanted.

    Raises:
        NumericError: a score inside the mask is NaN or infinite.

    >>> scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    >>> highest_tokens(scores, torch.ones(1, 4).bool(), torch.tensor([1]))
    tensor([[False,  True, False, False]])
    """
    infinite = (~token_scores.isfinite() & mask).any(-1)
    if bool(infinite.any()):
        raise NumericError(
            f"rows {infinite.nonzero().flatten().tolist()} hold a NaN or infinite score inside the "
            "mask; expected finite scores: mask the tokens that have none"
        )
    directed = token_scores.abs() if direction == "magnitude" else token_scores
    directed = -directed if direction == "low" else directed
    order = directed.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(-1) < counts[:, None]) & mask


def as_many_as_marked(
    token_scores: Float[Tensor, "batch time"],
    token_labels: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    direction: Direction = "high",
) -> Bool[Tensor, "batch time"]:
    """The highest-scored tokens of each document, as many as are marked in it.

    Nothing is tuned by it, and precision, recall and F1 are the same number.

    Args:
        token_scores: in any unit.
        token_labels: True on marked tokens.
        mask: True on tokens that count; what lies outside it is not read.
        direction: as in `highest_tokens`.

    Returns:
        True on the tokens taken, as many in each row as are marked inside the mask.

    Raises:
        NumericError: a score inside the mask is NaN or infinite.

    >>> scores, labels = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, True, False]])
    >>> as_many_as_marked(scores, labels, torch.ones(1, 3).bool())
    tensor([[ True, False,  True]])
    """
    marked = (token_labels & mask).sum(-1)
    return highest_tokens(token_scores, mask, marked, direction=direction)


def span_iou(
    predicted_mask: Bool[Tensor, "batch time"],
    token_labels: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch"]:
    """Tokens both predicted and marked, as a share of those that are either.

        |P ∩ L| / |P ∪ L|

    Args:
        predicted_mask: True on predicted tokens.
        token_labels: True on marked tokens.
        mask: True on tokens that count; what lies outside it is not read.

    Returns:
        Shares in [0, 1]; NaN where nothing is predicted and nothing marked.

    Source: Jaccard 1912, "The distribution of the flora in the alpine zone". DeYoung et al. 2020,
    arXiv 1911.03429, take it between single spans and count those above one half; here it is
    between all predicted and all marked tokens of a document.

    >>> predicted, labels = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]])
    >>> span_iou(predicted, labels, torch.ones(1, 3).bool())
    tensor([0.3333])
    """
    both = (predicted_mask & token_labels & mask).sum(-1)
    return both / ((predicted_mask | token_labels) & mask).sum(-1)


def token_f1(
    predicted_mask: Bool[Tensor, "batch time"],
    token_labels: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch"]:
    """Harmonic mean of the precision and the recall of the predicted tokens.

        2 |P ∩ L| / (|P| + |L|)

    Args:
        predicted_mask: True on predicted tokens.
        token_labels: True on marked tokens.
        mask: True on tokens that count; what lies outside it is not read.

    Returns:
        Numbers in [0, 1]; NaN where nothing is predicted and nothing marked.

    Source: DeYoung et al. 2020, arXiv 1911.03429, token-level F1, macro-averaged by their code:
    take the mean over documents. It counts a document with nothing predicted and nothing marked
    as 0.

    >>> predicted, labels = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]])
    >>> token_f1(predicted, labels, torch.ones(1, 3).bool())
    tensor([0.5000])
    """
    both = (predicted_mask & token_labels & mask).sum(-1)
    return 2 * both / ((predicted_mask & mask).sum(-1) + (token_labels & mask).sum(-1))
