"""The settings of `tokencredit train-policy`, and the combinations of groups that it refuses."""

import warnings
from dataclasses import dataclass, replace

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.policy.selection import SELECTIONS
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least
from tokencredit.recipes.policy.algorithm_checks import (
    require_dialogues_that_fit,
    require_soft_q_that_fits,
)
from tokencredit.recipes.policy.objective_checks import require_objectives_that_fit
from tokencredit.recipes.policy.objective_groups import (
    NONE,
    ConstraintSettings,
    JudgesSettings,
    ObjectiveSettings,
    PreferenceSettings,
)
from tokencredit.recipes.policy.reference_checks import require_references_that_fit
from tokencredit.recipes.policy.setting_groups import (
    AlgorithmSettings,
    KLSettings,
    MachineSettings,
    OptimizerSettings,
    PromptSettings,
    RecordSettings,
    SamplingSettings,
    ServerSettings,
)
from tokencredit.recipes.policy.value_groups import DialogueSettings, SoftQSettings
from tokencredit.recipes.policy.watch_groups import (
    OpponentSettings,
    PretrainingSettings,
    ReferenceSettings,
    SelectionSettings,
    StopSettings,
)
from tokencredit.recipes.settings import (
    LoadingSettings,
    LoraSettings,
    group,
    require_gpu_if_quantized,
    setting,
)
from tokencredit.scorers.source_settings import RewardSource, required_sources
from tokencredit.server.client import RewardServer
from tokencredit.server.exchange import is_address
from tokencredit.server.vllm_scoring import vllm_address
from tokencredit.text.reading_settings import ReadingSettings, require_writer
from tokencredit.text.segments import SHOWN_LATER, SegmentSettings


