"""The groups of settings of `tokencredit train-policy`, each with its words and its own checks."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.policy.advantages import ValuePooling
from tokencredit.policy.methods import (
    ALGORITHMS,
    AdvantageSettings,
    Scale,
    algorithm,
    require_discount,
)
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.settings import require_trainable_device, setting
from tokencredit.sampling import Sampling


@dataclass(frozen=True)
class PromptSettings:
    """Which prompts are read, and how much of each."""

    column: str = setting("prompt", was="prompt_column")
    """Column of the prompts: texts, or lists of chat messages; `prompt` also finds other usual
    names."""
    split: str = "train"
    """Split of a dataset folder or id, or a slice of one."""
    tokens: list[int] | None = setting(None, was="prompt_tokens")
    """Keep only the first tokens of each prompt, a number of them drawn evenly between these two;
    None keeps whole prompts."""
    limit: int | None = setting(None, was="max_prompts")
    """Use only the first prompts of the dataset; None uses all."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", room="data.")
        kept = self.tokens
        if kept is not None and not (len(kept) == 2 and 1 <= kept[0] <= kept[1]):
            raise ConfigError(f"data.tokens is {kept}; expected two numbers, 1 <= least <= most")


@dataclass(frozen=True)
class ServerSettings:
    """How to reach a reward model that another process serves."""

    token_variable: str | None = setting(None, was="reward_token_variable")
    """Environment variable that holds the token of the server; None for a server without one."""
    timeout: float = setting(90.0, was="reward_server_timeout")
    """Seconds to wait for an answer."""
    retries: int = setting(10, was="reward_server_retries")
    """How often a server that is down, slow or full is asked again, with growing pauses, before the
    run stops; its last checkpoint stays."""


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn, and what becomes of those that were cut off."""

    min_new_tokens: int = 0
    """Fewest tokens of a response; no end of sequence comes earlier."""
    max_new_tokens: int = 64
    """Most tokens of a response; longer ones are cut."""
    response_lengths: Literal["eos", "uniform"] = "eos"
    """`eos` ends responses at any token that the policy declares as an end; `uniform` forbids these
    tokens and draws each length evenly from `min_new_tokens` to `max_new_tokens`."""
    temperature: float = 1.0
    """Temperature: logits are divided by it."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that together have this probability; 1 for all."""
    force_eos: bool = False
    """Make the last token of a response of full length the tokenizer's end of sequence."""
    logprobs_of: Literal["sampled", "unmasked"] = "sampled"
    """`sampled`: log-probabilities under the distribution that tokens were drawn from, with
    suppressed tokens, temperature, top-k and top-p. `unmasked`: without suppression and truncation,
    as in published code, which lets the policy farm negative KL."""
    truncated: Literal["ended", "bootstrap", "mask", "penalty", "replace"] = "ended"
    """How a response that was cut off counts: `ended`, like any other; `bootstrap`, with the
    critic's value of its last state instead of a score that is due at the end; `mask`, not in the
    losses; `penalty`, with `truncation_penalty` subtracted from its last token; `replace`, with
    that instead of all it earned."""
    truncation_penalty: float = 0.0
    """Penalty of a response that was cut off, in nats."""

    def __post_init__(self) -> None:
        sampling_of(self)  # what cannot be drawn is an error before a model is read
        if self.truncation_penalty and self.truncated not in ("penalty", "replace"):
            raise ConfigError(
                f"sampling.truncation_penalty is {self.truncation_penalty} but sampling.truncated "
                f"is {self.truncated!r}; expected truncated='penalty' or 'replace', or no penalty"
            )
        if self.response_lengths == "uniform" and (self.force_eos or self.truncated != "ended"):
            raise ConfigError(
                "sampling.response_lengths is 'uniform', which forbids the end of sequence, "
                f"together with force_eos={self.force_eos} and truncated={self.truncated!r}; "
                "expected force_eos=False and truncated='ended'"
            )


