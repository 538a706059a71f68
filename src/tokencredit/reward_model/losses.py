"""What reward models are trained to lower: on whole responses, or on every prefix of them.

Prefix losses take scores whose column i belongs to the prefix that ends with response token i. A
causal model gives all of them in one forward pass.
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from tokencredit.masking import masked_mean, masked_row_mean


def bradley_terry_loss(
    chosen_scores: Float[Tensor, "batch"],
    rejected_scores: Float[Tensor, "batch"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Mean negative log-likelihood of the preferences under Bradley-Terry.

    .. math:: -\log \sigma(R(x, y_w) - R(x, y_l) - m)

    Args:
        chosen_scores: of the preferred responses, in nats.
        rejected_scores: of the others, in nats.
        margin: by how much the preferred ones should win, in nats; None for 0.

    Returns:
        Nats per pair, in float32; log 2 where the scores are equal.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1; the margin is
    that of Touvron et al. 2023, arXiv 2307.09288, equation 2.

    >>> bradley_terry_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, -97.0]))
    tensor(0.3466)
    """
    return -logsigmoid(_lead(chosen_scores, rejected_scores, margin)).mean()


def prefix_bradley_terry_loss(
    chosen_prefix_scores: Float[Tensor, "batch chosen_time"],
    rejected_prefix_scores: Float[Tensor, "batch rejected_time"],
    chosen_mask: Bool[Tensor, "batch chosen_time"],
    rejected_mask: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Bradley-Terry on prefixes of equal length, averaged over lengths and then over pairs.

    .. math::
        -\frac{1}{n} \sum_{i=1}^{n}
        \log \sigma(R(x, y_w^{\le i}) - R(x, y_l^{\le i}) - m), \quad n = \max(|y_w|, |y_l|)

    An answer that has ended keeps its last score against the longer one. Prefixes that are the
    same on both sides cost log 2 and have no gradient.

    Args:
        chosen_prefix_scores: of the preferred responses, in nats.
        rejected_prefix_scores: of the others, in nats.
        chosen_mask: True on tokens of the preferred responses, which start in column 0.
        rejected_mask: True on tokens of the others.
        margin: by how much the preferred ones should win, in nats; None for 0.

    Returns:
        Nats per prefix, in float32; `bradley_terry_loss` where every response is one token long.

    Source: Rashid et al. 2024, arXiv 2406.07780, where a prefix behind the end of an answer is
    padded; here its score is held, and the sum over lengths is a mean, so that long answers do not
    weigh more than short ones.

    >>> chosen, rejected = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0]])
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> prefix_bradley_terry_loss(chosen, rejected, mask, mask[:, :1])
    tensor(0.4100)
    """
    time = max(chosen_mask.shape[-1], rejected_mask.shape[-1])
    chosen_mask, rejected_mask = _widened(chosen_mask, time), _widened(rejected_mask, time)
    chosen = held_prefix_scores(_widened(chosen_prefix_scores, time), chosen_mask)
    rejected = held_prefix_scores(_widened(rejected_prefix_scores, time), rejected_mask)
    lead = _lead(chosen, rejected, None if margin is None else margin[:, None])
    return masked_row_mean(-logsigmoid(lead), chosen_mask | rejected_mask).mean()


def held_prefix_scores(
    prefix_scores: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Prefix scores with every column that does not count showing the last one that did.

    Args:
        prefix_scores: in nats; where the mask is False they may hold anything, NaN included.
        mask: True on response tokens.

    Returns:
        Scores in nats; constant behind the end of a response, zero before its start.

    >>> held_prefix_scores(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[1., 2., 2.]])
    """
    columns = torch.arange(mask.shape[-1], device=mask.device)
    last_counted = torch.where(mask, columns, -1).cummax(-1).values
    held = prefix_scores.gather(-1, last_counted.clamp(min=0))
    return torch.where(last_counted >= 0, held, 0.0)


def classification_loss(
    scores: Float[Tensor, "batch"], labels: Num[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Mean cross-entropy of a score read as the log-odds of a good response.

    .. math:: -y \log \sigma(R) - (1 - y) \log(1 - \sigma(R))

    Args:
        scores: in nats.
        labels: 1 good, 0 bad, or a probability between them.

    Returns:
        Nats per response, in float32.

    Source: logistic regression (Berkson 1944); the sentiment reward of arXiv 2402.00782.

    >>> classification_loss(torch.tensor([0.0, 99.0]), torch.tensor([0, 1]))
    tensor(0.3466)
    """
    return binary_cross_entropy_with_logits(scores.float(), labels.float())


def prefix_classification_loss(
    prefix_scores: Float[Tensor, "batch time"],
    labels: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""Cross-entropy of every prefix against the label of the whole, averaged per response.

    .. math::
        -\frac{1}{T} \sum_t [y \log \sigma(R_t) + (1 - y) \log(1 - \sigma(R_t))], \quad
        R_t = R(x, y^{\le t})

    Its optimum is the log-odds of a good response given what has been seen of it.

    Args:
        prefix_scores: in nats.
        labels: 1 good, 0 bad, or a probability between them.
        mask: True on response tokens.

    Returns:
        Nats per prefix, in float32; `classification_loss` where every response is one token long.

    >>> mask = torch.tensor([[True, True, False]])
    >>> prefix_classification_loss(torch.tensor([[0.0, 99.0, -5.0]]), torch.tensor([1]), mask)
    tensor(0.3466)
    """
    scores = prefix_scores.float().masked_fill(~mask, 0.0)
    targets = labels.float()[:, None].expand_as(scores)
    losses = binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return masked_row_mean(losses, mask).mean()


def centering_loss(
    chosen_scores: Float[Tensor, "*axes"],
    rejected_scores: Float[Tensor, "*axes"],
    mask: Bool[Tensor, "*axes"],
) -> Float[Tensor, ""]:
    r"""Mean squared sum of the two scores of each pair, which Bradley-Terry leaves free.

    .. math:: (R(x, y_w) + R(x, y_l))^2

    Args:
        chosen_scores: in nats.
        rejected_scores: in nats.
        mask: True on pairs, or prefixes of pairs, that count.

    Returns:
        Squared nats, in float32; zero where each pair's scores are opposite.

    Source: Eisenstein et al. 2023, arXiv 2312.09244, section on centred reward models.

    >>> centering_loss(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([True]))
    tensor(4.)
    """
    sums = (chosen_scores.float() + rejected_scores.float()).masked_fill(~mask, 0.0)
    return masked_mean(sums.square(), mask)


def _lead(chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
    lead = chosen.float() - rejected.float()
    return lead if margin is None else lead - margin.float()


def _widened(values: Tensor, time: int) -> Tensor:
    """Rows with columns that do not count added on the right."""
    missing = values.new_zeros((len(values), time - values.shape[-1]))
    return torch.cat([values, missing], dim=-1)
