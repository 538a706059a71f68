"""The settings of a gate over objectives, with what they refuse."""

from dataclasses import dataclass

from tokencredit.errors import ConfigError
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.reward_model.pair_columns import PairColumns
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    TrainingSettings,
    group,
    setting,
    settle_learning_rate,
)
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class GateSettings:
    """The network that weighs objectives."""

    width: int = 1024
    """Units of each hidden layer."""
    layers: int = 3
    """Hidden layers; 0 makes a linear gate."""
    dropout: float = 0.2
    """Share of the hidden units that are dropped in training."""
    temperature: float = 10.0
    """What the outputs of the network are divided by before the softmax."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "layers")
        require_positive(self, "width", "temperature")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; expected a number from 0, below 1")


@dataclass(frozen=True)
class DebiasSettings:
    """What is taken out of the objectives before they are weighed."""

    against: str | None = None
    """Name of an objective that the others must not follow, such as `verbosity`; that objective
    itself is removed. None removes nothing."""
    correlation: float = 0.03
    """Highest rank correlation with it that may remain, on the responses of the training pairs."""


@dataclass(frozen=True)
class TrainGateConfig:
    """One gate."""

    data: str
    """Pairs: JSON-lines file, dataset folder or dataset id."""
    reward_model: str
    """Hub id or folder of a causal reward model with several objectives; it is not changed."""
    output: str = setting(free=True)
    """Run folder; holds the model with its gate when it is done."""
    gate: GateSettings = group(GateSettings)
    debias: DebiasSettings = group(DebiasSettings)
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts, where its configuration does not say."""
    max_length: int = 512
    """Most tokens of prompt and response."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first: `response-end`, or `prompt-start` and then the end of the
    response."""
    columns: PairColumns = group(PairColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings)
    """How the gate is trained. The learning rate is 1e-3 unless it is given."""
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "max_length")
        settle_learning_rate(self, of_all=1e-3)