@dataclass(frozen=True)
class AlgorithmSettings:
    """How responses and their token rewards become updates."""

    name: str = "ppo"
    """`ppo` with a critic; without one `reinforce`, `reinforce++`, `rloo`, `grpo`, `remax`, and
    `leave-one-out-to-go`, `group-mean-to-go`, `index-baseline-to-go`, `index-centred`, which keep
    the credit of each token; `likelihood` learns to repeat what `selection.keep` leaves; `crpg`,
    `crraft` and `codpo` learn from what `judges` say; `soft-q` is soft Q-learning."""
    samples_per_prompt: int = 1
    """Responses to each prompt of a step; at least 2 for algorithms that compare them."""
    epochs: int = setting(4, was="ppo_epochs")
    """Passes over each batch."""
    minibatch_size: int | None = None
    """Responses per optimiser step, over all processes; None for the whole batch."""
    micro_batch_size: int | None = None
    """Responses per backward pass, and per forward pass of scoring; gradients add up to the
    minibatch. None for the whole minibatch, and all responses of a process."""
    clip_eps: float = 0.2
    """How far the policy ratio may move from 1 before it is clipped."""
    value_clip_eps: float | None = 0.2
    """How far values may move per batch, in nats; None for any distance."""
    value_coef: float = 0.1
    """Weight of the critic's loss."""
    gamma: float = 1.0
    """Discount; below 1 no credit conserves the return."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation; tune it for each credit."""
    value_pooling: ValuePooling = "first"
    """Value of a macro action, from the values of its tokens: of the `first`, which alone does not
    look at what the action does; the `mean`, as published; of the `last`; or by `position`,
    weighted by 1 / i. Needs `segments.use: macro-actions`."""
    scale: Scale = "group"
    """What `grpo` divides by: the standard deviation of its group, that of the batch, or
    nothing."""
    whiten_advantages: bool | None = None
    """Scale advantages to mean 0 and variance 1 over the batch; None does so only for `ppo`."""
    advantage_clip: float | None = None
    """Largest absolute advantage, after whitening; None for any."""
    critic: Literal["shared", "separate", "reward-model"] = "shared"
    """`shared`: a value head on the policy's trunk. `separate`: a copy of the policy.
    `reward-model`: a copy of the reward model, which starts from its prefix scores, or from 0 where
    tokens are paid by prefix scores."""

    def __post_init__(self) -> None:
        row = algorithm(self.name)
        require_at_least(self, 1, "epochs", "samples_per_prompt")
        if not 0 < self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ConfigError(
                f"algorithm.gamma is {self.gamma} and algorithm.gae_lambda {self.gae_lambda}; "
                "expected gamma in (0, 1] and gae_lambda in [0, 1]"
            )
        require_discount(self.name, self.gamma, setting="algorithm.name")
        if row.needs == "groups" and self.samples_per_prompt < 2:
            raise ConfigError(
                f"algorithm.name is {self.name!r}, which compares responses to one prompt, and "
                f"algorithm.samples_per_prompt {self.samples_per_prompt}; expected at least 2"
            )
        if self.advantage_clip is not None and not self.advantage_clip > 0:
            raise ConfigError(
                f"algorithm.advantage_clip is {self.advantage_clip}; expected more than 0, or none"
            )
        if row.loss != "clipped" and (self.whiten_advantages or self.advantage_clip):
            has_none = row.loss == "path-consistency"
            why = "has no advantages" if has_none else "weighs every token alike"
            raise ConfigError(
                f"algorithm.whiten_advantages is {self.whiten_advantages} and "
                f"algorithm.advantage_clip {self.advantage_clip} with algorithm.name "
                f"{self.name!r}, which {why}; expected neither"
            )
        if not self.has_critic and self.critic != "shared":
            raise ConfigError(
                f"algorithm.critic is {self.critic!r} with algorithm.name {self.name!r}, which has "
                "no critic; expected none: leave algorithm.critic out, or take 'ppo'"
            )

    @property
    def has_critic(self) -> bool:
        """Whether a critic is built, trained and stored."""
        return ALGORITHMS[self.name].needs == "critic"

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        own = self.whiten_advantages
        return ALGORITHMS[self.name].whitens if own is None else own

    @property
    def options(self) -> AdvantageSettings:
        """Options of the function that makes advantages."""
        return AdvantageSettings(
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            scale=self.scale,
            value_pooling=self.value_pooling,
        )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its learning rate along the run, and the largest gradient."""

    learning_rate: float | None = None
    """Learning rate of AdamW; None takes 1e-5, or 1e-4 with LoRA."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """`constant`, or `linear` down to zero at the last step."""
    adam_epsilon: float = 1e-5
    """Epsilon of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    critic_warmup: int = 0
    """First steps in which the critic alone learns; the policy stays as it is."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "critic_warmup", room="optimizer.")

    @property
    def rate(self) -> float:
        """The learning rate, which the settings of a run have put where none was named."""
        assert self.learning_rate is not None
        return self.learning_rate


@dataclass(frozen=True)
class KLSettings:
    """What it costs the policy to leave its reference, and what it earns by staying undecided."""

    coef: float = 0.05
    """Price of a nat of KL, or of the root of the chi-square, in the reward."""
    target: float | None = None
    """KL per response, in nats, to which `coef` adapts; None keeps it fixed."""
    horizon: int = 10_000
    """Responses over which a full correction of `coef` is spread."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL in the reward or in the loss."""
    loss_coef: float = 0.0
    """Price of a nat of KL, or of the root of the chi-square, in the loss instead of the reward."""
    penalty: Literal["kl", "sqrt-chi-square"] = "kl"
    """What `coef` and `loss_coef` price: `kl`, or `sqrt-chi-square`, the root of the chi-square
    divergence of whole responses, of which each token pays its share in the reward."""
    forward_coef: float = 0.0
    """Price in the loss of a nat of KL(reference || policy) over the vocabulary, per token."""
    entropy_coef: float = 0.0
    """Bonus in the loss for a nat of the policy's entropy, per token."""
    reference_dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Number type of the reference's weights. The policy's are float32; with less, the KL is not 0
    even where both models are the same."""

    def __post_init__(self) -> None:
        if self.coef > 0 and self.loss_coef > 0:
            raise ConfigError(
                f"kl.coef is {self.coef} and kl.loss_coef {self.loss_coef}; expected KL in the "
                "reward or in the loss, not both: set one of them to 0"
            )
        for name in ("coef", "loss_coef", "forward_coef", "entropy_coef"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"kl.{name} is {getattr(self, name)}; expected a finite number, 0 or more"
                )
        if self.loss_coef > 0 and self.estimator == "k1" and self.penalty == "kl":
            raise ConfigError(
                "kl.loss_coef with kl.estimator 'k1', whose gradient is zero on average; expected "
                "'k2' (the gradient of the true KL) or 'k3'"
            )
        if self.target is not None and self.coef <= 0:
            raise ConfigError(
                f"kl.target is {self.target} with kl.coef {self.coef}; an adaptive coefficient "
                "needs a positive start"
            )

    @property
    def has_chi_square_loss(self) -> bool:
        """Whether the root of the chi-square is a term of the loss."""
        return self.penalty == "sqrt-chi-square" and self.loss_coef > 0


@dataclass(frozen=True)
class MachineSettings:
    """Where models lie, and who computes."""

    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` runs generation and updates under autocast."""
    offload_frozen: bool = setting(False, free=True)
    """Keep the frozen models on the CPU and bring each to the device only while it is called."""
    gather_for_generation: bool = setting(True, free=True)
    """Under FSDP2, hold the whole policy on every device while responses are drawn; False gathers
    one layer at a time for every token, slowly, for policies that are larger than a device."""
    vllm_server: str | None = setting(None, free=True)
    """Address of a vLLM server that draws the responses and is sent the weights before every
    rollout, for example `http://localhost:8000`; None draws them here."""
    vllm_weights: Literal["auto", "nccl", "folder"] = setting("auto", free=True)
    """How the weights get there: `nccl` between GPUs, `folder` through files that the server reads;
    `auto` takes NCCL if the server was started for it and the policy is on a GPU."""
    vllm_folder: str | None = setting(None, free=True)
    """Folder of these files, which the server must see under the same path, for example below
    `/dev/shm`; None takes the run folder."""
    process_timeout: float = setting(600.0, free=True)
    """Seconds that one of several processes waits for the others before it stops; more than the
    slowest step of any of them takes, a checkpoint included."""

    def __post_init__(self) -> None:
        require_trainable_device(self.device, name="machine.device")
        if not 0 < self.process_timeout < 1e9:
            raise ConfigError(
                f"machine.process_timeout is {self.process_timeout}; expected a number of seconds "
                "above 0"
            )


@dataclass(frozen=True)
class RecordSettings:
    """What a run keeps and shows of itself."""

    checkpoint_every: int = 50
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints are kept."""
    sample_every: int = 10
    """Steps between written samples with their token rewards."""
    sample_count: int = 4
    """Responses per written sample."""
    trackers: tuple[str, ...] = ()
    """Trackers of Accelerate, for example `tensorboard`, `wandb`, `trackio`."""
    progress: bool = True
    """Show a progress bar."""
    figure: bool = True
    """Write `frontier.png` at the end: score and held-out score against the KL."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "checkpoint_every", "keep_checkpoints")


def sampling_of(
    settings: SamplingSettings, *, end_ids: tuple[int, ...] = (), undrawable: tuple[int, ...] = ()
) -> Sampling:
    """How responses are drawn under these settings.

    Args:
        settings: as the user gave them.
        end_ids: what ends a response of the policy.
        undrawable: ids without a token.
    """
    forbidden = end_ids if settings.response_lengths == "uniform" else ()
    return Sampling(
        min_new_tokens=settings.min_new_tokens,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        suppress_tokens=(*forbidden, *undrawable),
        force_eos=settings.force_eos,
    )
