"""The settings of judges in training, with what they refuse."""

from dataclasses import dataclass

from tokencredit.errors import ConfigError
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_positive
from tokencredit.recipes.reward_model.pair_columns import PairColumns
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    LoraSettings,
    TrainingSettings,
    group,
    require_float32,
    require_gpu_if_quantized,
    setting,
    settle_learning_rate,
)
from tokencredit.scorers.judge_settings import QuestionSettings
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class TrainJudgeConfig:
    """One judge that answers with a token."""

    data: str
    """JSON-lines file, dataset folder or dataset id, of pairs."""
    model: str
    """Hub id or folder of the causal language model to start from."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    judge: QuestionSettings = group(QuestionSettings)
    """What it is asked: a set-up whose judge answers with one of two tokens."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    max_length: int = 1024
    """Most tokens of a question; pairs with a longer one are left out."""
    columns: PairColumns = group(PairColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings)
    """How it is trained. The learning rate is 5e-6, or 5e-5 with LoRA, unless it is given."""
    lora: LoraSettings = group(LoraSettings)
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts; written into its configuration."""
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "max_length")
        require_float32(self.loading, frozen=self.lora.rank)
        require_gpu_if_quantized(self.lora, self.device)
        settle_learning_rate(self, of_all=5e-6, of_lora=5e-5)
        if not self.judge.setup:
            raise ConfigError(
                "judge.setup is empty; expected a set-up whose judge answers with one of two "
                "tokens: `tokencredit methods --kind judge` lists them"
            )
