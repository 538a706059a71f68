"""Losses of scores that have a target: the label or the rating of their response."""

from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from tokencredit.masking import masked_row_mean


def classification_loss(
    scores: Float[Tensor, "batch"], labels: Num[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of a score read as the log-odds of a good response.

        −y log σ(R) − (1 − y) log(1 − σ(R))

    Args:
        scores: in nats.
        labels: 1 good, 0 bad, or a probability between them.

    Returns:
        Nats per response, in float32.

    Source: logistic regression (Berkson 1944); the sentiment reward of arXiv 2402.00782.

    >>> import torch
    >>> classification_loss(torch.tensor([0.0, 99.0]), torch.tensor([0, 1]))
    tensor(0.3466)
    """
    return binary_cross_entropy_with_logits(scores.float(), labels.float())


def prefix_classification_loss(
    prefix_scores: Float[Tensor, "batch time"],
    labels: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Cross-entropy of every prefix against the label of the whole, averaged per response.

        −1/T · Σ_t [y log σ(R_t) + (1 − y) log(1 − σ(R_t))],   R_t = R(x, y^{≤t})

    Its optimum is the log-odds of a good response given what has been seen of it: it is the
    training of FUDGE, whose classifier guides decoding.

    Args:
        prefix_scores: in nats.
        labels: 1 good, 0 bad, or a probability between them.
        mask: True on response tokens.

    Returns:
        Nats per prefix, in float32; `classification_loss` where every response is one token long.

    Source: Yang and Klein 2021, arXiv 2104.05218, section 3 (FUDGE), where prefixes are summed and
    not averaged per response.

    >>> import torch
    >>> mask = torch.tensor([[True, True, False]])
    >>> prefix_classification_loss(torch.tensor([[0.0, 99.0, -5.0]]), torch.tensor([1]), mask)
    tensor(0.3466)
    """
    return prefix_cross_entropy(prefix_scores, labels[:, None].expand_as(prefix_scores), mask)


def prefix_cross_entropy(
    prefix_scores: Float[Tensor, "batch time"],
    targets: Num[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Cross-entropy of every prefix against a probability of its own, averaged per response.

    Args:
        prefix_scores: log-odds, in nats.
        targets: probabilities of a good response, for each prefix.
        mask: True on response tokens.

    Returns:
        Nats per prefix, in float32; `prefix_classification_loss` where a row has one target.

    >>> import torch
    >>> mask = torch.tensor([[True, True]])
    >>> prefix_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), mask)
    tensor(0.6931)
    """
    scores = prefix_scores.float().masked_fill(~mask, 0.0)
    targets = targets.float().masked_fill(~mask, 0.0)
    losses = binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return masked_row_mean(losses, mask).mean()


def regression_loss(
    scores: Float[Tensor, "batch"], ratings: Num[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """Mean squared error of a score against a rating.

        (R(x, y) − g)²

    Args:
        scores: in units of the ratings.
        ratings: of each response, standardised so that 1 is one standard deviation.

    Returns:
        Squared units per response, in float32.

    Source: Wang et al. 2024, arXiv 2406.08673 (HelpSteer2), regression reward models; here of one
    rating and not five.

    >>> import torch
    >>> regression_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.5000)
    """
    return mse_loss(scores.float(), ratings.float())


def prefix_regression_loss(
    prefix_scores: Float[Tensor, "batch time"],
    ratings: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Squared error of every prefix against the rating of the whole, averaged per response.

        1/T · Σ_t (R(x, y^{≤t}) − g)²

    Its optimum is the mean rating of the responses that begin so: a value function of whoever wrote
    them.

    Args:
        prefix_scores: in units of the ratings.
        ratings: of each response.
        mask: True on response tokens.

    Returns:
        Squared units per prefix, in float32; `regression_loss` where every response is one token
        long.

    Source: Mudgal et al. 2023, arXiv 2310.17022, the loss called CD-FUDGE, with half the sum over
    prefixes where here is the mean.

    >>> import torch
    >>> mask = torch.tensor([[True, True, False]])
    >>> prefix_regression_loss(torch.tensor([[0.0, 3.0, 9.0]]), torch.tensor([1.0]), mask)
    tensor(2.5000)
    """
    return prefix_squared_error(prefix_scores, ratings[:, None].expand_as(prefix_scores), mask)


def prefix_squared_error(
    prefix_scores: Float[Tensor, "batch time"],
    targets: Num[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Squared error of every prefix against a target of its own, averaged per response.

    Args:
        prefix_scores: in units of the targets.
        targets: for each prefix.
        mask: True on response tokens.

    Returns:
        Squared units per prefix, in float32.

    >>> import torch
    >>> mask = torch.tensor([[True, True]])
    >>> prefix_squared_error(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), mask)
    tensor(5.)
    """
    errors = prefix_scores.float().masked_fill(~mask, 0.0) - targets.float().masked_fill(~mask, 0.0)
    return masked_row_mean(errors.square(), mask).mean()
