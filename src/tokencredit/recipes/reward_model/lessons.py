"""How the batches of a reward model in training are read, and what they cost: one head or several.

A lesson is what differs between plain training, heads that learn side by side, groups of users, a
router and users with descriptions. The Trainer knows none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.recipes.reward_model.examples import SAID, JudgedRow
from tokencredit.recipes.training.trainer import LossTrainer

ScoresOf = Callable[..., Any]
Columns = Callable[[Sequence[JudgedRow], Sequence[int]], Mapping[str, Tensor]]


def no_columns(_rows: Sequence[JudgedRow], _indices: Sequence[int]) -> Mapping[str, Tensor]:
    """Nothing beside what every batch says."""
    return {}


def mean_of_outputs(
    scores: Float[Tensor, "texts fractions outputs"], _rows: Sequence[JudgedRow]
) -> Float[Tensor, "texts fractions"]:
    """The mean over all outputs, which is the score of an ensemble."""
    return scores.mean(-1)


def whole_view(_model: PreTrainedModel) -> AbstractContextManager[None]:
    """The model as it is."""
    return nullcontext()


def nothing_beside(_model: PreTrainedModel, _folder: Path) -> dict[str, float]:
    """Nothing is written beside the model."""
    return {}


@dataclass(frozen=True)
class Lesson:
    """One way to learn from judged rows.

    Attributes:
        scores_of: of the model and the columns of a batch what the loss is made of; a module where
            it has weights of its own, which are then trained with those of the model.
        loss: of what that gives, and of the whole batch.
        columns: what a batch says besides, of some rows and of their numbers among all.
        unread: columns of a batch that are not for the model.
        trainer: makes the Trainer.
        joined: one score of all outputs of the model for texts of held-out rows, all first
            responses before all second ones; read where the model has several outputs.
        view: the model as it is judged, while the context is open.
        write: puts what belongs to the model into its folder, before the model itself, and gives
            what `metrics.json` says of it.
        shares_prefixes: whether both answers of a pair may stand in one row.
    """

    scores_of: ScoresOf
    loss: Callable[[Any, dict[str, Tensor]], Tensor]
    columns: Columns = no_columns
    unread: tuple[str, ...] = SAID
    trainer: Callable[..., LossTrainer] = LossTrainer
    joined: Callable[[Tensor, Sequence[JudgedRow]], Tensor] = mean_of_outputs
    view: Callable[[PreTrainedModel], AbstractContextManager[None]] = whole_view
    write: Callable[[PreTrainedModel, Path], dict[str, float]] = nothing_beside
    shares_prefixes: bool = False
