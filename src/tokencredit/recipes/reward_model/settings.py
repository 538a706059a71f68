"""The settings of reward models and token classifiers in training, with what they refuse."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.preference.labels import Overlapping
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.reward_model.head_settings import (
    BoundSettings,
    ContrastiveSettings,
    EnsembleSettings,
    GroupSettings,
    LatentSettings,
    MixtureSettings,
    RegulariserSettings,
    require_one_of,
)
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
from tokencredit.reward_model.objectives import LossSettings, Objective, objective_row
from tokencredit.scorers.hf_segment_ends import SegmentEndSettings
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class JudgementColumns:
    """Names of the columns of pairs, labels or ratings."""

    prompt: str | None = setting(None, was="prompt_column")
    """Prompts, texts or lists of chat messages. None takes `prompt` or another usual name. Without
    such a column the prompt of a pair is what both texts begin with, and labelled and rated texts
    have none. An empty name is for answers without a prompt."""
    chosen: str = setting("chosen", was="chosen_column")
    """The preferred responses of pairs."""
    rejected: str = setting("rejected", was="rejected_column")
    """The others."""
    margin: str | None = setting(None, was="margin_column")
    """Margins of pairs in nats. None takes the column `margin` if there is one; an empty name uses
    none."""
    strength: str | None = setting(None, was="strength_column")
    """Strengths of preferences, such as 1, 2 and 3, which multiply the losses; None is 1 for
    all."""
    preferred: str | None = None
    """Probability that the preferred response is the better one, as `vote-on-pairs` writes it; None
    is 1 for all."""
    user: str | None = None
    """Who prefers, by a name or a number, for `groups` and `latent`; None if it is not known."""
    text: str = setting("text", was="text_column")
    """The labelled or rated texts."""
    label: str = setting("label", was="label_column")
    """The labels, 0 or 1."""
    rating: str = setting("rating", was="rating_column")
    """The ratings, in any unit, higher for better texts. The scores of the model are ratings less
    the mean of the training data."""
    ratings: tuple[str, ...] = ()
    """The ratings by several objectives, for `multi-objective-regression`: one column each, whose
    name becomes that of the objective. An empty cell, null, NaN or `N/A` is a missing rating."""
    responses: str | None = None
    """Lists of answers, for `plackett-luce`; None takes `responses`, `completions` or another usual
    name."""
    scores: str | None = None
    """Lists of scores, one for each answer, higher for better ones; their order is learnt. None
    takes `scores`, `rewards` or `ratings`. Answers with the same score are not compared."""
    rating_scale: tuple[float, float] | None = None
    """Lowest and highest rating, such as `[0, 4]`; a row outside cannot be used. None allows every
    number."""


@dataclass(frozen=True)
class BeginningSettings:
    """Which beginnings of both answers are examples, with `positions: pairs`."""

    start: int = setting(1, was="prefix_start")
    """Length of the shortest beginnings, in tokens."""
    step: int = setting(1, was="prefix_step")
    """Difference between two lengths, in tokens. Whole answers are always among them."""
    padding: Literal["eos", "held"] = setting("eos", was="prefix_padding")
    """What follows the end of the shorter answer: `eos`, ends of sequence up to the length of the
    longer one, as published; `held`, nothing."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "start", "step")


