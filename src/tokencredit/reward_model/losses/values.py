"""Losses whose targets come from the model itself: the score of a prefix learns from the next one.

A prefix model trained against the outcome of the whole (`prefix_classification_loss`,
`prefix_regression_loss`) averages over all endings it has seen. One that learns from its own score
one token later needs no more data of an ending than of its last step, and its errors travel.
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.reward_model.losses.targets import prefix_cross_entropy, prefix_squared_error


def bootstrapped_targets(
    prefix_values: Float[Tensor, "batch time"],
    outcomes: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    bootstrap_lambda: float = 0.0,
) -> Float[Tensor, "batch time"]:
    """What each prefix should predict: the value of the next one, the outcome at the end.

        G_T = R,   G_t = (1 − λ) V(y^{≤t+1}) + λ G_{t+1}

    Tokens outside the mask are skipped as if they were not there.

    Args:
        prefix_values: what the model says of the prefix that ends with each response token, in the
            unit of the outcomes: a rating, or a probability where outcomes are labels.
        outcomes: of each response.
        mask: True on response tokens.
        bootstrap_lambda: 0 takes the next value alone, 1 the outcome for every prefix.

    Returns:
        Targets in float32, zero outside the mask, without gradient: the next value is a constant.

    Raises:
        ConfigError: `bootstrap_lambda` lies outside [0, 1].

    Source: Sutton 1988, Machine Learning 3, TD(λ), with one reward at the end and no
    discount; at 0 the target of CD-Q, Mudgal et al. 2023, arXiv 2310.17022, where the next value is
    the mean over the base policy's next tokens and here the value of the one that it wrote.

    >>> values, mask = torch.tensor([[0.2, 0.4, 0.7]]), torch.ones(1, 3, dtype=torch.bool)
    >>> bootstrapped_targets(values, torch.tensor([1.0]), mask)
    tensor([[0.4000, 0.7000, 1.0000]])
    """
    if not 0.0 <= bootstrap_lambda <= 1.0:
        raise ConfigError(f"bootstrap_lambda is {bootstrap_lambda}; expected a number from 0 to 1")
    values = prefix_values.detach().float()
    targets = torch.zeros_like(values)
    target = outcomes.float()
    for t in reversed(range(values.shape[-1])):
        counts = mask[:, t]
        targets[:, t] = torch.where(counts, target, 0.0)
        earlier = torch.lerp(values[:, t], target, bootstrap_lambda)
        target = torch.where(counts, earlier, target)
    return targets


def q_value_loss(
    prefix_scores: Float[Tensor, "batch time"],
    ratings: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    bootstrap_lambda: float = 0.0,
) -> Float[Tensor, ""]:
    """Squared error of each prefix score against the next one, or the rating at the end.

        1/T · Σ_t (R_t − sg R_{t+1})²,   R_{T+1} = g

    Args:
        prefix_scores: in units of the ratings.
        ratings: of each response.
        mask: True on response tokens.
        bootstrap_lambda: as in `bootstrapped_targets`; 1 gives `prefix_regression_loss`.

    Returns:
        Squared units per prefix, in float32. No gradient flows through the targets: prefixes move
        towards what follows them, never the other way round.

    Raises:
        ConfigError: `bootstrap_lambda` lies outside [0, 1].

    Source: Mudgal et al. 2023, arXiv 2310.17022, the loss called CD-Q, with half the sum over
    prefixes where here is the mean, and with the policy's expectation where here is one sample of
    it: the same in the mean where responses are the policy's own.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> q_value_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([4.0]), mask)
    tensor(2.5000)
    """
    targets = bootstrapped_targets(prefix_scores, ratings, mask, bootstrap_lambda=bootstrap_lambda)
    return prefix_squared_error(prefix_scores, targets, mask)


def q_classification_loss(
    prefix_scores: Float[Tensor, "batch time"],
    labels: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    bootstrap_lambda: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of each prefix against the probability of the next, or the label at the end.

        1/T · Σ_t H(sg p_{t+1}, p_t),   p_t = σ(R_t),   p_{T+1} = y

    `q_value_loss` for labels: values are probabilities, so that their mean over endings is again a
    probability, while scores stay log-odds.

    Args:
        prefix_scores: log-odds, in nats.
        labels: 1 good, 0 bad, or a probability between them.
        mask: True on response tokens.
        bootstrap_lambda: as in `bootstrapped_targets`; 1 gives `prefix_classification_loss`.

    Returns:
        Nats per prefix, in float32.

    Raises:
        ConfigError: `bootstrap_lambda` lies outside [0, 1].

    Source: ours, from CD-Q of Mudgal et al. 2023, arXiv 2310.17022, with the loss of labels.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> q_classification_loss(torch.tensor([[7.0, 0.0]]), torch.tensor([1.0]), mask)
    tensor(2.0970)
    """
    targets = bootstrapped_targets(
        prefix_scores.float().sigmoid(), labels, mask, bootstrap_lambda=bootstrap_lambda
    )
    return prefix_cross_entropy(prefix_scores, targets, mask)
