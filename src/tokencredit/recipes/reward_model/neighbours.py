"""Scores of an evaluation joined with those of texts that are like the answers (RewardFusion)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from tokencredit.aggregation.neighbours import fused_scores, near_texts
from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError
from tokencredit.preference.hf_comparisons import Comparison
from tokencredit.preference.word_vectors import word_vectors
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.reward_model.pair_evaluation import ScoredComparison


@dataclass(frozen=True)
class NeighbourSettings:
    """Texts with whose scores those of the answers are joined (RewardFusion)."""

    data: str | None = None
    """Pairs, in the columns of `data`, those that the model was trained on for example: their
    answers with their prompts are the texts. None joins nothing."""
    least: float = 0.9
    """Cosine of a neighbour at least, by the words of both texts, rare ones counting more."""
    most: int = 5
    """Neighbours of an answer at most."""
    limit: int | None = None
    """Use only the first rows; None uses all."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "most", room="neighbours.")
        require_positive(self, "limit", room="neighbours.")
        if not 0 < self.least <= 1:
            raise ConfigError(
                f"neighbours.least is {self.least}; expected a cosine above 0 and at most 1"
            )


def fused_comparisons(
    scored: Sequence[ScoredComparison],
    texts: Sequence[ScoredComparison],
    settings: NeighbourSettings,
) -> tuple[list[ScoredComparison], dict[str, Any]]:
    """The comparisons with fused scores, and how many neighbours the answers have.

    At every fraction of an answer its neighbours are seen to the same fraction; who they are is
    found by the whole texts. An answer is no neighbour of itself.

    Args:
        scored: comparisons, scored.
        texts: comparisons whose answers may be neighbours, scored by the same model.
        settings: who is one.
    """
    own, known = _answers(scored), _answers(texts)
    vectors = normalize(word_vectors([*own, *known]), dim=-1)
    cosines = vectors[: len(own)] @ vectors[len(own) :].T
    places: dict[str, list[int]] = {}
    for at, text in enumerate(known):
        places.setdefault(text, []).append(at)
    for row, text in enumerate(own):
        cosines[row, places.get(text, [])] = -torch.inf
    least, most = settings.least, settings.most
    fused = fused_scores(_table(scored), _table(texts), cosines, least=least, most=most)
    parts = iter(torch.split(fused, [len(part) for one in scored for part in _sides(one)]))
    counts = near_texts(cosines, least=least, most=most).sum(-1).double()
    found = {
        "data": settings.data,
        "texts": len(known),
        "neighbours_of_an_answer": float(counts.mean()),
        "answers_with_neighbours": float((counts > 0).double().mean()),
    }
    return [
        replace(one, chosen_scores=next(parts), rejected_scores=next(parts)) for one in scored
    ], found


def _sides(one: ScoredComparison) -> tuple[Tensor, Tensor]:
    return one.chosen_scores, one.rejected_scores


def _table(scored: Sequence[ScoredComparison]) -> Float[Tensor, "answers fractions"]:
    return torch.cat([part for one in scored for part in _sides(one)])


def _answers(scored: Sequence[ScoredComparison]) -> list[str]:
    """Prompts with their answers, in the order of `_table`."""
    found: list[str] = []
    for one in scored:
        compared: Comparison = one.comparison
        found += [
            f"{_text(compared.prompt)}\n{answer}" for answer in compared.chosen + compared.rejected
        ]
    return found


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(turn.get("content", "")) for turn in prompt)