@dataclass(frozen=True)
class TrainRewardModelConfig:
    """One reward model."""

    data: str
    """JSON-lines file, dataset folder or dataset id."""
    model: str
    """Hub id or folder of the language model or reward model to start from."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    objective: str = "bradley-terry"
    """What is learnt: `bradley-terry` from pairs, `classification` from labels 0 and 1,
    `regression` from ratings, `multi-objective-regression` from ratings by several objectives (one
    score each), `plackett-luce` from the order of several answers to a prompt."""
    positions: str = "every"
    """Where training reads scores. `last`: at the end of the response. `every`: at every prefix
    too. `pairs`: beginnings of both answers that are equally long, each pair of them an example.
    `segments`: at the ends of segments; the response scores their mean. `bootstrapped`: at every
    prefix, which learns from the score of the next one. All but `last` and `pairs` need a causal
    model."""
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
    truncation: Truncation | None = None
    """What a row that is too long loses first: `response-end`, or `prompt-start` and then the end
    of the response. None means `prompt-start` for pairs and `response-end` for labels and
    ratings."""
    columns: JudgementColumns = group(JudgementColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    loss: LossSettings = group(LossSettings)
    ensemble: EnsembleSettings = group(EnsembleSettings)
    """With objectives that learn from pairs: several heads, whose mean is the score."""
    groups: GroupSettings = group(GroupSettings)
    mixture: MixtureSettings = group(MixtureSettings)
    latent: LatentSettings = group(LatentSettings)
    bound: BoundSettings = group(BoundSettings)
    regulariser: RegulariserSettings = group(RegulariserSettings)
    contrastive: ContrastiveSettings = group(ContrastiveSettings)
    beginnings: BeginningSettings = group(BeginningSettings)
    segments: SegmentEndSettings = group(SegmentEndSettings)
    training: TrainingSettings = group(TrainingSettings)
    """How it is trained. The learning rate is 2e-5, or 2e-4 with LoRA, unless it is given."""
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
        require_float32(self.loading, frozen=self.entropy_reference or self.lora.rank)
        require_gpu_if_quantized(self.lora, self.device)
        settle_learning_rate(self, of_all=2e-5, of_lora=2e-4)
        objective_row(self.objective, self.positions, self.loss)
        self._require_columns_of_ratings()
        self._require_heads_that_fit()

    def _require_heads_that_fit(self) -> None:
        several = {
            f"ensemble.heads is {self.ensemble.heads}": self.ensemble.heads > 1,
            f"groups.count is {self.groups.count}": self.groups.count > 1,
            f"mixture.heads is {self.mixture.heads}": self.mixture.heads > 1,
            f"latent.size is {self.latent.size}": self.latent.size > 0,
        }
        kept = {
            f"regulariser.form is {self.regulariser.form!r}": self.regulariser.form is not None,
            f"bound.ridge is {self.bound.ridge}": self.bound.ridge is not None,
            f"contrastive.weight is {self.contrastive.weight}": self.contrastive.weight > 0,
        }
        ridge = f"bound.ridge is {self.bound.ridge}"
        require_one_of({name: here for name, here in kept.items() if name != ridge})
        for name, here in kept.items():
            require_one_of(several | {name: here})
        asked = next((name for name, here in (several | kept).items() if here), None)
        if asked is not None and self.row.rows != "pairs":
            raise ConfigError(
                f"{asked} with objective {self.objective!r}, which learns from something else than "
                "pairs; expected bradley-terry, or the default of this setting"
            )
        whole = not self.row.beginnings and self.row.reading != "segment-ends"
        if asked is not None and asked != ridge and asked in kept and not whole:
            raise ConfigError(
                f"{asked} with positions {self.positions!r}; expected bradley-terry at 'last' or "
                "'every', which alone reads whole pairs"
            )
        if self.latent.size and self.row.reading == "segment-ends":
            raise ConfigError(
                f"latent.size is {self.latent.size} with positions {self.positions!r}, where a "
                "score is a mean that says nothing of users; expected 'last', 'every' or 'pairs'"
            )
        if self.loss.centering and (self.groups.count > 1 or self.mixture.heads > 1):
            raise ConfigError(
                f"loss.centering is {self.loss.centering} with several heads that share the pairs "
                "among them; expected 0"
            )
        by_user = self.latent.size > 0 or (self.groups.count > 1 and self.groups.of == "users")
        if by_user != (self.columns.user is not None):
            raise ConfigError(
                f"columns.user is {self.columns.user!r}, with groups.count {self.groups.count}, "
                f"groups.of {self.groups.of!r} and latent.size {self.latent.size}; expected the "
                "column that says who prefers, with groups of users or a latent.size above 0 alone"
            )

    def _require_columns_of_ratings(self) -> None:
        names, scale = self.columns.ratings, self.columns.rating_scale
        several = self.row.rows == "several-ratings"
        if several != bool(names) or (scale is not None and not several):
            raise ConfigError(
                f"columns.ratings is {list(names)} and columns.rating_scale {scale} with objective "
                f"{self.objective!r}; expected columns with multi-objective-regression, one of "
                "each objective, and neither with another objective"
            )
        if len(set(names)) < len(names) or any(set(name) & set("#=,") for name in names):
            raise ConfigError(
                f"columns.ratings is {list(names)}; expected each column once, and no '#', '=' or "
                "',' in a name, which stand between the names of objectives elsewhere"
            )
        if scale is not None and not scale[0] < scale[1]:
            raise ConfigError(
                f"columns.rating_scale is {list(scale)}; expected its least number, then its "
                "greatest"
            )

    @property
    def entropy_reference(self) -> str | None:
        """The language model that is asked where segments end; None where none is asked."""
        if self.row.reading != "segment-ends" or self.segments.kind != "entropy":
            return None
        return self.segments.reference or self.model

    @property
    def row(self) -> Objective:
        """What the table says of the objective."""
        return objective_row(self.objective, self.positions, self.loss)


LabelSource = Literal["edits", "spans", "steps"]


SpanLayout = Literal["rows", "xcomet"]


@dataclass(frozen=True)
class TokenLabelColumns:
    """Names of the columns of edits, labelled spans or labelled steps."""

    prompt: str | None = setting(None, was="prompt_column")
    """Prompts, texts or lists of chat messages. None takes `prompt` where it is there; else the
    texts have no prompt."""
    rejected: str = setting("rejected", was="rejected_column")
    """Responses before the edit."""
    edited: str = setting("edited", was="edited_column")
    """Responses after it."""
    text: str = setting("text", was="text_column")
    """Texts that spans are about."""
    spans: str = setting("spans", was="spans_column")
    """Lists of spans: objects with `start`, `end` and `label`."""
    completions: str = setting("completions", was="completions_column")
    """Lists of steps."""
    labels: str = setting("labels", was="labels_column")
    """Lists of 0 and 1, one per step."""


@dataclass(frozen=True)
class TrainTokenClassifierConfig:
    """One token classifier; an edit is two rows, before and after it."""

    data: str
    """JSON-lines file, dataset folder or dataset id."""
    model: str
    """Hub id or folder of the language model or classifier to start from."""
    labels: LabelSource
    """Where labels come from. `edits`: tokens that an edit removed are negative, those that it
    added positive. `spans`: labelled pieces of a text. `steps`: good and bad steps, labelled at
    their last token."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    severities: tuple[str, ...] = ()
    """The labels of spans, from the mildest to the worst; needed for `spans`."""
    span_layout: SpanLayout = "rows"
    """`rows` hold a text and its spans, by the names in `columns`; `xcomet` is what `comet-score
    --to_json` writes: `src` (unless there is a `prompt`), `mt` and `errors`, with the severities
    minor, major and critical."""
    least_confidence: float = 0.0
    """Leave out spans that xCOMET is less sure of, from 0 to 1."""
    overlapping: Overlapping = "worst"
    """Where spans overlap, the `worst` label wins, or it is an `error`."""
    step_separator: str = "\n"
    """Text after every step."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the loss, in the order of the classes; empty for 1."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts; written into its configuration."""
    max_length: int = 512
    """Most tokens of prompt and response. A longer row loses the start of its prompt first, and
    then the end of its response."""
    columns: TokenLabelColumns = group(TokenLabelColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings)
    """How it is trained. The learning rate is 2e-5, or 2e-4 with LoRA, unless it is given."""
    lora: LoraSettings = group(LoraSettings)
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit")
        require_float32(self.loading, frozen=self.lora.rank)
        require_gpu_if_quantized(self.lora, self.device)
        settle_learning_rate(self, of_all=2e-5, of_lora=2e-4)
        if self.max_length < 2:
            raise ConfigError(
                f"max_length is {self.max_length}; expected at least 2, a token of the prompt and "
                "one of the response"
            )
        if (self.labels == "spans") != bool(self.severities):
            raise ConfigError(
                f"labels is {self.labels!r} and severities {list(self.severities)}; expected the "
                "labels of the spans, from the mildest to the worst, for spans alone"
            )
        self._require_layout_that_fits()
        if len(set(self.severities)) < len(self.severities):
            raise ConfigError(f"severities is {list(self.severities)}; expected each label once")
        if self.class_weights and len(self.class_weights) != len(self.classes):
            raise ConfigError(
                f"class_weights is {list(self.class_weights)}; expected one weight for each of "
                f"{list(self.classes)}"
            )

    def _require_layout_that_fits(self) -> None:
        if self.span_layout == "xcomet":
            named = self.columns != TokenLabelColumns(prompt=self.columns.prompt)
            if self.labels != "spans" or named:
                raise ConfigError(
                    f"span_layout is 'xcomet' with labels {self.labels!r} and {self.columns}; "
                    "expected labels 'spans' and no name of a column but that of the prompt: "
                    "xCOMET's are mt and errors"
                )
        elif self.least_confidence:
            raise ConfigError(
                f"least_confidence is {self.least_confidence} with span_layout "
                f"{self.span_layout!r}, whose spans have none; expected span_layout 'xcomet', or 0"
            )
        if not 0 <= self.least_confidence <= 1:
            raise ConfigError(
                f"least_confidence is {self.least_confidence}; expected a probability, 0 to 1"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        if self.labels == "spans":
            return ("correct", *self.severities)
        return ("negative", "positive") if self.labels == "edits" else ("bad", "good")
