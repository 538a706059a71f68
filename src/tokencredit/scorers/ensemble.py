"""Several rewards of the same responses as one, with its scores of prefixes.

The scores of all sources stand in the same tokens: each was carried over to those of the policy
before (by a `RewardScorer`), and brought to a common scale (`transformed_scores`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.aggregation.methods import (
    AGGREGATIONS,
    CombinationSettings,
    combined_scores,
    require_weights,
)
from tokencredit.batch import ResponseScores
from tokencredit.errors import ConfigError, ShapeError
from tokencredit.models.hf_objectives import Join


def ensemble_scores(
    scores: Sequence[ResponseScores],
    weights: Sequence[float],
    settings: CombinationSettings,
) -> ResponseScores:
    """What several reward models say about the same responses, combined.

    Sequence scores and prefix scores are combined in the same way, so that the last prefix score
    of a response stays its sequence score. Sources of weight 0 are left out: they may lack what
    the others have.

    Args:
        scores: of each source, in the same tokens.
        weights: of the sources; each multiplies the scores of its source.
        settings: how weighted scores are combined.

    Returns:
        Scores in nats. Prefix scores are None where a source has none. Attention and what is
        quoted are those of the source that alone carries weight; of several there are none.

    Raises:
        ConfigError: a weight is NaN or infinite, or too few sources carry weight.
        ShapeError: there is not one weight per source, or the sources scored other responses.
    """
    _require_weights(len(scores), weights, settings)
    used = [one for one, weight in zip(scores, weights, strict=True) if weight != 0]
    combined = partial(_combined, weights=[w for w in weights if w != 0], settings=settings)
    sequences = [one.sequence_scores for one in used]
    prefixes = [one.prefix_scores for one in used if one.prefix_scores is not None]
    positions = None
    if any(one.position_scores is not None for one in used):
        read = [
            one.prefix_scores if one.position_scores is None else one.position_scores
            for one in used
        ]
        found = [numbers for numbers in read if numbers is not None]
        positions = combined(found) if len(found) == len(used) else None
    quoted = used[0].quoted_scores if len(used) == 1 else None
    return ResponseScores(
        combined(sequences),
        combined(prefixes) if len(prefixes) == len(used) else None,
        used[0].attention if len(used) == 1 else None,
        positions,
        quoted_scores=combined([quoted]) if quoted is not None else None,
    )


_OPTIONS = {
    "mean-less-variance": "variance_coef",
    "mean-less-deviation": "deviation_coef",
    "nominal-and-worst": "nominal_share",
}


def combination_named(asked: str) -> Join | None:
    """How the heads of one model are combined by what stands after its name; None for no such name.

    Args:
        asked: a combination method, with the number of its option after `=` where it has one:
            `worst-case`, `mean-less-deviation=0.5`. No head is weighed.

    Raises:
        ConfigError: the number is none, or the method has no option.

    >>> combination_named("mean-less-deviation=0.5")(torch.tensor([[1.0, 3.0]]))
    tensor([1.5000])
    >>> combination_named("helpful=0.5") is None
    True
    """
    method, _, number = asked.partition("=")
    if method not in AGGREGATIONS:
        return None
    settings = CombinationSettings(method)
    if number:
        try:
            settings = replace(settings, **{_OPTIONS[method]: float(number)})  # type: ignore[arg-type]
        except (KeyError, ValueError):
            raise ConfigError(
                f"{asked!r} after the name of a model; expected the name of a combination method, "
                f"and '=' with a number only after {', '.join(_OPTIONS)}"
            ) from None

    def joined(scores: Float[Tensor, "*batch heads"]) -> Float[Tensor, "*batch"]:
        return combined_scores(scores, torch.ones(scores.shape[-1]), settings)

    return joined


def ensemble_token_scores(
    token_scores: Sequence[Float[Tensor, "batch time"]],
    weights: Sequence[float],
    settings: CombinationSettings,
) -> Float[Tensor, "batch time"]:
    """Token scores of several rewards, each with a credit of its own, combined.

    Args:
        token_scores: of each source, in nats, in the same tokens.
        weights: of the sources.
        settings: a combination that is linear.

    Raises:
        ConfigError: the combination is not linear, a weight is NaN or infinite, or too few sources
            carry weight.
        ShapeError: there is not one weight per source, or the sources scored other responses.

    Source: Wu et al. 2023, arXiv 2306.01693: one reward model per kind of error.
    """
    _require_weights(len(token_scores), weights, settings)
    if AGGREGATIONS[settings.method].acts != "linear":
        linear = [name for name, method in AGGREGATIONS.items() if method.acts == "linear"]
        raise ConfigError(
            f"combination method {settings.method!r} with a credit for each reward; expected "
            f"{' or '.join(map(repr, linear))}, or one credit of the combined scores: only a "
            "linear combination of token scores is the credit of the combined score"
        )
    return _combined(token_scores, weights=weights, settings=settings)


def _combined(
    values: Sequence[Tensor], *, weights: Sequence[float], settings: CombinationSettings
) -> Tensor:
    """Values of all sources, stacked and combined.

    Raises:
        ShapeError: their shapes differ.
    """
    shapes = [tuple(value.shape) for value in values]
    if len(set(shapes)) > 1:
        raise ShapeError(
            f"the scores of the rewards have the shapes {shapes}; expected one shape: scores of "
            "the same responses in the same tokens"
        )
    return combined_scores(torch.stack(list(values), dim=-1), torch.tensor(weights), settings)


def _require_weights(sources: int, weights: Sequence[float], settings: CombinationSettings) -> None:
    if len(weights) != sources:
        raise ShapeError(
            f"{len(weights)} weights for {sources} rewards; expected one weight per reward"
        )
    require_weights(weights, settings)
