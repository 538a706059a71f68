"""The settings of `train-preferences`, with what they refuse."""

from dataclasses import dataclass, replace
from typing import Literal

from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError
from tokencredit.policy.losses.compared import PreferenceLoss
from tokencredit.policy.losses.methods import loss_options, preference_loss
from tokencredit.policy.losses.options import PreferenceLossSettings
from tokencredit.preference.hf_answers import AnswerColumns
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least, require_positive
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
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

WeightKind = Literal["none", "credit", "magnitude", "select", "edits", "decay"]


@dataclass(frozen=True)
class TokenWeightSettings:
    """What single tokens weigh in the loss, the same for policy and references."""

    kind: WeightKind = "none"
    """`credit`: tokens of a chosen response weigh more where their credit is high, those of a
    rejected one where it is low (TGDPO). `magnitude`: tokens weigh more where the size of their
    credit is large, whether it helps or harms. `select`: only the best tokens of chosen responses
    and the worst of rejected ones count (SePO). `edits`: tokens that differ between both responses
    weigh more, the more the less sure the model is of them (BMC). `decay`: each token weighs less
    than the one before."""
    strength: float = 0.5
    """For `credit`: how far weights move from 1."""
    unit: Literal["row", "nats"] = "row"
    """For `credit`: `row` scales the credit of each response to a mean absolute value of one,
    `nats` takes it as it is."""
    clip: float | None = 0.9
    """For `credit`: how far a weight may be from 1 before the mean is restored; None for any
    distance."""
    mean: Literal["one", "free"] = "one"
    """For `credit`: whether weights of a response are divided by their mean."""
    share: float = 0.3
    """For `select`: share of the tokens of each response that counts."""
    delta: float = 2.0
    """For `edits`: the most that is added to a weight."""
    confidence: Literal["policy", "own"] = "policy"
    """For `edits`: whose confidence sets the weights of the reference: the `policy`'s, so that both
    have the same weights, or its `own`, as published."""
    decay: float = 0.98
    """For `decay`: weight of each token, as a share of the weight of the token before."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "strength", "delta", room="token_weights.")
        for name in ("share", "decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"token_weights.{name} is {getattr(self, name)}; expected a number above 0 and "
                    "up to 1"
                )
        if self.clip is not None and (self.clip <= 0 or (self.clip >= 1 and self.mean == "one")):
            raise ConfigError(
                f"token_weights.clip is {self.clip} with token_weights.mean {self.mean!r}; "
                "expected a number above 0, below 1 where weights shall have mean one, or none"
            )
        if self.clip is None and self.mean == "one":
            raise ConfigError(
                "token_weights.clip is none with token_weights.mean 'one'; expected a number below "
                "1, so that no weight is negative, or token_weights.mean 'free'"
            )


@dataclass(frozen=True)
class RegulariserSettings:
    """T-REG: the likelihood of tokens by what they are worth, beside the loss of pairs."""

    strength: float = 0.0
    """Weight of the regulariser, as a share of `dpo_beta`; 0 for none. Published with 0.1 to
    0.5."""
    normalisation: Literal["sum", "mean"] = "sum"
    """Whether the terms of a response are added up or averaged over its tokens."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "strength", room="regulariser.")


