"""The score of a text joined with those of texts that are like it (RewardFusion)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError


def near_texts(
    similarities: Float[Tensor, "texts neighbours"], *, least: float = 0.9, most: int = 5
) -> Bool[Tensor, "texts neighbours"]:
    """The neighbours of each text: the likest ones, of those that are like enough.

    Args:
        similarities: cosines; minus infinity for what is no neighbour whatever it is like.
        least: similarity of a neighbour at least, above 0.
        most: neighbours of a text at most, the first of equal ones.

    Raises:
        ConfigError: `least` is not in (0, 1], or `most` below 1.

    >>> near_texts(torch.tensor([[0.95, 0.2, 1.0]]), most=1)
    tensor([[False, False,  True]])
    """
    if not 0 < least <= 1 or most < 1:
        raise ConfigError(
            f"least is {least} and most {most}; expected a cosine above 0 and at most 1, and at "
            "least 1 neighbour"
        )
    order = similarities.argsort(dim=-1, descending=True, stable=True)
    places = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return (similarities >= least) & (places < most)


def fused_scores(
    scores: Float[Tensor, "texts *columns"],
    neighbour_scores: Float[Tensor, "neighbours *columns"],
    similarities: Float[Tensor, "texts neighbours"],
    *,
    least: float = 0.9,
    most: int = 5,
) -> Float[Tensor, "texts *columns"]:
    """The mean of the score of a text and of those of its neighbours, by how like they are.

        R'(y) = (R(y) + Σ_i c_i R(y_i)) / (1 + Σ_i c_i)

    It is a score of whole texts: neighbours are found by all of a text, so no prefix has one of its
    own.

    Args:
        scores: of the texts, in nats.
        neighbour_scores: of the texts among which neighbours are looked for, by the same model.
        similarities: c, as in `near_texts`.
        least: as there.
        most: as there.

    Returns:
        Fused scores in nats, between the least and the greatest of those that are joined; without
        a neighbour the score as it is.

    Raises:
        ConfigError: as `near_texts`.
        ShapeError: scores and similarities are of other texts.

    Source: Shen et al. 2023, arXiv 2309.16155 (RewardFusion) and its code, where the text itself
    has the weight 1 and neighbours are training texts.

    >>> own, near = torch.tensor([1.0]), torch.tensor([3.0, 99.0])
    >>> fused_scores(own, near, torch.tensor([[1.0, 0.5]]))
    tensor([2.])
    """
    if similarities.shape != (len(scores), len(neighbour_scores)):
        raise ShapeError(
            f"similarities have shape {tuple(similarities.shape)} for {len(scores)} texts and "
            f"{len(neighbour_scores)} neighbours; expected a row of each text"
        )
    near = near_texts(similarities, least=least, most=most)
    weights = similarities.double().masked_fill(~near, 0.0)
    columns = (-1,) + (1,) * (scores.ndim - 1)
    joined = scores.double() + torch.tensordot(weights, neighbour_scores.double(), dims=1)
    return (joined / (1 + weights.sum(-1)).view(columns)).to(scores)