@dataclass(frozen=True)
class TrainPolicyConfig:
    """Settings of one training of a policy."""

    policy: str
    """Hub id or folder of the causal language model to train."""
    prompts: str
    """Dataset id or JSON-lines file."""
    output: str = setting(free=True)
    """Run folder."""
    reward_model: str | None = None
    """Hub id or folder of a sequence-classification model with one or two outputs, the address,
    `http(s)://...`, of a `tokencredit serve` that serves one, `vllm+http(s)://...` of a vLLM server
    that does, or `module:function`, a Python function from prompts and responses to scores."""
    rewards: tuple[RewardSource, ...] = ()
    """Several sources of reward instead of `reward_model`, each with its `model`, `name`, `weight`,
    the transform of its `score`, and its own `credit` and `segments` if it has them."""
    combine: CombinationSettings = group(CombinationSettings)
    """How several sources become one reward."""
    steps: int = setting(200, free=True)
    """Number of rollouts, each followed by its updates."""
    batch_size: int = 16
    """Responses per step, over all processes."""
    held_out_reward_model: str | None = None
    """A second reward model, or a Python function `module:function`, that scores every response but
    does not train the policy."""
    seed: int = 0
    """Seed of everything random."""
    data: PromptSettings = group(PromptSettings)
    """Which prompts are read, and how much of each."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of prompts that cannot be used."""
    server: ServerSettings = group(ServerSettings, free=True)
    """How to reach a served reward model."""
    credit: CreditSettings = group(CreditSettings)
    """How a score becomes token scores."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut into segments, and what segments are for."""
    score: ScoreSettings = group(ScoreSettings)
    """What is done to the score of `reward_model` before it is spread."""
    references: ReferenceSettings = group(ReferenceSettings)
    """Responses of the reference with which scores are compared."""
    opponent: OpponentSettings = group(OpponentSettings)
    """The opponent to beat, for Nash-MD."""
    objectives: ObjectiveSettings = group(ObjectiveSettings)
    """Several rewards with advantages of their own."""
    constraints: ConstraintSettings = group(ConstraintSettings)
    """Thresholds that single rewards keep."""
    judges: JudgesSettings = group(JudgesSettings)
    """Judges that decide whether a response may earn anything."""
    preference: PreferenceSettings = group(PreferenceSettings)
    """Weights of rewards that prompts name."""
    sampling: SamplingSettings = group(SamplingSettings)
    """How responses are drawn."""
    selection: SelectionSettings = group(SelectionSettings)
    """Which responses the policy learns from."""
    algorithm: AlgorithmSettings = group(AlgorithmSettings)
    """How token rewards become updates."""
    dialogue: DialogueSettings = group(DialogueSettings)
    """Dialogues of several turns, instead of single responses."""
    soft_q: SoftQSettings = group(SoftQSettings)
    """Settings of soft Q-learning."""
    optimizer: OptimizerSettings = group(OptimizerSettings)
    """The optimiser."""
    kl: KLSettings = group(KLSettings)
    """What it costs to leave the reference."""
    pretraining: PretrainingSettings = group(PretrainingSettings)
    """Texts that the policy learns besides its reward."""
    reading: ReadingSettings = group(ReadingSettings)
    """How reward models read texts, where their configurations do not say."""
    policy_reading: ReadingSettings = group(ReadingSettings)
    """How the policy reads prompts, and what ends its responses."""
    lora: LoraSettings = group(LoraSettings)
    """An adapter that is trained instead of all weights."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models and tokenizers are loaded."""
    machine: MachineSettings = group(MachineSettings)
    """Where models lie, and who computes."""
    stop_when: StopSettings = group(StopSettings, free=True)
    """When the run ends before its last step."""
    record: RecordSettings = group(RecordSettings, free=True)
    """What a run keeps and shows of itself."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "batch_size")
        require_writer(self.policy_reading, name="policy_reading")
        _settle_learning_rate(self)
        require_gpu_if_quantized(self.lora, self.machine.device)
        if self.lora.dropout:
            raise ConfigError(
                f"lora.dropout is {self.lora.dropout}; expected 0: the policy that is updated must "
                "be the one that was sampled from"
            )
        _require_batches_that_divide(self.batch_size, self.algorithm)
        _require_critic_where_needed(self.algorithm, self.sampling, self.segments)
        _require_macro_actions_for_pooling(self.algorithm, self.segments)
        for source in self.sources:
            _require_credit_that_fits(
                source.own_credit or self.credit, source.segments or self.segments
            )
        _require_responses_to_choose_from(self.selection, self.algorithm)
        require_dialogues_that_fit(self)
        if self.dialogue.environment is None:
            _require_critic_to_warm_up(self.optimizer, self.algorithm)
        require_references_that_fit(self)
        require_soft_q_that_fits(self)
        _require_server_that_fits(self)
        require_objectives_that_fit(self)
        if self.machine.vllm_server is not None and self.lora.rank:
            raise ConfigError(
                f"machine.vllm_server is {self.machine.vllm_server!r} with lora.rank "
                f"{self.lora.rank}; expected lora.rank 0: the server is sent whole weights, not an "
                "adapter"
            )
        if self.algorithm.gamma < 1 and self.credit.method != "terminal":
            warnings.warn(
                f"algorithm.gamma is {self.algorithm.gamma} with credit.method "
                f"{self.credit.method!r}: the sum of token rewards is conserved only undiscounted, "
                "so the objective changes; gamma = 1 keeps it",
                TokenCreditWarning,
                stacklevel=3,
            )

    @property
    def sources(self) -> tuple[RewardSource, ...]:
        """The sources of reward, one in the short form."""
        environment = self.dialogue.environment
        if environment is not None and self.reward_model is None and not self.rewards:
            return (RewardSource(environment, credit=CreditSettings("terminal")),)
        found = required_sources(
            self.reward_model,
            self.rewards,
            score=self.score,
            combine=self.combine,
            has_references=True,
        )
        if not self.weighs_rewards:
            return found
        return tuple(replace(one, credit=one.credit or self.credit) for one in found)

    @property
    def has_streams(self) -> bool:
        """Whether every reward has advantages of its own."""
        return self.objectives.mix != NONE or self.constraints.has_streams

    @property
    def weighs_rewards(self) -> bool:
        """Whether every reward has a credit of its own, since it is weighed by itself."""
        linear = self.constraints.is_linear or bool(self.preference.names)
        return linear or self.has_streams


def _settle_learning_rate(config: TrainPolicyConfig) -> None:
    """Put the learning rate where the settings name none, ten times as high for adapters."""
    if config.optimizer.learning_rate is None:
        rate = 1e-4 if config.lora.rank else 1e-5
        object.__setattr__(config, "optimizer", replace(config.optimizer, learning_rate=rate))


def warn_of_biased_gradient(config: TrainPolicyConfig) -> None:
    """Warn where rewards before a token are dropped although it may have changed them."""
    algorithm = config.algorithm
    if not ALGORITHMS[algorithm.name].needs_causal_credit:
        return
    used = [
        (one.credit or config.credit, one.segments or config.segments)
        for one in config.sources
        if one.weight != 0
    ]
    safe = " or ".join(
        repr(name)
        for name, row in ALGORITHMS.items()
        if not row.needs_causal_credit and row.loss == "clipped"
    )
    because = (
        f"{algorithm.name!r} leaves rewards before a token out of its advantage, as if it could "
        "not have changed them: the gradient is biased"
    )
    if config.combine.credit == "each" and config.combine.method != "sum":
        warnings.warn(
            "combine.credit 'each' weighs sources by the finished response, and algorithm.name "
            f"{because}. combine.credit 'together' or algorithm.name {safe} has no such bias",
            TokenCreditWarning,
            stacklevel=2,
        )
        return
    for credit, _ in used:
        if not credit_method(credit.method).causal and credit.terminal_share != 1:
            warnings.warn(
                f"credit.method {credit.method!r} pays a token for what comes after it, and "
                f"algorithm.name {because}. A causal credit, 'prefix-difference' for example, or "
                f"algorithm.name {safe} has no such bias",
                TokenCreditWarning,
                stacklevel=2,
            )
            return
    for credit, segments in used:
        if _ends_show_later(credit, segments):
            warnings.warn(
                f"segments.kind {segments.kind!r} ends segments where a later token shows it, and "
                f"algorithm.name {because}. segments.close 'when-shown', segments.kind 'ngram' or "
                f"algorithm.name {safe} has no such bias",
                TokenCreditWarning,
                stacklevel=2,
            )
            return


def _require_responses_to_choose_from(
    selection: SelectionSettings, algorithm: AlgorithmSettings
) -> None:
    samples = algorithm.samples_per_prompt
    needed = max(SELECTIONS[selection.keep].samples, selection.count)
    if samples < needed:
        raise ConfigError(
            f"selection.keep is {selection.keep!r} with selection.count {selection.count} and "
            f"algorithm.samples_per_prompt {samples}; expected at least {needed} responses to each "
            "prompt to choose from"
        )


def _require_critic_to_warm_up(optimizer: OptimizerSettings, algorithm: AlgorithmSettings) -> None:
    if optimizer.critic_warmup and not algorithm.has_critic:
        raise ConfigError(
            f"optimizer.critic_warmup is {optimizer.critic_warmup} with algorithm.name "
            f"{algorithm.name!r}, which has no critic; expected 0, or 'ppo'"
        )


def _ends_show_later(credit: CreditSettings, segments: SegmentSettings) -> bool:
    """Whether what a token is paid, or the macro action it belongs to, depends on later tokens."""
    if segments.kind not in SHOWN_LATER or segments.close == "when-shown":
        return False
    at_the_end = credit.method == "terminal" or credit.terminal_share == 1
    return segments.use == "macro-actions" or not at_the_end


def _require_batches_that_divide(batch_size: int, algorithm: AlgorithmSettings) -> None:
    minibatch = batch_size if algorithm.minibatch_size is None else algorithm.minibatch_size
    micro_batch = minibatch if algorithm.micro_batch_size is None else algorithm.micro_batch_size
    _require_multiple("batch_size", batch_size, "algorithm.minibatch_size", minibatch)
    _require_multiple(
        "algorithm.minibatch_size", minibatch, "algorithm.micro_batch_size", micro_batch
    )
    samples = algorithm.samples_per_prompt
    _require_multiple("batch_size", batch_size, "algorithm.samples_per_prompt", samples)


def _require_critic_where_needed(
    algorithm: AlgorithmSettings, sampling: SamplingSettings, segments: SegmentSettings
) -> None:
    if algorithm.has_critic:
        return
    needing = {
        "sampling.truncated is 'bootstrap'": sampling.truncated == "bootstrap",
        "segments.use is 'macro-actions'": segments.use == "macro-actions",
    }
    for what, needs in needing.items():
        if needs:
            raise ConfigError(
                f"{what} with algorithm.name {algorithm.name!r}, which has no critic; expected "
                "an algorithm with values, 'ppo', or another choice there"
            )


def _require_macro_actions_for_pooling(
    algorithm: AlgorithmSettings, segments: SegmentSettings
) -> None:
    if algorithm.value_pooling != "first" and segments.use != "macro-actions":
        raise ConfigError(
            f"algorithm.value_pooling is {algorithm.value_pooling!r} and segments.use "
            f"{segments.use!r}; expected segments.use 'macro-actions', whose values are pooled, or "
            "no algorithm.value_pooling"
        )


def _require_multiple(larger: str, size: int, smaller: str, part: int) -> None:
    if part < 1 or size % part:
        raise ConfigError(
            f"{larger} is {size} and {smaller} {part}; expected {larger} to be a multiple of "
            f"{smaller}"
        )


def _require_credit_that_fits(credit: CreditSettings, segments: SegmentSettings) -> None:
    method = credit_method(credit.method)
    needs_model = method.model_kind and "policy_attention" not in method.needs
    if bool(needs_model) != (credit.model is not None):
        expected = "a model for it" if needs_model else "none: this credit needs no second model"
        raise ConfigError(
            f"credit.model is {credit.model!r} with credit.method {credit.method!r}; expected "
            f"{expected}"
        )
    if "segments" in method.needs and segments.kind == "none":
        raise ConfigError(
            f"credit.method is {credit.method!r} and segments.kind 'none'; expected a kind of "
            "segments"
        )


def _require_server_that_fits(config: TrainPolicyConfig) -> None:
    """Refuse what reward models that are served, or not, do not allow."""
    held_out, models = config.held_out_reward_model, [one.model for one in config.sources]
    if config.stop_when.held_out_falls is not None and held_out is None:
        raise ConfigError(
            f"stop_when.held_out_falls is {config.stop_when.held_out_falls} and there is no "
            "held_out_reward_model; expected one, whose score is watched"
        )
    if held_out is not None and is_address(held_out):
        raise ConfigError(
            "held_out_reward_model is an address; expected a Hub id, a folder or module:function: "
            "only reward_model may be served"
        )
    served = [one.model for one in config.sources if one.judge is None]
    addresses = [model for model in served if is_address(model)]
    if not addresses and config.server.token_variable is not None:
        raise ConfigError(
            f"server.token_variable is {config.server.token_variable!r} and the reward model "
            f"{models[0]!r}, which is no address; expected http://host:port or https://host:port, "
            "or no token"
        )
    first = config.sources[0]
    if config.algorithm.critic == "reward-model" and (len(models) > 1 or not first.is_reward_model):
        raise ConfigError(
            f"algorithm.critic is 'reward-model' and the rewards are {', '.join(models)}; expected "
            "one reward model of this process, by Hub id or folder, or critic 'shared' or "
            "'separate'"
        )
    for address in addresses:
        RewardServer(
            vllm_address(address)[0], timeout=config.server.timeout, retries=config.server.retries
        )
