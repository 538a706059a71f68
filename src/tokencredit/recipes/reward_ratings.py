"""Ratings in the unit that is learnt, and the scores of a model in the unit of its ratings.

Ratings are learnt in standard deviations above their mean. Afterwards the head is scaled, so that a
score is a rating above the mean; the mean, for which a head without bias has no place, stands in
the configuration of the model.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from tokencredit.errors import DataError
from tokencredit.recipes.reward_examples import Judged
from tokencredit.reward_model.hf_architecture import HEADS


def in_standard_deviations(model: PreTrainedModel, judged: Sequence[Judged]) -> list[Judged]:
    """Ratings as they are learnt; the model's configuration keeps what undoes it.

    Raises:
        DataError: all ratings are the same.
    """
    ratings = torch.tensor([one.target for one in judged], dtype=torch.float64)
    mean, spread = float(ratings.mean()), float(ratings.std(correction=0))
    if spread == 0:
        raise DataError(
            f"all {len(judged)} ratings are {mean:g}; expected different ones: name another "
            "rating_column"
        )
    model.config.rating_mean, model.config.rating_standard_deviation = mean, spread
    return [replace(one, target=(one.target - mean) / spread) for one in judged]


def require_an_order(judged: Sequence[Judged]) -> None:
    """Held-out ratings, if there are any, differ.

    Raises:
        DataError: they do not.
    """
    if judged and len({one.target for one in judged}) == 1:
        raise DataError(
            f"{len(judged)} held-out responses, all of them rated alike; expected at least two "
            "ratings: hold more of them out, or none (held_out=0)"
        )


def scale_scores(model: PreTrainedModel, factor: float) -> None:
    """Multiply every score of a model by a factor, in the last layer of its head.

    Args:
        model: with a head of linear layers.
        factor: the standard deviation of ratings, to turn what was learnt into their unit.
    """
    heads = [module for name, module in model.named_children() if name in HEADS]
    *_, last = (layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for weight in last.parameters():
            weight.mul_(factor)
