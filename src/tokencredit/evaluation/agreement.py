"""How well token scores agree with labels of tokens, or with other token scores.

Every number is per document: documents differ in length and in how much is marked, and a mean over
documents says what a reader of one of them would see. A number that is not defined for a document
(nothing is marked, all scores are equal) is NaN; take `nanmean`. For one number over all tokens
together pass them as a single row.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import NumericError

Direction = Literal["high", "low", "magnitude"]


def token_auroc(
    token_scores: Float[Tensor, "batch time"],
    token_labels: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    direction: Direction = "high",
) -> Float[Tensor, "batch"]:
    """Chance that a marked token scores higher than an unmarked one of the same document.

        1 / (n₊ n₋) · Σ_{i ∈ +} Σ_{j ∈ −} (1[s_i > s_j] + 1/2 · 1[s_i = s_j])

    Args:
        token_scores: in any unit.
        token_labels: True on marked tokens.
        mask: True on tokens that count; what lies outside it is not read.
        direction: marked tokens are expected to score "high", "low" (spans of errors) or far from
            zero ("magnitude").

    Returns:
        Areas in [0, 1], 0.5 by chance; NaN where no token or every token is marked.

    Raises:
        NumericError: a score inside the mask is NaN or infinite.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".

    >>> scores, labels = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, False, False]])
    >>> token_auroc(scores, labels, torch.ones(1, 3).bool())
    tensor([1.])
    """
    areas = []
    for scores, labels in _documents(_directed(token_scores, direction), token_labels, mask):
        marked, unmarked = labels.sum(), (~labels).sum()
        rank_sum = _midranks(scores)[labels].sum()
        areas.append((rank_sum - marked * (marked + 1) / 2) / (marked * unmarked))
    return _stacked(areas, token_scores)


def token_average_precision(
    token_scores: Float[Tensor, "batch time"],
    token_labels: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    direction: Direction = "high",
) -> Float[Tensor, "batch"]:
    """Precision among the highest tokens of a document, averaged over its marked tokens.

        Σ_k (recall_k − recall_{k−1}) · precision_k

    with k running over the distinct scores from high to low, so that ties have no order.

    Args:
        token_scores: in any unit.
        token_labels: True on marked tokens.
        mask: True on tokens that count; what lies outside it is not read.
        direction: as in `token_auroc`.

    Returns:
        Precisions in (0, 1], by chance the marked share; NaN where no token is marked.

    Raises:
        NumericError: a score inside the mask is NaN or infinite.

    >>> scores, labels = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, True]])
    >>> token_average_precision(scores, labels, torch.ones(1, 3).bool())
    tensor([0.8333])
    """
    precisions = []
    for scores, labels in _documents(_directed(token_scores, direction), token_labels, mask):
        _, level, size = torch.unique(-scores, return_inverse=True, return_counts=True)
        hits = torch.zeros(len(size), dtype=torch.float64, device=scores.device)
        hits.index_add_(0, level, labels.double())
        precision = hits.cumsum(0) / size.cumsum(0)
        precisions.append((hits * precision).sum() / hits.sum())
    return _stacked(precisions, token_scores)


def pearson_correlation(
    token_scores: Float[Tensor, "batch time"],
    true_scores: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch"]:
    """Linear correlation of two scores over the tokens of each document.

        Σ_t (s_t − mean s)(u_t − mean u) / √(Σ_t (s_t − mean s)² · Σ_t (u_t − mean u)²)

    Args:
        token_scores: in any unit.
        true_scores: what they are compared with, in any unit.
        mask: True on tokens that count; what lies outside it is not read.

    Returns:
        Correlations in [-1, 1]; NaN where either is constant over the document.

    Raises:
        NumericError: a score inside the mask is NaN or infinite.

    >>> scores, truth = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]])
    >>> pearson_correlation(scores, truth, torch.ones(1, 3).bool())
    tensor([1.])
    """
    documents = _documents(token_scores, true_scores, mask)
    correlations = [_correlation(scores, truth.double()) for scores, truth in documents]
    return _stacked(correlations, token_scores)


def spearman_correlation(
    token_scores: Float[Tensor, "batch time"],
    true_scores: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch"]:
    """Linear correlation of the ranks of two scores; equal scores share their mean rank.

    Args:
        token_scores: in any unit.
        true_scores: what they are compared with, in any unit.
        mask: True on tokens that count; what lies outside it is not read.

    Returns:
        Correlations in [-1, 1]; NaN where either is constant over the document.

    Raises:
        NumericError: a score inside the mask is NaN or infinite.

    Source: Spearman 1904, "The proof and measurement of association between two things".

    >>> scores, truth = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 4.0, 5.0]])
    >>> spearman_correlation(scores, truth, torch.ones(1, 3).bool())
    tensor([1.])
    """
    correlations = [
        _correlation(_midranks(scores), _midranks(truth))
        for scores, truth in _documents(token_scores, true_scores, mask)
    ]
    return _stacked(correlations, token_scores)


def _directed(token_scores: Tensor, direction: Direction) -> Tensor:
    if direction == "magnitude":
        return token_scores.abs()
    return token_scores if direction == "high" else -token_scores


def _documents(token_scores: Tensor, others: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The unmasked entries of each row, the scores in float64."""
    documents = []
    for row, (scores, other, counted) in enumerate(zip(token_scores, others, mask, strict=True)):
        scores, other = scores[counted].double(), other[counted]
        if not bool((scores.isfinite() & other.isfinite()).all()):
            raise NumericError(
                f"row {row} holds a NaN or infinite score inside the mask; expected finite "
                "scores: mask the tokens that have none"
            )
        documents.append((scores, other))
    return documents


def _midranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, level, size = torch.unique(values, return_inverse=True, return_counts=True)
    last_rank = size.cumsum(0)
    return (last_rank - (size - 1) / 2).double()[level]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    constant = len(first) == 0 or bool((first == first[0]).all() | (second == second[0]).all())
    first, second = first - first.mean(), second - second.mean()
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return torch.full_like(scale, torch.nan) if constant else (first @ second) / scale


def _stacked(numbers: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(numbers).float() if numbers else like.new_zeros(0)
