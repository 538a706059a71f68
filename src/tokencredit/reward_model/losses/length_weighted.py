"""Losses in which longer prefixes of a response weigh more."""

from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from tokencredit.masking import masked_sum


def length_weights(mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """The share of each prefix in the loss of its response, in proportion to its length.

    wₜ = t / (T (T + 1) / 2), t = 1, …, T

    Args:
        mask: True on response tokens; others are skipped as if they were not there.

    Returns:
        Float32, zero outside the mask; the weights of a response sum to one.

    Source: Deng and Raffel 2023, arXiv 2310.09520 (RAD), the weights of the cumulative squared
    error.

    >>> import torch
    >>> length_weights(torch.tensor([[True, True, False]]))
    tensor([[0.3333, 0.6667, 0.0000]])
    """
    places = mask.cumsum(-1).where(mask, 0).float()
    return places / places.sum(-1, keepdim=True).clamp(min=1.0)


def length_weighted_regression_loss(
    prefix_scores: Float[Tensor, "batch time"],
    ratings: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Squared error of every prefix against the rating of the whole, longer ones weighing more.

    Σₜ wₜ (Rₜ - g)², wₜ = t / (T (T + 1) / 2)

    Early prefixes, of which nobody can know how they end, cost little; the whole response costs
    most. Its optimum is that of `prefix_regression_loss`, the mean rating of what begins so; with
    few data or a small model the two differ in where the errors lie.

    Args:
        prefix_scores: in units of the ratings.
        ratings: of each response.
        mask: True on response tokens.

    Returns:
        Squared units per response, in float32; `regression_loss` where every response is one token
        long.

    Source: Deng and Raffel 2023, arXiv 2310.09520 (RAD), the training of the reward model.

    >>> import torch
    >>> mask = torch.tensor([[True, True, False]])
    >>> length_weighted_regression_loss(torch.tensor([[4.0, 2.0, 9.0]]), torch.tensor([1.0]), mask)
    tensor(3.6667)
    """
    errors = prefix_scores.float().masked_fill(~mask, 0.0) - ratings.float()[:, None]
    return masked_sum(errors.square() * length_weights(mask), mask).mean()


def length_weighted_classification_loss(
    prefix_scores: Float[Tensor, "batch time"],
    labels: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Cross-entropy of every prefix against the label of the whole, longer ones weighing more.

    -Σₜ wₜ [y log σ(Rₜ) + (1 - y) log(1 - σ(Rₜ))], wₜ = t / (T (T + 1) / 2)

    Args:
        prefix_scores: log-odds, in nats.
        labels: 1 good, 0 bad, or a probability between them.
        mask: True on response tokens.

    Returns:
        Nats per response, in float32; `classification_loss` where every response is one token long.

    Source: ours, from RAD of Deng and Raffel 2023, arXiv 2310.09520, with the loss of labels.

    >>> import torch
    >>> mask = torch.tensor([[True, True]])
    >>> length_weighted_classification_loss(torch.zeros(1, 2), torch.tensor([1.0]), mask)
    tensor(0.6931)
    """
    scores = prefix_scores.float().masked_fill(~mask, 0.0)
    targets = labels.float()[:, None].expand_as(scores)
    losses = binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return masked_sum(losses * length_weights(mask), mask).mean()
