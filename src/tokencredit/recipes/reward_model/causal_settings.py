"""The settings of the recipes whose reward model is a language model, with what they refuse."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least, require_positive
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
from tokencredit.reward_model.hf_rewriter import INSTRUCTION, TEMPLATE, require_template
from tokencredit.scorers.hf_vocabulary import VocabularyObjective
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class TrainRewriterConfig:
    """One rewriter. A pair is two rows: the rejected side to mend, and the chosen one to keep."""

    data: str
    """JSON-lines file, dataset folder or dataset id."""
    model: str
    """Hub id or folder of the causal language model to start from."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    template: str = TEMPLATE
    """Template of prompts that are texts, with `{prompt}` and `{response}`; what the model writes
    follows it."""
    instruction: str = INSTRUCTION
    """For prompts that are messages: what the user says after the answer."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    max_length: int = 1024
    """Most tokens of prompt, answer and rewritten answer. A longer row loses the start of the
    prompt first, then the end of the rewritten answer."""
    columns: PairColumns = group(PairColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings)
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
        require_float32(self.loading, frozen=None)
        settle_learning_rate(self, of_all=2e-5)
        require_template(self.template)


@dataclass(frozen=True)
class VocabularyColumns:
    """Names of the columns of pairs or of rated texts."""

    prompt: str | None = setting(None, was="prompt_column")
    """Prompts, texts or lists of chat messages. None takes `prompt` or another usual name; without
    one, the prompt of a pair is what both texts begin with, and rated texts have none. An empty
    name is for answers without a prompt."""
    chosen: str = setting("chosen", was="chosen_column")
    """The preferred responses."""
    rejected: str = setting("rejected", was="rejected_column")
    """The others."""
    rating: str | None = setting(None, was="rating_column")
    """For `cd-fudge` and `cd-q`: ratings, or labels 0 and 1, higher for better texts. Values are
    then standard deviations above the mean. None reads pairs."""
    text: str = setting("text", was="text_column")
    """The rated texts."""


@dataclass(frozen=True)
class TrainVocabularyRewardConfig:
    """One reward model that scores the whole vocabulary."""

    data: str
    """JSON-lines file, dataset folder or dataset id: pairs, or with `columns.rating` texts with a
    number each."""
    model: str
    """Hub id or folder of the causal language model to start from. It needs the vocabulary of the
    model that is to be guided."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    objective: VocabularyObjective = "farma"
    """What its logits mean. `farma`: the value of the text with each token after it, from pairs.
    `genarm`: log-probabilities that are rewards, from pairs. `cd-fudge`: the mean outcome of texts
    that go on with each token, from ratings, or from pairs, whose chosen side counts 1 and whose
    other side counts 0. `cd-q`: the same, where each prefix learns from the policy's mean value of
    the next token."""
    policy: str | None = None
    """For `cd-q`: Hub id or folder of the frozen language model over whose next tokens values are
    averaged, with the vocabulary of `model`; None for `model`."""
    bootstrap_lambda: float = 0.95
    """For `cd-q`: 0 learns from the policy's mean value of the next token alone (as published), 1
    from the outcome of the text alone, which is `cd-fudge`."""
    rounds: int = 2
    """For `farma`: how often pairs are compared. Between two comparisons comes a turn of the
    maximum constraint. Every turn has a learning rate of its own, and `training.epochs` passes."""
    first_token: int = 11
    """For `farma`: the constraint holds for prefixes that end with this token of the response or a
    later one."""
    target_gradient: Literal["flows", "stopped"] = "flows"
    """For `farma`: whether the constraint also moves the best continuation (`flows`, as published)
    or only the prefix (`stopped`)."""
    reward_beta: float = 0.05
    """For `genarm`: nats of reward per nat of log-probability."""
    over_tokens: Literal["sum", "mean"] = "sum"
    """For `genarm`: `sum` takes the log-probability of a response, `mean` divides it by the
    length."""
    margin: float = 0.0
    """For pairs: by how much the better response should win, in nats."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts; written into its configuration."""
    max_length: int = 512
    """Most tokens of prompt and response."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first: `prompt-start` and then the end of the response, or
    `response-end`."""
    columns: VocabularyColumns = group(VocabularyColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings)
    """How it is trained. The learning rate is 5e-6, or 5e-5 with LoRA, unless it is given."""
    lora: LoraSettings = group(LoraSettings)
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "max_length", "reward_beta")
        require_float32(self.loading, frozen=self.frozen_policy or self.lora.rank)
        require_gpu_if_quantized(self.lora, self.device)
        settle_learning_rate(self, of_all=5e-6, of_lora=5e-5)
        require_at_least(self, 1, "rounds", "first_token")
        if not 0 <= self.bootstrap_lambda <= 1:
            raise ConfigError(
                f"bootstrap_lambda is {self.bootstrap_lambda}; expected a number from 0 to 1"
            )
        if self.policy is not None and self.objective != "cd-q":
            raise ConfigError(
                f"policy is {self.policy!r} with objective {self.objective!r}, which asks no "
                "policy; expected none, or objective 'cd-q'"
            )
        if self.columns.rating is not None and not self.learns_outcomes:
            raise ConfigError(
                f"columns.rating is {self.columns.rating!r} with objective {self.objective!r}, "
                "which learns from pairs; expected none, or objective 'cd-fudge' or 'cd-q'"
            )
        if self.margin and self.learns_outcomes:
            raise ConfigError(
                f"margin is {self.margin} with objective {self.objective!r}, which compares "
                "nothing; expected 0, or objective 'farma' or 'genarm'"
            )

    @property
    def learns_outcomes(self) -> bool:
        """Whether values learn numbers, one for each text, and not which text is better."""
        return self.objective in ("cd-fudge", "cd-q")

    @property
    def frozen_policy(self) -> str | None:
        """The language model whose next tokens are averaged over; None where none is asked."""
        return (self.policy or self.model) if self.objective == "cd-q" else None


Direction = Literal["chosen", "reversed"]


@dataclass(frozen=True)
class TrainImplicitRewardConfig:
    """One implicit reward. With LoRA it needs no second copy of the model in memory."""

    data: str
    """JSON-lines file, dataset folder or dataset id."""
    model: str
    """Hub id or folder of the causal language model to start from."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    direction: Direction = "chosen"
    """`chosen` learns to prefer the chosen responses, `reversed` the rejected ones."""
    dpo_beta: float = 0.1
    """Beta of DPO: the larger it is, the nearer the model stays to the reference."""
    reference: str | None = None
    """Hub id or folder of the frozen model; None for `model`."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts; written into its configuration."""
    max_length: int = 512
    """Most tokens of prompt and response."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first: `prompt-start` and then the end of the response, or
    `response-end`."""
    columns: PairColumns = group(PairColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings, batch_size=8, warmup=0.1)
    """How it is trained. The learning rate is 1e-6, or 1e-5 with LoRA, unless it is given."""
    lora: LoraSettings = group(LoraSettings)
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "max_length", "dpo_beta")
        require_gpu_if_quantized(self.lora, self.device)
        settle_learning_rate(self, of_all=1e-6, of_lora=1e-5)
        if self.lora.rank and self.reference is not None:
            raise ConfigError(
                f"reference is {self.reference!r} with lora.rank {self.lora.rank}; expected none: "
                "the model without its adapter is the reference"
            )
