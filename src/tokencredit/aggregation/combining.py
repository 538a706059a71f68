"""Several rewards of the same text combined into one, before credit is given."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError


def combined_scores(
    scores: Float[Tensor, "batch models"],
    *,
    how: Literal["mean", "min", "mean-minus-variance"],
    variance_coef: float = 0.1,
) -> Float[Tensor, "batch"]:
    r"""One score per response from those of several reward models.

    .. math:: \bar r = \tfrac{1}{M} \sum_m r_m, \qquad \min_m r_m, \qquad
        \bar r - \lambda \tfrac{1}{M} \sum_m (r_m - \bar r)^2

    Combine the scores of whole responses and give credit afterwards: the least of the models'
    scores token by token is no credit of the least score.

    Args:
        scores: in nats, brought to a common scale before (`normalised_scores`, model by model).
        how: "mean", "min" (worst case, WCO) or "mean-minus-variance" (uncertainty-weighted, UWO).
        variance_coef: lambda, per nat; read by the last one only.

    Returns:
        Sequence scores in nats.

    Raises:
        ConfigError: `how` is none of the three, or `variance_coef` negative.

    Source: Coste et al. 2024, arXiv 2310.02743, mean, WCO and UWO. Their best-of-n code takes the
    population variance, as here, and their PPO code the unbiased one, larger by M / (M - 1); their
    settings have lambda 0.5 for best-of-n and 0.1 for PPO.

    >>> combined_scores(torch.tensor([[1.0, 3.0]]), how="mean-minus-variance", variance_coef=0.5)
    tensor([1.5000])
    """
    if variance_coef < 0:
        raise ConfigError(f"variance_coef is {variance_coef}; expected 0 or more")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if how == "mean":
        return scores.mean(-1)
    if how == "min":
        return scores.amin(-1)
    if how == "mean-minus-variance":
        return scores.mean(-1) - variance_coef * scores.var(-1, correction=0)
    raise ConfigError(f"how is {how!r}; expected 'mean', 'min' or 'mean-minus-variance'")
