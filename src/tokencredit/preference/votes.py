"""What several reward models say together of a preference, and what becomes of the pair.

Every model gives every pair a lead, the score of the preferred answer less that of the other. Where
the mean lead is negative, the label is probably wrong.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, DataError
from tokencredit.names import require_named

SoftLabel = Literal["probabilities", "votes"]
"""How leads become a probability: the mean of what each model says, or the share of models."""


@dataclass(frozen=True)
class Votes:
    """What became of pairs whose leads several models gave.

    Attributes:
        mean: of the leads, in nats; of a pair that was exchanged that of the exchanged pair.
        std: of the leads over the models, in nats, with the number of models as divisor.
        margin: by how much the preferred answer should win, in nats.
        preferred: the probability that the preferred answer is the better one.
        flipped: True on pairs whose answers were exchanged.
        dropped: True on pairs that are left out.
    """

    mean: Float[Tensor, "pairs"]
    std: Float[Tensor, "pairs"]
    margin: Float[Tensor, "pairs"]
    preferred: Float[Tensor, "pairs"]
    flipped: Bool[Tensor, "pairs"]
    dropped: Bool[Tensor, "pairs"]


def votes_on_pairs(
    leads: Float[Tensor, "models pairs"],
    *,
    flip: float = 0.0,
    drop: float = 0.0,
    soft_label: SoftLabel = "probabilities",
) -> Votes:
    """The strength of each preference by the leads that several models give it.

        μ_i = mean_m δ_im,   s_i = sqrt(mean_m (δ_im − μ_i)²),   δ_im = R_m(x, y_w) − R_m(x, y_l)

    The pairs of lowest μ are exchanged, which turns the sign of their leads; the pairs next to them
    are left out. Ties go by the order of the pairs.

    Args:
        leads: δ, in nats. Models whose scores have other units weigh as much as these are large.
        flip: share of the pairs to exchange, from 0 to below 1; rounded down.
        drop: share of the pairs to leave out; rounded down.
        soft_label: p is `probabilities`, mean_m σ(δ_im), or `votes`, the share of models with a
            positive lead, a lead of 0 counting half.

    Returns:
        Numbers of the pairs as they are after the exchange. The margin is μ, and |μ| where a pair
        was exchanged: one that was exchanged against the votes still has a margin above 0.

    Raises:
        ConfigError: a share is outside [0, 1), both make 1 or more, or no such soft label.
        DataError: there is no model, or a lead is NaN or infinite.

    Source: Wang et al. 2024, arXiv 2401.06080, section 2.1: mean and standard deviation of ten
    models, the lowest tenth of pairs flipped, margins from the mean. What margin a flipped pair
    has, and soft labels of single pairs, are choices of ours: the paper smooths all labels alike.

    >>> votes = votes_on_pairs(torch.tensor([[2.0, -3.0], [0.0, -1.0]]), flip=0.5)
    >>> votes.mean, votes.std, votes.flipped
    (tensor([1., 2.]), tensor([1., 1.]), tensor([False,  True]))
    """
    require_shares(flip, drop)
    require_named("soft_label", soft_label, ("probabilities", "votes"))
    if not len(leads) or not bool(leads.isfinite().all()):
        raise DataError(
            f"{len(leads)} models gave {leads.shape[1]} pairs leads, "
            f"{int((~leads.isfinite()).sum())} of them NaN or infinite; expected at least one "
            "model, and finite leads"
        )
    count = leads.shape[1]
    order = leads.double().mean(0).argsort(stable=True)
    first = _whole(flip * count)
    second = first + _whole(drop * count)
    flipped, dropped = (torch.zeros_like(order, dtype=torch.bool) for _ in range(2))
    flipped[order[:first]] = True
    dropped[order[first:second]] = True
    turned = torch.where(flipped, -leads, leads)
    mean = turned.mean(0)
    said = turned.sigmoid() if soft_label == "probabilities" else (turned.sign() + 1) / 2
    return Votes(
        mean,
        turned.std(0, correction=0),
        torch.where(flipped, mean.abs(), mean),
        said.mean(0),
        flipped,
        dropped,
    )


def _whole(pairs: float) -> int:
    """Rounded down, but for what a product of floats lacks of a whole number."""
    return int(pairs + 1e-9)


def require_shares(flip: float, drop: float) -> None:
    """Raise ConfigError if shares of pairs are none, or leave no pair as it is.

    Args:
        flip: share to exchange.
        drop: share to leave out.
    """
    if not (0 <= flip < 1 and 0 <= drop < 1 and flip + drop < 1):
        raise ConfigError(
            f"flip is {flip} and drop {drop}; expected shares of the pairs from 0 to below 1, "
            "below 1 together"
        )
