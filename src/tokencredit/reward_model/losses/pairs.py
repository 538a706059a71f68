"""What reward models are trained to lower: on whole responses, on every prefix, at segment ends.

Prefix losses take scores whose column i belongs to the prefix that ends with response token i. A
causal model gives all of them in one forward pass. Losses whose targets come from the model itself
are in `values`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokencredit.errors import DataError
from tokencredit.masking import masked_mean, masked_row_mean


def bradley_terry_loss(
    chosen_scores: Float[Tensor, "batch"],
    rejected_scores: Float[Tensor, "batch"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    strength: Float[Tensor, "batch"] | None = None,
    preferred: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the preferences under Bradley-Terry.

        −s · [p log σ(d) + (1 − p) log σ(−d)],   d = R(x, y_w) − R(x, y_l) − m

    Args:
        chosen_scores: of the preferred responses, in nats.
        rejected_scores: of the others, in nats.
        margin: m, by how much the preferred ones should win, in nats; None for 0.
        strength: s, how strong each preference is, such as 1, 2 or 3; None for 1.
        preferred: p, the probability that the preferred responses are the better ones; None for 1.

    Returns:
        Nats per pair, in float32; log 2 where d is 0 and the strength 1. Where p is above 0 and
        below 1, it is least at the lead m + log(p / (1 − p)).

    Raises:
        DataError: a probability is outside [0, 1].

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1; the margin is
    that of Touvron et al. 2023, arXiv 2307.09288, equation 2; the strength that of the scaled
    Bradley-Terry loss of Wang et al. 2024, arXiv 2410.01257, which is not divided by its mean. A
    probability that all pairs share is the label smoothing of Wang et al. 2024, arXiv 2401.06080,
    whose margins from votes stand outside the logarithm, where they have no gradient: here inside.

    >>> bradley_terry_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, -97.0]))
    tensor(0.3466)
    """
    losses = bradley_terry_losses(
        chosen_scores, rejected_scores, margin=margin, preferred=preferred
    )
    return _weighted_losses(losses, strength).mean()


def bradley_terry_losses(
    chosen_scores: Float[Tensor, "batch"],
    rejected_scores: Float[Tensor, "batch"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    preferred: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """What each pair costs, of which `bradley_terry_loss` is the mean weighted by strengths.

    Args:
        chosen_scores: of the preferred responses, in nats.
        rejected_scores: of the others, in nats.
        margin: as there.
        preferred: as there.

    Returns:
        Nats, in float32.

    Raises:
        DataError: a probability is outside [0, 1].

    Source: as `bradley_terry_loss`.

    >>> bradley_terry_losses(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor([0.6931, 0.1269])
    """
    return _lead_losses(_lead(chosen_scores, rejected_scores, margin), preferred)


def prefix_bradley_terry_loss(
    chosen_prefix_scores: Float[Tensor, "batch chosen_time"],
    rejected_prefix_scores: Float[Tensor, "batch rejected_time"],
    chosen_mask: Bool[Tensor, "batch chosen_time"],
    rejected_mask: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    strength: Float[Tensor, "batch"] | None = None,
    preferred: Float[Tensor, "batch"] | None = None,
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
        preferred: the probability that each preference is right, as there; None for 1.

    Returns:
        Nats per prefix, in float32; `bradley_terry_loss` where every response is one token long.

    Raises:
        DataError: a probability is outside [0, 1].

    Source: Rashid et al. 2024, arXiv 2406.07780. In their code every pair of prefixes is an example
    of its own, and a prefix after the end of an answer is padded with end-of-sequence tokens
    (`tokencredit.preference.pairs` makes those); here the score of an ended answer is held,
    and the sum over lengths is a mean, so that long answers do not weigh more than short ones.

    >>> chosen, rejected = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0]])
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> prefix_bradley_terry_loss(chosen, rejected, mask, mask[:, :1])
    tensor(0.4100)
    """
    losses = prefix_bradley_terry_losses(
        chosen_prefix_scores,
        rejected_prefix_scores,
        chosen_mask,
        rejected_mask,
        margin=margin,
        preferred=preferred,
    )
    return _weighted_losses(losses, strength).mean()


def prefix_bradley_terry_losses(
    chosen_prefix_scores: Float[Tensor, "batch chosen_time"],
    rejected_prefix_scores: Float[Tensor, "batch rejected_time"],
    chosen_mask: Bool[Tensor, "batch chosen_time"],
    rejected_mask: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    preferred: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """What each pair costs, of which `prefix_bradley_terry_loss` is the mean weighted by strengths.

    Args:
        chosen_prefix_scores: of the preferred responses, in nats.
        rejected_prefix_scores: of the others, in nats.
        chosen_mask: True on tokens of the preferred responses, which start in column 0.
        rejected_mask: True on tokens of the others.
        margin: as there.
        preferred: as there.

    Returns:
        Nats per prefix of each pair, in float32.

    Raises:
        DataError: a probability is outside [0, 1].

    Source: as `prefix_bradley_terry_loss`.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> prefix_bradley_terry_losses(torch.zeros(1, 2), torch.zeros(1, 2), mask, mask)
    tensor([0.6931])
    """
    time = max(chosen_mask.shape[-1], rejected_mask.shape[-1])
    chosen_mask, rejected_mask = (
        _widened_rows(chosen_mask, time),
        _widened_rows(rejected_mask, time),
    )
    chosen = held_prefix_scores(_widened_rows(chosen_prefix_scores, time), chosen_mask)
    rejected = held_prefix_scores(_widened_rows(rejected_prefix_scores, time), rejected_mask)
    margin, preferred = (None if said is None else said[:, None] for said in (margin, preferred))
    losses = _lead_losses(_lead(chosen, rejected, margin), preferred)
    return masked_row_mean(losses, chosen_mask | rejected_mask)


def segment_bradley_terry_loss(
    chosen_prefix_scores: Float[Tensor, "batch chosen_time"],
    rejected_prefix_scores: Float[Tensor, "batch rejected_time"],
    chosen_ends: Bool[Tensor, "batch chosen_time"],
    rejected_ends: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
    strength: Float[Tensor, "batch"] | None = None,
    preferred: Float[Tensor, "batch"] | None = None,
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
        preferred: the probability that each preference is right, as there; None for 1.

    Returns:
        Nats per pair, in float32; `bradley_terry_loss` where every response is one segment.

    Raises:
        DataError: a probability is outside [0, 1].

    Source: Yin et al. 2025, arXiv 2501.02790, segment reward model with the average as aggregation.

    >>> scores, ends = torch.tensor([[2.0, 9.0, 4.0]]), torch.tensor([[True, False, True]])
    >>> segment_bradley_terry_loss(scores, scores - 3, ends, ends)
    tensor(0.0486)
    """
    chosen = masked_row_mean(chosen_prefix_scores.float(), chosen_ends)
    rejected = masked_row_mean(rejected_prefix_scores.float(), rejected_ends)
    return bradley_terry_loss(
        chosen, rejected, margin=margin, strength=strength, preferred=preferred
    )


