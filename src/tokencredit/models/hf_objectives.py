"""Which score is meant of a model that has one of each of several objectives.

A head that ends in a linear layer says any weighted sum of its outputs by the weighted sum of its
rows. So a model that is asked for one objective, or for such a sum, becomes one with one output,
and whatever reads reward models reads it: at the last token, at every prefix, or next to a policy.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.heads import objective_names
from tokencredit.models.hf_loaded_weights import head_modules


def split_objectives(name_or_path: str | Path) -> tuple[str | Path, str]:
    """The name of a model, and what is asked of it: what stands after `#`, or an empty text.

    Args:
        name_or_path: a Hub id or a folder; a folder may have a `#` in its own name.

    >>> split_objectives("my/reward#helpful=0.7,short=0.3")
    ('my/reward', 'helpful=0.7,short=0.3')
    """
    name = str(name_or_path)
    if "#" not in name or Path(name).expanduser().is_dir():
        return name_or_path, ""
    place, _, asked = name.rpartition("#")
    return place, asked


def objective_weights(asked: str, names: Sequence[str]) -> list[float]:
    """How much each objective weighs in what is asked for.

    Args:
        asked: a name, or names with weights: `helpful=0.7,short=0.3`. Those not named weigh 0.
        names: of all objectives.

    Raises:
        ConfigError: there is no such objective, one is named twice, or a weight is no finite
            number.

    >>> objective_weights("short", ["helpful", "short"])
    [0.0, 1.0]
    >>> objective_weights("short=-2,helpful=0.5", ["helpful", "short"])
    [0.5, -2.0]
    """
    if asked in names:
        return [float(name == asked) for name in names]
    found: dict[str, float] = {}
    for part in asked.split(","):
        name, _, number = part.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if name not in names or name in found or not math.isfinite(weight):
            raise ConfigError(
                f"{part!r} of the objectives {asked!r} after the name of a model; expected one of "
                f"{', '.join(names)}, or each of some once with a number, as in '{names[0]}=0.7'"
            )
        found[name] = weight
    return [found.get(name, 0.0) for name in names]


def keep_one_score(model: PreTrainedModel, asked: str, *, name: str) -> None:
    """Make the weighted sum of some outputs the only output of a model.

    The score of a prefix is then the weighted sum of its scores by the objectives, and so are
    differences of them.

    Args:
        model: a classifier whose head ends in a linear layer.
        asked: as `objective_weights` reads it.
        name: of the model, for messages.

    Raises:
        ConfigError: as `objective_weights`.
        ModelError: its outputs are two classes, or its head does not end in a layer with a row of
            each of them.
    """
    config = model.config
    names = objective_names(config) or tuple(map(str, config.id2label.values()))
    if config.num_labels == 2 and not objective_names(config):
        raise ModelError(
            f"{asked!r} is asked of {name!r}, whose outputs are the two classes "
            f"{', '.join(names)} and make one score; expected a model of several objectives, or no "
            "'#' after its name"
        )
    weights = objective_weights(asked, names)
    layers = [layer for head in head_modules(model).values() for layer in head.modules()]
    last = next((layer for layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
    if last is None or last.out_features != len(names):
        raise ModelError(
            f"the head of {name!r} does not end in a linear layer with a row of each of "
            f"{', '.join(names)}; expected one, whose rows can be added up"
        )
    with torch.no_grad():
        for key, rows in list(last.named_parameters(recurse=False)):
            factors = torch.tensor(weights, dtype=torch.float64, device=rows.device)
            total = torch.tensordot(factors, rows.double(), dims=1)[None]  # 1, or 1 by width
            setattr(last, key, nn.Parameter(total.to(rows.dtype)))
    last.out_features = 1
    means = getattr(config, "rating_mean", None)
    config.num_labels, model.num_labels = 1, 1
    config.id2label, config.label2id = {0: asked}, {asked: 0}
    for key in ("rating_mean", "rating_standard_deviation"):
        vars(config).pop(key, None)
    if isinstance(means, list):
        config.rating_mean = math.fsum(w * mean for w, mean in zip(weights, means, strict=True))
