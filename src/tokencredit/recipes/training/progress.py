"""What a training remembers besides weights, and the run that it belongs to."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokencredit.recipes.policy.checkpoints import last_checkpoint
from tokencredit.recipes.settings import TrainingSettings
from tokencredit.recipes.training.supervised import SupervisedConfig

PROGRESS_FILE = "progress.json"


@dataclass
class Progress:
    """What a training remembers besides weights and what the Trainer of transformers keeps.

    Attributes:
        turn: of several trainings that follow each other in one run, from 1.
        steps_before: optimiser steps of the turns before this one.
        steps: optimiser steps of this turn.
        loss: the sum of the losses of all its steps.
        unlogged: the sum of the losses of the steps after the last row of metrics.
        unlogged_steps: how many these are.
        seconds: that training took.
        earlier: what the turns before this one came to.
        more: what the recipe's own Trainer remembers.
    """

    turn: int = 1
    steps_before: int = 0
    steps: int = 0
    loss: float = 0.0
    unlogged: float = 0.0
    unlogged_steps: int = 0
    seconds: float = 0.0
    earlier: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def add_step(self, loss: float) -> None:
        """Count one optimiser step."""
        self.steps += 1
        self.loss += loss
        self.unlogged += loss
        self.unlogged_steps += 1

    def logged_loss(self) -> float:
        """The mean loss since the last row of metrics, which is forgotten."""
        mean = self.unlogged / max(self.unlogged_steps, 1)
        self.unlogged, self.unlogged_steps = 0.0, 0
        return mean


@dataclass(frozen=True)
class TrainingRun:
    """What a Trainer knows of the run that it belongs to.

    Attributes:
        folder: of the run.
        training: the settings.
        seed: of the order of rows.
        evaluate: the numbers of held-out data, asked for during training; None where there are no
            such data.
        begin: the progress to begin with, where the run has no checkpoint of this turn.
    """

    folder: Path
    training: TrainingSettings
    seed: int
    evaluate: Callable[[], Mapping[str, float | None]] | None = None
    begin: Progress = field(default_factory=Progress)

    @classmethod
    def of(
        cls,
        config: SupervisedConfig,
        folder: Path,
        evaluate: Callable[[], Mapping[str, float | None]] | None = None,
        begin: Progress | None = None,
    ) -> "TrainingRun":
        """A run with the settings of a recipe."""
        begin = begin or Progress()
        return cls(folder, config.training, config.seed, evaluate, begin)


def saved_progress(folder: Path) -> tuple[Path, Progress] | None:
    """The newest whole checkpoint of a run, and how far it is; None if there is none.

    Raises:
        RunFolderError: there are checkpoints, and all of them are damaged.
    """
    path = last_checkpoint(folder)
    if path is None:
        return None
    return path, Progress(**json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8")))
