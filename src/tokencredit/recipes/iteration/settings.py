"""The settings of `iterate-preferences`, with what they refuse."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError
from tokencredit.names import named
from tokencredit.policy.losses.methods import preference_loss
from tokencredit.policy.losses.options import PreferenceLossSettings
from tokencredit.policy.preferred import Agreement
from tokencredit.policy.setups import ONLINE_SETUPS, ROW_KINDS, JudgedBy, OnlineSetup, RowKind
from tokencredit.preference.hf_answers import AnswerColumns
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least
from tokencredit.recipes.decoding.settings import PromptSettings, SamplingSettings
from tokencredit.recipes.policy.setting_groups import ServerSettings
from tokencredit.recipes.preferences.settings import (
    RegulariserSettings,
    TokenWeightSettings,
    TrainPreferencesConfig,
    asks_reward_model,
    pays_tokens,
)
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    LoraSettings,
    TrainingSettings,
    group,
    setting,
    settle_learning_rate,
)
from tokencredit.sampling import Sampling
from tokencredit.scorers.functions import names_function
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings, require_writer
from tokencredit.text.segments import SegmentSettings

FIRST, PREVIOUS = "first", "previous"


@dataclass(frozen=True)
class IteratePreferencesConfig:
    """One policy that learns from its own responses, round by round."""

    prompts: str
    """Dataset id or JSON-lines file of what is asked."""
    model: str
    """Hub id or folder of the causal language model to start from."""
    output: str = setting(free=True)
    """Run folder; each round is a run of train-preferences inside it."""
    setup: str = "online-dpo"
    """Name of a set-up; `tokencredit methods --kind setup` lists them. `custom` leaves `judged_by`,
    `rows` and `loss` to the settings."""
    rounds: int = setting(3, free=True)
    """How many rounds of drawing, judging and training."""
    samples: int | None = None
    """Responses to each prompt of a round; None takes that of the set-up."""
    prompts_per_round: int | None = None
    """How many prompts each round takes, the next ones of a random order; None takes all in every
    round."""
    judged_by: JudgedBy | None = None
    """`scores` of the reward model or judges, `win-rates` by these scores among the responses to a
    prompt, the policy's own `log-ratio` to `base`, or `nothing`. None takes that of the set-up."""
    rows: RowKind | None = None
    """What is made of the responses to a prompt: `best-worst`, `best-random`, `best-second` or
    `all-pairs`, `demonstration` (against each response), `list`, `best`, or `each`. None takes that
    of the set-up."""
    loss: str | None = None
    """Name of a loss of train-preferences; None takes that of the set-up."""
    options: PreferenceLossSettings = group(PreferenceLossSettings)
    """Options of the loss."""
    reference: str | None = None
    """What log-ratios compare with: `previous`, the policy that the round starts from; `first`, the
    model of the first round; or the Hub id or folder of another. None takes that of the set-up."""
    teacher: str | None = None
    """Hub id or folder of the aligned model to learn from, for losses with a teacher."""
    teacher_reference: str | None = None
    """For losses that compare two teachers: Hub id or folder of the other one; None takes the
    reference in the teacher's configuration."""
    reward_model: str | None = None
    """What scores responses: Hub id or folder of a reward model, the address of one that is served,
    or `module:function`, a Python function from prompts and responses to one number each."""
    judge: JudgingSettings = group(JudgingSettings)
    """How `reward_model` is asked as a judge; only with a `setup`. It is then a causal language
    model by Hub id or folder, or `http(s)://.../v1#name` of an endpoint."""
    judges: tuple[str, ...] = ()
    """`module:function` of each judge: from prompts and responses to one True or False for each
    response. The best of those that pass all is chosen, the worst of the others is rejected.
    Without a reward model passing is the score."""
    held_out_reward_model: str | None = setting(None, free=True)
    """A second reward model, whose scores are reported but not learnt from."""
    base: str | None = None
    """For `log-ratio`: Hub id or folder of the model that the first policy was trained from. None
    takes the first policy, whose own responses are then judged by their likelihood per token."""
    agreement: Agreement = "kendall"
    """For loss `cream`: how the rankings of a policy and of the one before are compared."""
    consistency: Literal["average", "per-prompt"] = "average"
    """For loss `cream`: `average` gives all pairs the mean consistency of their round, `per-prompt`
    gives each its own."""
    least_gap: float = 0.0
    """Pairs whose scores differ by less are left out; in nats, as they are judged."""
    rounds_of_rows: int | None = None
    """Learn from the rows of this many last rounds; None takes that of the set-up."""
    demonstrations: str | None = None
    """Column of `prompts` with given answers. `spin` prefers them to the policy's own; where
    responses are scored, they are candidates as well."""
    data: PromptSettings = group(PromptSettings)
    """Which prompts are read; `data.tokens` is not allowed here."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of prompts that cannot be used."""
    sampling: SamplingSettings = group(SamplingSettings)
    """How responses are drawn; a temperature of None is that of the set-up."""
    prompts_at_once: int = 8
    """Prompts whose responses are drawn together, with a seed of their own."""
    server: ServerSettings = group(ServerSettings, free=True)
    """How to reach a served reward model."""
    reward_reading: ReadingSettings = group(ReadingSettings)
    """How reward models read texts, where their configurations do not say."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the policy reads texts, and what ends its responses."""
    token_weights: TokenWeightSettings = group(TokenWeightSettings)
    regulariser: RegulariserSettings = group(RegulariserSettings)
    credit: CreditSettings = group(CreditSettings)
    """How credit is made, for weights and the regulariser; of `reward_model` where it is made of
    scores."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut, for credit that needs segments."""
    max_length: int = 512
    """Most tokens of prompt and response in training."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first: `prompt-start` and then the end of the response, or
    `response-end`."""
    evaluation: HeldOutSettings = group(HeldOutSettings)
    """Rows of each round that are held out."""
    training: TrainingSettings = group(TrainingSettings, batch_size=8, warmup=0.1)
    """How each round is trained. The learning rate is 1e-6, or 1e-5 with LoRA, unless it is
    given."""
    lora: LoraSettings = group(LoraSettings)
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show progress bars."""

    def __post_init__(self) -> None:
        for name in ("judged_by", "rows", "loss"):
            self._settle(name)
        for name in ("samples", "rounds_of_rows"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.row, name))
        require_at_least(self, 1, "rounds", "rounds_of_rows", "prompts_at_once", "samples")
        require_at_least(self, 0, "least_gap")
        if self.prompts_per_round is not None:
            require_at_least(self, 1, "prompts_per_round")
        settle_learning_rate(self, of_all=1e-6, of_lora=1e-5)
        require_writer(self.reading, name="reading")
        self._settle_reference()
        self._require_rows()
        self._require_judges()
        self._require_sampling()
        self.of_round(0), self.of_round(1)  # what train-preferences refuses is an error now

    @property
    def row(self) -> OnlineSetup:
        """What the table says of the set-up.

        Raises:
            ConfigError: there is none of this name.
        """
        return named("setup", self.setup, ONLINE_SETUPS)

    @property
    def learns_from_own_ratio(self) -> bool:
        """Whether the policy judges its responses itself."""
        return self.judged_by == "log-ratio"

    @property
    def is_scored(self) -> bool:
        """Whether responses are chosen by scores of a reward model or judges."""
        return self.judged_by in ("scores", "win-rates")

    def sampling_of_run(self, suppress_tokens: tuple[int, ...] = ()) -> Sampling:
        """How responses are drawn.

        Args:
            suppress_tokens: ids that are never drawn.
        """
        own = self.sampling
        if own.temperature is None:
            own = replace(own, temperature=self.row.temperature)
        return own.of_search(suppress_tokens=suppress_tokens)

    def policy_before(self, number: int) -> str:
        """The policy that a round starts from: that of the round before, or the first model."""
        return self.model if number == 0 else str(self.folder_of(number - 1))

    def folder_of(self, number: int) -> Path:
        """The run folder of a round."""
        return Path(self.output) / f"round-{number:03d}"

    def data_of(self, number: int) -> Path:
        """The rows that a round learns from."""
        return Path(self.output) / f"rows-{number:03d}.jsonl"

    def of_round(self, number: int) -> TrainPreferencesConfig:
        """The settings of `train-preferences` in a round.

        Args:
            number: of the round, from 0.
        """
        shared = {one.name for one in fields(TrainPreferencesConfig)} & {
            one.name for one in fields(type(self))
        }
        own: dict[str, Any] = {
            "data": str(self.data_of(number)),
            "model": self.policy_before(number),
            "output": str(self.folder_of(number)),
            "options": self._options,
            "reference": self._reference_of(number),
            "reward_model": self.reward_model if self._pays_by_scores else None,
            "columns": AnswerColumns(prompt="prompt"),
            "dataset": DatasetSettings(bad_rows=self.dataset.bad_rows),
            "seed": self.seed + number,
        }
        kept = {name: getattr(self, name) for name in shared - set(own)}
        return TrainPreferencesConfig(**kept, **own)

    @property
    def _options(self) -> PreferenceLossSettings:
        """Options as given, those of the set-up where none are."""
        given = vars(self.options)
        of_setup = self.row.options if self.loss == self.row.loss else {}
        return replace(
            self.options, **{key: one for key, one in of_setup.items() if given[key] is None}
        )

    @property
    def _pays_by_scores(self) -> bool:
        pays = pays_tokens(self.token_weights, self.regulariser, self.options)
        return pays and asks_reward_model(self.credit)

    def _reference_of(self, number: int) -> str | None:
        """The reference of a round; None for the policy that the round starts from."""
        if self.reference in (None, PREVIOUS) or (self.reference == FIRST and number == 0):
            return None
        return self.model if self.reference == FIRST else self.reference

    def _settle(self, name: str) -> None:
        """Put what the set-up says where the settings say nothing."""
        given, own = getattr(self, name), getattr(self.row, name)
        if given is None:
            object.__setattr__(self, name, own)
        elif given != own and not self.row.free:
            raise ConfigError(
                f"{name} is {given!r} with setup {self.setup!r}, which has {own!r}; expected that, "
                "or setup 'custom'"
            )

    def _settle_reference(self) -> None:
        has_one = "reference" in preference_loss(str(self.loss)).references
        allowed = self.row.references if has_one else ()
        if self.reference is None:
            object.__setattr__(self, "reference", allowed[0] if allowed else None)
        elif not has_one:
            raise ConfigError(
                f"reference is {self.reference!r} with loss {self.loss!r}, which has no reference; "
                "expected none, or another loss"
            )
        elif self.reference in (FIRST, PREVIOUS) and self.reference not in allowed:
            raise ConfigError(
                f"reference is {self.reference!r} with setup {self.setup!r}, whose reference is "
                f"{allowed[0]!r}; expected that, another model, or setup 'custom'"
            )

    def _require_rows(self) -> None:
        assert self.rows is not None
        assert self.samples is not None
        row, (learns_from, _) = preference_loss(str(self.loss)), ROW_KINDS[self.rows]
        if row.learns_from != learns_from:
            kinds = [name for name, (kind, _) in ROW_KINDS.items() if kind == row.learns_from]
            raise ConfigError(
                f"rows is {self.rows!r}, which makes {learns_from}, with loss {self.loss!r}, which "
                f"learns from {row.learns_from}; expected rows {' or '.join(kinds)}, or another "
                "loss"
            )
        compares = self.rows not in ("demonstration", "each")
        candidates = self.samples + (self.demonstrations is not None)
        if compares and candidates < 2:
            raise ConfigError(
                f"samples is {self.samples} with rows {self.rows!r}, which compares responses to "
                "one prompt; expected at least 2"
            )
        if self.rows == "demonstration" and self.demonstrations is None:
            raise ConfigError(
                "rows is 'demonstration' and demonstrations is none; expected the column of "
                "`prompts` that holds answers of others, 'completion' for example"
            )
        if compares and self.judged_by == "nothing":
            raise ConfigError(
                f"judged_by is 'nothing' with rows {self.rows!r}, which compares responses; "
                "expected 'scores', 'win-rates' or 'log-ratio', or rows 'demonstration' or 'each'"
            )
        soft = "soft_labels" in row.needs
        if soft and not (self.learns_from_own_ratio and compares):
            raise ConfigError(
                f"loss is {self.loss!r}, whose labels are as soft as two rankings of the policy "
                f"are consistent, with judged_by {self.judged_by!r} and rows {self.rows!r}; "
                "expected judged_by 'log-ratio' and pairs of own responses"
            )
        if "scores" in row.needs and (self.rows == "demonstration" or not self.is_scored):
            raise ConfigError(
                f"loss is {self.loss!r}, which asks for scores, with rows {self.rows!r} and "
                f"judged_by {self.judged_by!r}, which give none; expected another loss"
            )
        if not soft and (self.agreement, self.consistency) != ("kendall", "average"):
            raise ConfigError(
                f"agreement is {self.agreement!r} and consistency {self.consistency!r} with loss "
                f"{self.loss!r}, which asks for neither; expected loss 'cream', or neither"
            )

    @property
    def judged(self) -> JudgingSettings | None:
        """How the reward model is asked as a judge; None where it is none."""
        return self.judge if self.judge.setup else None

    def _require_judges(self) -> None:
        if self.judged is not None:
            if self.reward_model is None or self._pays_by_scores:
                raise ConfigError(
                    f"judge.setup is {self.judge.setup!r} with reward_model "
                    f"{self.reward_model!r}; expected a judge as reward_model, and no credit that "
                    "is made of its scores"
                )
            RewardSource(self.reward_model, judge=self.judged)
        for name in self.judges:
            if not names_function(name):
                raise ConfigError(f"judges has {name!r}; expected `module:function` of each judge")
        if self.is_scored and self.reward_model is None and not self.judges:
            raise ConfigError(
                f"judged_by is {self.judged_by!r} and there is no reward_model; expected one "
                "(a folder, Hub id, address or `module:function`), or judges"
            )
        if self.judges and (self.judged_by != "scores" or self.rows not in ("best-worst", "best")):
            raise ConfigError(
                f"judges are given with judged_by {self.judged_by!r} and rows {self.rows!r}; "
                "expected judged_by 'scores' and rows 'best-worst' or 'best', or no judges"
            )
        if self.base is not None and not self.learns_from_own_ratio:
            raise ConfigError(
                f"base is {self.base!r} with judged_by {self.judged_by!r}; expected 'log-ratio', "
                "or no base"
            )
        if self.demonstrations is not None and self.learns_from_own_ratio:
            raise ConfigError(
                f"demonstrations is {self.demonstrations!r} with judged_by 'log-ratio', by which "
                "only own responses are judged; expected none"
            )
        if self.rows == "demonstration" and self.least_gap:
            raise ConfigError(
                f"least_gap is {self.least_gap} with rows 'demonstration', which are not scored; "
                "expected 0"
            )

    def _require_sampling(self) -> None:
        if self.data.tokens is not None:
            raise ConfigError(
                f"data.tokens is {self.data.tokens}; expected whole prompts: leave it out"
            )
        if self.sampling_of_run().temperature == 0.0:
            raise ConfigError(
                "sampling.temperature is 0, which draws the same response again and again; "
                "expected a positive number"
            )
        if self.sampling.max_new_tokens >= self.max_length:
            raise ConfigError(
                f"sampling.max_new_tokens is {self.sampling.max_new_tokens} and max_length "
                f"{self.max_length}, which leaves no room for a prompt; expected fewer new tokens"
            )
