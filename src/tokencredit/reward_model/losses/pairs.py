"""What reward models are trained to lower: on whole responses, on every prefix, at segment ends.

Prefix losses take scores whose column i belongs to the prefix that ends with response token i. A
causal model gives all of them in one forward pass. Losses whose targets come from the model itself
are in `values`.
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, mse_loss

from tokencredit.masking import masked_mean, masked_row_mean


def bradley_terry_loss(
    chosen_scores: Float[Tensor, "batch"],
    rejected_scores: Float[Tensor, "batch"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    strength: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the preferences under Bradley-Terry.

        −s · log σ(R(x, y_w) − R(x, y_l) − m)

    Args:
        chosen_scores: of the preferred responses, in nats.
        rejected_scores: of the others, in nats.
        margin: m, by how much the preferred ones should win, in nats; None for 0.
        strength: s, how strong each preference is, such as 1, 2 or 3; None for 1.

    Returns:
        Nats per pair, in float32; log 2 where the scores are equal and the strength is 1.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1; the margin is
    that of Touvron et al. 2023, arXiv 2307.09288, equation 2; the strength that of the scaled
    Bradley-Terry loss of Wang et al. 2024, arXiv 2410.01257, which is not divided by its mean.

    >>> bradley_terry_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, -97.0]))
    tensor(0.3466)
    """
    losses = -logsigmoid(_lead(chosen_scores, rejected_scores, margin))
    return _weighted_losses(losses, strength).mean()


def prefix_bradley_terry_loss(
    chosen_prefix_scores: Float[Tensor, "batch chosen_time"],
    rejected_prefix_scores: Float[Tensor, "batch rejected_time"],
    chosen_mask: Bool[Tensor, "batch chosen_time"],
    rejected_mask: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    strength: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Bradley-Terry on prefixes of equal length, averaged over lengths and then over pairs.

        −1/n · Σ_{i=1..n} log σ(R(x, y_w^{≤i}) − R(x, y_l^{≤i}) − m),   n = max(|y_w|, |y_l|)

    An answer that has ended keeps its last score against the longer one. Prefixes that are the
    same on both sides cost log 2 and have no gradient.

    Args:
        chosen_prefix_scores: of the preferred responses, in nats.
        rejected_prefix_scores: of the others, in nats.
        chosen_mask: True on tokens of the preferred responses, which start in column 0.
        rejected_mask: True on tokens of the others.
        margin: by how much the preferred ones should win, in nats; None for 0.
        strength: the weight of each pair, as in `bradley_terry_loss`; None for 1.

    Returns:
        Nats per prefix, in float32; `bradley_terry_loss` where every response is one token long.

    Source: Rashid et al. 2024, arXiv 2406.07780. In their code every pair of prefixes is an example
    of its own, and a prefix after the end of an answer is padded with end-of-sequence tokens
    (`tokencredit.preference.pairs` makes those); here the score of an ended answer is held,
    and the sum over lengths is a mean, so that long answers do not weigh more than short ones.

    >>> chosen, rejected = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0]])
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> prefix_bradley_terry_loss(chosen, rejected, mask, mask[:, :1])
    tensor(0.4100)
    """
    time = max(chosen_mask.shape[-1], rejected_mask.shape[-1])
    chosen_mask, rejected_mask = (
        _widened_rows(chosen_mask, time),
        _widened_rows(rejected_mask, time),
    )
    chosen = held_prefix_scores(_widened_rows(chosen_prefix_scores, time), chosen_mask)
    rejected = held_prefix_scores(_widened_rows(rejected_prefix_scores, time), rejected_mask)
    lead = _lead(chosen, rejected, None if margin is None else margin[:, None])
    losses = masked_row_mean(-logsigmoid(lead), chosen_mask | rejected_mask)
    return _weighted_losses(losses, strength).mean()


def segment_bradley_terry_loss(
    chosen_prefix_scores: Float[Tensor, "batch chosen_time"],
    rejected_prefix_scores: Float[Tensor, "batch rejected_time"],
    chosen_ends: Bool[Tensor, "batch chosen_time"],
    rejected_ends: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    strength: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Bradley-Terry on the mean of the scores at the ends of segments.

        −log σ(M(y_w) − M(y_l) − m),   M(y) = 1/K · Σ_k R(x, y^{≤e_k})

    The score at the end of a segment becomes the reward of that segment; the score of a response
    is their mean, not what is read at its last token.

    Args:
        chosen_prefix_scores: of the preferred responses, in nats.
        rejected_prefix_scores: of the others, in nats.
        chosen_ends: True on the last token of each segment (`tokencredit.text.segments`).
        rejected_ends: the same for the others. A row without segments scores 0.
        margin: by how much the preferred ones should win, in nats; None for 0.
        strength: the weight of each pair, as in `bradley_terry_loss`; None for 1.

    Returns:
        Nats per pair, in float32; `bradley_terry_loss` where every response is one segment.

    Source: Yin et al. 2025, arXiv 2501.02790, segment reward model with the average as aggregation.

    >>> scores, ends = torch.tensor([[2.0, 9.0, 4.0]]), torch.tensor([[True, False, True]])
    >>> segment_bradley_terry_loss(scores, scores - 3, ends, ends)
    tensor(0.0486)
    """
    chosen = masked_row_mean(chosen_prefix_scores.float(), chosen_ends)
    rejected = masked_row_mean(rejected_prefix_scores.float(), rejected_ends)
    return bradley_terry_loss(chosen, rejected, margin=margin, strength=strength)


def held_prefix_scores(
    prefix_scores: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Prefix scores in which a column that does not count repeats the last one that did.

    Args:
        prefix_scores: in nats; where the mask is False they may hold anything, NaN included.
        mask: True on response tokens.

    Returns:
        Scores in nats; constant after the end of a response, zero before its start.

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
    """Mean cross-entropy of a score read as the log-odds of a good response.

        −y log σ(R) − (1 − y) log(1 − σ(R))

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

    >>> mask = torch.tensor([[True, True]])
    >>> prefix_squared_error(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), mask)
    tensor(5.)
    """
    errors = prefix_scores.float().masked_fill(~mask, 0.0) - targets.float().masked_fill(~mask, 0.0)
    return masked_row_mean(errors.square(), mask).mean()


def centering_loss(
    chosen_scores: Float[Tensor, "*axes"],
    rejected_scores: Float[Tensor, "*axes"],
    mask: Bool[Tensor, "*axes"],
) -> Float[Tensor, ""]:
    """Mean squared sum of the two scores of each pair, which Bradley-Terry leaves free.

        (R(x, y_w) + R(x, y_l))²

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


def _weighted_losses(losses: Tensor, strength: Tensor | None) -> Tensor:
    return losses if strength is None else losses * strength.float()


def _widened_rows(values: Tensor, time: int) -> Tensor:
    """Rows with columns that do not count added on the right."""
    missing = values.new_zeros((len(values), time - values.shape[-1]))
    return torch.cat([values, missing], dim=-1)
