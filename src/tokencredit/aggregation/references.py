"""Scores seen from those of the reference policy's own responses to the same prompt.

A reward model is trusted where the policy began. How far a response is above the reference's own
responses to its prompt is bounded by what follows here, however far its score runs away: these are
transforms against overoptimisation. They act number by number, on sequence scores and on prefix
scores alike, so that transformed prefix scores are still a potential: their differences are causal,
and sum to the transformed score less that of the prompt.

Scores of a response that could not be scored are NaN and are left out.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokencredit.errors import ConfigError, DataError


def win_probabilities(
    scores: Float[Tensor, "batch *columns"],
    reference_scores: Float[Tensor, "batch references"],
    *,
    slope: float = 1.0,
) -> Float[Tensor, "batch *columns"]:
    """How probably a response is better than one of the reference policy (PAR).

        s' = 1/M Σ_m σ(k (s − s_m))

    Of a reward model in the sense of Bradley and Terry it is that probability, for k = 1. The
    reference's own response has 1/2 where it is the only one.

    Args:
        scores: in nats; sequence scores, or prefix scores of the same responses.
        reference_scores: of the reference's responses to the prompt of each row, in nats; NaN for
            those that could not be scored.
        slope: k, per nat.

    Returns:
        Float32, between 0 and 1, rising with the score.

    Raises:
        ConfigError: `slope` is not positive.
        DataError: a row has no reference score.

    Source: Fu et al. 2025, arXiv 2502.18770, preference as reward. Theirs is for scores of whole
    responses; prefix scores are ours.

    >>> win_probabilities(torch.tensor([2.0]), torch.tensor([[2.0, 0.0]]))
    tensor([0.6904])
    """
    if not slope > 0:
        raise ConfigError(f"slope is {slope}; expected a positive number per nat")
    known = _known(reference_scores)
    columns = (...,) + (None,) * (scores.ndim - 1)
    # (batch, references, *columns)
    above = _in_float32(scores)[:, None] - reference_scores.nan_to_num()[columns]
    wins = (slope * above).sigmoid() * known[columns]
    return wins.sum(1) / known.sum(1)[columns]


def win_margins(
    scores: Float[Tensor, "batch *columns"],
    opponent_scores: Float[Tensor, "batch opponents"],
    *,
    slope: float = 1.0,
) -> Float[Tensor, "batch *columns"]:
    """How much more probably than not a response beats those of an opponent (Nash-MD).

        s' = 1/M Σ_m σ(k (s − s_m)) − 1/2

    Against a policy that is as good it is 0 on average. Applied to prefix scores it is a potential,
    so that its differences pay every token and sum to the margin above that of the prompt.

    Args:
        scores: in nats; sequence scores, or prefix scores of the same responses.
        opponent_scores: of the opponent's responses to the prompt of each row, in nats; NaN for
            those that could not be scored.
        slope: k, per nat.

    Returns:
        Float32, between −1/2 and 1/2.

    Raises:
        ConfigError: `slope` is not positive.
        DataError: a row has no score of the opponent.

    Source: Munos et al. 2024, arXiv 2312.00886, whose policy gradient weighs with P(y ≻ y') − 1/2.
    Theirs is for whole responses; prefix scores are ours.

    >>> win_margins(torch.tensor([2.0, 2.0]), torch.tensor([[2.0], [0.0]]))
    tensor([0.0000, 0.3808])
    """
    return win_probabilities(scores, opponent_scores, slope=slope) - 0.5


def log_win_probabilities(
    scores: Float[Tensor, "batch *columns"], reference_quantiles: Float[Tensor, "batch"]
) -> Float[Tensor, "batch *columns"]:
    """Log-sigmoids of scores above a good response of the reference policy (LSC).

        s' = log σ(s − q)

    Linear for what is worse than that response, flat for what is better: the reward goes to what
    is bad still. Of several reward models, add these up (`weighted_sum_scores`): the
    log-probability that a response is good by all of them.

    Args:
        scores: in nats; sequence scores, or prefix scores of the same responses.
        reference_quantiles: q of the prompt of each row, in nats.

    Returns:
        Float32, in nats, at most 0.

    Source: Wang et al. 2024, arXiv 2402.00742.

    >>> log_win_probabilities(torch.tensor([1.0, -9.0]), torch.tensor([1.0, 0.0]))
    tensor([-0.6931, -9.0001])
    """
    columns = (...,) + (None,) * (scores.ndim - 1)
    return logsigmoid(_in_float32(scores) - reference_quantiles[columns])


def reference_quantiles(
    reference_scores: Float[Tensor, "batch references"], *, quantile: float = 0.85
) -> Float[Tensor, "batch"]:
    """The score that a share of the reference's responses to each prompt does not reach.

        q = mean_m(s_m) + Φ⁻¹(p) · deviation_m(s_m)

    Args:
        reference_scores: of the reference's responses to the prompt of each row, in nats; NaN for
            those that could not be scored.
        quantile: p, of the normal distribution that is fitted to them.

    Returns:
        Float32, in nats.

    Raises:
        ConfigError: `quantile` lies outside (0, 1).
        DataError: a row has no reference score.

    Source: the quantile of 0.85 and the normal distribution are those of the code of PAR, arXiv
    2502.18770; the deviation here is the population's.

    >>> reference_quantiles(torch.tensor([[1.0, 3.0]]), quantile=0.5)
    tensor([2.])
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile is {quantile}; expected a number between 0 and 1")
    known, scores = _known(reference_scores), _in_float32(reference_scores).nan_to_num()
    count = known.sum(1)
    mean = (scores * known).sum(1) / count
    variance = ((scores - mean[:, None]).square() * known).sum(1) / count
    above = torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64))
    return mean + float(above) * variance.sqrt()


def _known(reference_scores: Float[Tensor, "batch references"]) -> Tensor:
    """True for scores that are there.

    Raises:
        DataError: a row has none.
    """
    known = ~reference_scores.isnan()
    without = (~known.any(-1)).nonzero().flatten().tolist()
    if without:
        raise DataError(
            f"rows {without[:10]} have no score of a response of the reference; expected at least "
            "one to each prompt"
        )
    return known


def _in_float32(scores: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
