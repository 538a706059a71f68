"""Several rewards of the same responses as one, with its scores of prefixes.

The scores of all sources stand in the same tokens: each was carried over to those of the policy
before (by a `RewardScorer`), and brought to a common scale (`transformed_scores`).
"""

from collections.abc import Collection, Mapping, Sequence
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
from tokencredit.errors import ConfigError, ModelError, ShapeError


def ensemble_scores(
    scores: Sequence[ResponseScores],
    weights: Sequence[float],
    settings: CombinationSettings,
    *,
    names: Sequence[str] | None = None,
    needs: Collection[str] = (),
) -> ResponseScores:
    """What several reward models say about the same responses, combined.

    Sequence scores and prefix scores are combined in the same way, so that the last prefix score
    of a response stays its sequence score. Sources of weight 0 are left out: they may lack what
    the others have.

    Args:
        scores: of each source, in the same tokens.
        weights: of the sources; each multiplies the scores of its source.
        settings: how weighted scores are combined.
        names: of the sources, for messages; their numbers by default.
        needs: what credit reads. Of that, "prefix_scores" and "attention" must be there; anything
            else is no matter of reward models and is not looked at.

    Returns:
        Scores in nats. Prefix scores are None where a source has none. Attention is that of the
        source that alone carries weight; of several there is none.

    Raises:
        ConfigError: two sources have the same name; a weight is NaN or infinite; too few sources
            carry weight; attention is needed, and several do.
        ModelError: a source lacks prefix scores or attention that are needed.
        ShapeError: there is not one weight and one name per source, or the sources scored other
            responses.
    """
    _require_weights(len(scores), weights, settings)
    names = list(map(str, range(len(scores)))) if names is None else names
    _require_names(names, len(scores))
    sources = zip(names, scores, weights, strict=True)
    used = {name: one for name, one, weight in sources if weight != 0}
    _require_evidence(used, needs)
    combined = partial(_combined, weights=[w for w in weights if w != 0], settings=settings)
    sequences = [one.sequence_scores for one in used.values()]
    prefixes = [one.prefix_scores for one in used.values() if one.prefix_scores is not None]
    positions = None
    if any(one.position_scores is not None for one in used.values()):
        read = [
            one.prefix_scores if one.position_scores is None else one.position_scores
            for one in used.values()
        ]
        found = [numbers for numbers in read if numbers is not None]
        positions = combined(found) if len(found) == len(used) else None
    return ResponseScores(
        combined(sequences),
        combined(prefixes) if len(prefixes) == len(used) else None,
        next(iter(used.values())).attention if len(used) == 1 else None,
        positions,
    )


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


def _require_names(names: Sequence[str], sources: int) -> None:
    if len(names) != sources:
        raise ShapeError(f"{len(names)} names for {sources} rewards; expected one name per reward")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(
            f"several rewards have the name {', '.join(map(repr, twice))}; expected a name of its "
            "own for each"
        )


def _require_evidence(used: Mapping[str, ResponseScores], needs: Collection[str]) -> None:
    """Everything that is needed can be had of the sources that carry weight."""
    if "attention" in needs and len(used) > 1:
        raise ConfigError(
            f"attention is needed and {len(used)} rewards carry weight: {', '.join(used)}; "
            "expected one of them alone, or a credit for each: attention says of one model where "
            "its score came from"
        )
    for evidence in {"prefix_scores", "attention"}.intersection(needs):
        lacking = [name for name, one in used.items() if getattr(one, evidence) is None]
        if lacking:
            raise ModelError(
                f"no {evidence.replace('_', ' ')} of the rewards {', '.join(lacking)}, and the "
                "credit needs them; expected causal reward models, or another credit"
            )
