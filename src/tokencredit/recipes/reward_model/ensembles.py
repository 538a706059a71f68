"""Several heads on one trunk, which learn from the same pairs and score them in one pass.

Follows the linear-layer ensemble of Zhang et al. 2024 (arXiv 2401.16635): one trunk, and heads that
differ by how they begin. Departures: the loss is the mean of the heads' losses and not their sum,
which under AdamW is the same but for clipped gradients; and heads can have data of their own, by
weights of a bootstrap.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.recipes.reward_model.examples import judgements_of
from tokencredit.recipes.reward_model.head_settings import EnsembleSettings
from tokencredit.reward_model.objectives import Judgements

BOOTSTRAP = "bootstrap"
"""Column of a batch: how often each pair counts for each head."""


def several_heads(heads: int, *, name: str = "head") -> dict[str, Any]:
    """What the configuration says of a head with an output of each member; of one, a plain head.

    Args:
        heads: how many there are.
        name: of a member, before its number.

    >>> several_heads(2)["id2label"]
    {0: 'head-1', 1: 'head-2'}
    """
    if heads == 1:
        return {"num_labels": 1}
    names = [f"{name}-{number + 1}" for number in range(heads)]
    return {
        "num_labels": heads,
        "id2label": dict(enumerate(names)),
        "label2id": {name: output for output, name in enumerate(names)},
        "problem_type": "regression",
    }


def bootstrap_weights(
    pairs: int, settings: EnsembleSettings, *, seed: int
) -> Float[Tensor, "pairs heads"] | None:
    """How often each pair counts for each head; None where every pair counts once.

    Args:
        pairs: how many there are.
        settings: of the ensemble.
        seed: another one draws other numbers.

    Source: the Poisson bootstrap, whose counts are those of drawing with replacement from many
    rows.

    >>> bootstrap_weights(3, EnsembleSettings(2, bootstrap=True), seed=0).shape
    torch.Size([3, 2])
    """
    if not settings.bootstrap:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.ones(pairs, settings.heads), generator=generator)


def loss_of_heads(
    loss: Callable[[Judgements], Float[Tensor, ""]],
    scores: Float[Tensor, "texts time heads"],
    inputs: dict[str, Tensor],
) -> Float[Tensor, ""]:
    """The mean over heads of the loss that each would have alone.

    Args:
        loss: of one head's scores.
        scores: of all heads, where they are read.
        inputs: the batch; `BOOTSTRAP` of it multiplies the strengths of pairs, head by head.
    """
    losses = []
    for head, own in enumerate(scores.unbind(-1)):
        judgements = judgements_of(own, inputs)
        if BOOTSTRAP in inputs:
            counts = inputs[BOOTSTRAP][:, head]
            judgements = replace(judgements, strengths=judgements.strengths * counts)
        losses.append(loss(judgements))
    return torch.stack(losses).mean()