def segment_leads(
    prefix_scores: Float[Tensor, "batch columns"],
    starts: Int[Tensor, "batch"],
    ends: Int[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """How much a segment of each text gains, to compare segments of different texts by.

        q = V(s_end) − V(s_start)

    Two segments are then a pair of `bradley_terry_loss`: the negative regret of a segment without
    rewards of its own, where V is the value and transitions are known. Of whole responses to one
    prompt V(s_start) is the same on both sides, and the loss that of their scores.

    Args:
        prefix_scores: V, in nats; column 0 is the prompt alone, column t what follows token t.
        starts: tokens before the segment.
        ends: tokens before its end, the segment included.

    Returns:
        Nats, in float32; a constant added to all scores changes nothing.

    Raises:
        DataError: a segment ends before it starts, or outside the columns.

    Source: Knox et al. 2022, arXiv 2206.02231, with a prefix score in the place of the optimal
    value and no rewards inside the segment.

    >>> segment_leads(torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([1]), torch.tensor([2]))
    tensor([5.])
    """
    columns = prefix_scores.shape[1]
    fits = (starts >= 0) & (starts <= ends) & (ends < columns)
    if not bool(fits.all()):
        at = int((~fits).nonzero()[0])
        raise DataError(
            f"a segment goes from {int(starts[at])} to {int(ends[at])} in a text of {columns - 1} "
            "tokens; expected a start from 0, and an end from there to the number of tokens"
        )
    scores = prefix_scores.float()
    ends_of, starts_of = (scores.gather(1, at[:, None])[:, 0] for at in (ends, starts))
    return ends_of - starts_of


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


def _lead_losses(lead: Tensor, preferred: Tensor | None) -> Tensor:
    """What leads cost; with all probabilities 1 the same bits as without them."""
    if preferred is None:
        return -logsigmoid(lead)
    if not bool(((preferred >= 0) & (preferred <= 1)).all()):
        raise DataError(
            f"preferred goes from {float(preferred.min()):g} to {float(preferred.max()):g}; "
            "expected probabilities, from 0 to 1, that the preferred responses are the better ones"
        )
    share = preferred.float()
    return -(share * logsigmoid(lead) + (1 - share) * logsigmoid(-lead))


def _weighted_losses(losses: Tensor, strength: Tensor | None) -> Tensor:
    return losses if strength is None else losses * strength.float()


def _widened_rows(values: Tensor, time: int) -> Tensor:
    """Rows with columns that do not count added on the right."""
    missing = values.new_zeros((len(values), time - values.shape[-1]))
    return torch.cat([values, missing], dim=-1)
