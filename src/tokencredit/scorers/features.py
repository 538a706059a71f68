"""A model of features as a reward in Python: a function says the features, the model the score."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.evaluation.prefix_accuracy import FRACTIONS
from tokencredit.reward_model.features import feature_model_of
from tokencredit.scorers.feature_folders import FEATURE_FILE
from tokencredit.scorers.functions import named_function

Features = Callable[[list[Any], list[str]], Sequence[Sequence[float]]]
"""From prompts and responses to as many numbers for each."""


def features_of(
    function: Features, prompts: Sequence[Prompt], responses: Sequence[str], *, name: str
) -> Float[Tensor, "texts features"]:
    """What a function says of these texts.

    Args:
        function: that says it.
        prompts: texts or conversations.
        responses: one per prompt.
        name: of the function, for messages.

    Raises:
        DataError: it does not give as many finite numbers for each text.
    """
    found = function(list(prompts), list(responses))
    try:
        table = torch.tensor([[float(one) for one in row] for row in found], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} gives {list(found)[:2]!r:.200}; expected a list of numbers for each text, all "
            "of the same length"
        ) from error
    if table.ndim != 2 or len(table) != len(responses) or not bool(table.isfinite().all()):
        raise DataError(
            f"{name} gives features of shape {tuple(table.shape)} for {len(responses)} texts, some "
            "of which may not be finite; expected as many finite numbers for each"
        )
    return table


def feature_reward(folder: str) -> Callable[[list[Any], list[str]], list[float]]:
    """The reward that the model in a folder gives, by the function that it was trained with.

    Args:
        folder: of `train-feature-model`.

    Raises:
        DataError: the folder holds no model of features.
        ConfigError: the function is not there.
    """
    path = Path(folder) / FEATURE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        name = str(values["function"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected a folder of train-feature-model"
        ) from error
    model, function = feature_model_of(values["model"]), named_function(name)

    def reward(prompts: list[Any], responses: list[str]) -> list[float]:
        table = features_of(function, prompts, responses, name=f"the function {name}")
        found: list[float] = model.scores(table).tolist()
        return found

    return reward


def feature_fraction_scores(
    reward: Callable[[list[Any], list[str]], list[float]],
    prompts: Sequence[Prompt],
    responses: Sequence[str],
) -> Float[Tensor, "texts fractions"]:
    """Score of each response when the beginnings `FRACTIONS` of its words have been seen, in nats.

    A model of features has no tokens, so that words stand in their place: whatever stands between
    white space.

    Args:
        reward: of a text, such as `feature_reward` gives it.
        prompts: texts or conversations.
        responses: one per prompt.
    """
    columns = [
        reward(list(prompts), [_beginning(response, fraction) for response in responses])
        for fraction in FRACTIONS
    ]
    return torch.tensor(columns).T


def _beginning(text: str, fraction: float) -> str:
    """The first words of a text, at least one: `fraction` of all, and for 1 the text unchanged."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    seen = max(1, math.ceil(fraction * len(ends) - 1e-9))
    return text if seen >= len(ends) else text[: ends[seen - 1]]