@dataclass(frozen=True)
class TrainPreferencesConfig:
    """One policy that learns from preferences, without drawing responses."""

    data: str
    """JSON-lines file, dataset folder or dataset id: pairs, lists with scores, or single answers,
    as the loss learns from."""
    model: str
    """Hub id or folder of the causal language model to start from."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    loss: str = "dpo"
    """Name of a loss; `tokencredit methods --kind loss` lists them with what they learn from."""
    options: PreferenceLossSettings = group(PreferenceLossSettings)
    """Options of the loss; those of other losses are refused."""
    reference: str | None = None
    """Hub id or folder of the frozen reference, for losses that have one; None for `model` as it
    is."""
    teacher: str | None = None
    """Hub id or folder of the aligned model to learn from, for losses with a teacher."""
    teacher_reference: str | None = None
    """For losses that compare two teachers: Hub id or folder of the model that the teacher started
    from, or of one that was trained on reversed pairs. None takes the reference in the teacher's
    configuration."""
    token_weights: TokenWeightSettings = group(TokenWeightSettings)
    regulariser: RegulariserSettings = group(RegulariserSettings)
    reward_model: str | None = None
    """Hub id, folder or address of the reward model that credit is made of, for token weights and
    the regulariser; None for credit that needs no score."""
    credit: CreditSettings = group(CreditSettings)
    """How credit is made."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut, for credit that needs segments."""
    reward_reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
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
    columns: AnswerColumns = group(AnswerColumns)
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
        require_positive(self, "limit", "max_length")
        require_gpu_if_quantized(self.lora, self.device)
        settle_learning_rate(self, of_all=1e-6, of_lora=1e-5)
        object.__setattr__(self, "options", loss_options(self.loss, self.options))
        require_float32(self.loading, frozen=self._frozen)
        self._require_reference()
        self._require_teachers()
        self._require_weights()

    @property
    def row(self) -> PreferenceLoss:
        """What the table says of the loss."""
        return preference_loss(self.loss)

    @property
    def needs_credit(self) -> bool:
        """Whether tokens are paid, for their weights, the regulariser or the target of teachers."""
        return pays_tokens(self.token_weights, self.regulariser, self.options)

    @property
    def keeps_teachers(self) -> bool:
        """Whether teachers speak at every step, of the whole vocabulary."""
        return self.row.teachers > 0 and not self.options.top_k

    @property
    def credit_of_run(self) -> CreditSettings:
        """The credit; contrasted prompts are asked of the model as it is unless one is named."""
        own = credit_method(self.credit.method).model_kind == "language"
        if own and self.credit.model is None:
            return replace(self.credit, model=self.model)
        return self.credit

    @property
    def _frozen(self) -> str | int | None:
        """What is loaded beside the model in training."""
        other = self.reference or self.teacher or self.reward_model or self.credit.model
        return other or ("vocabulary" in self.row.needs and self.model) or self.lora.rank

    def _require_reference(self) -> None:
        if self.reference is not None and "reference" not in self.row.references:
            raise ConfigError(
                f"reference is {self.reference!r} with loss {self.loss!r}, which has no reference; "
                "expected none, or another loss"
            )

    def _require_teachers(self) -> None:
        count = self.row.teachers
        if count and self.teacher is None:
            raise ConfigError(
                f"there is no teacher with loss {self.loss!r}, which learns from one; expected a "
                "model that was aligned already, for example by train-preferences: name it with "
                "teacher"
            )
        expected = ("no teacher", "a teacher and no teacher_reference", "both")[count]
        if (self.teacher and not count) or (self.teacher_reference and count < 2):
            raise ConfigError(
                f"teacher is {self.teacher!r} and teacher_reference {self.teacher_reference!r} "
                f"with loss {self.loss!r}; expected {expected}, or another loss"
            )

    def _require_weights(self) -> None:
        kind = self.token_weights.kind
        if ("selection" in self.row.needs) and kind != "select":
            raise ConfigError(
                f"token_weights.kind is {kind!r} with loss {self.loss!r}, which is of selected "
                "tokens; expected 'select', or loss 'simpo'"
            )
        if kind == "edits" and self.row.learns_from != "pairs":
            raise ConfigError(
                f"token_weights.kind is 'edits' with loss {self.loss!r}, which learns from "
                f"{self.row.learns_from}; expected a loss of pairs: edits are between two responses"
            )
        if self.regulariser.strength and self.row.pair is None:
            raise ConfigError(
                f"regulariser.strength is {self.regulariser.strength} with loss {self.loss!r}, "
                f"which learns from {self.row.learns_from}; expected 0, or a loss of pairs"
            )
        if not self.needs_credit:
            if self.reward_model is not None:
                raise ConfigError(
                    f"reward_model is {self.reward_model!r}, and nothing is made of its scores; "
                    "expected none, token_weights.kind 'credit', 'magnitude' or 'select', or a "
                    "regulariser.strength above 0"
                )
            return
        asks = asks_reward_model(self.credit)
        if asks and self.reward_model is None:
            raise ConfigError(
                f"credit.method is {self.credit.method!r}, which is made of scores, and there is "
                "no reward_model; expected one, or a method such as 'log-ratio' or "
                "'contrastive-prompts', with its credit.model"
            )
        if not asks and self.reward_model is not None:
            raise ConfigError(
                f"reward_model is {self.reward_model!r} with credit.method {self.credit.method!r}, "
                "which asks none; expected none"
            )


def asks_reward_model(credit: CreditSettings) -> bool:
    """Whether credit is made of the scores of a reward model."""
    method = credit_method(credit.method)
    of_scores = {"sequence_scores", "prefix_scores", "position_scores"}
    return not method.model_kind or bool(set(method.needs) & of_scores)


def pays_tokens(
    weights: TokenWeightSettings, regulariser: RegulariserSettings, options: PreferenceLossSettings
) -> bool:
    """Whether tokens are paid, for their weights, the regulariser or the target of teachers."""
    weighed = weights.kind in ("credit", "magnitude", "select")
    return weighed or regulariser.strength > 0 or options.adaptive == "credit"
