"""The settings of `tokencredit train-policy`, with the combinations that it refuses."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.sampling import Sampling
from tokencredit.server.client import RewardServer
from tokencredit.server.exchange import is_address

PolicyCredit = Literal[
    "terminal",
    "uniform",
    "attention",
    "generator-attention",
    "last-generator-attention",
    "prefix-difference",
    "smoothed-prefix-difference",
    "segment",
    "log-ratio",
    "shaped-log-ratio",
    "discriminator",
]


Segments = Literal["none", "ngram", "random-ngram", "sentence", "clause", "entropy", "perplexity"]


@dataclass(frozen=True)
class TrainPolicyConfig:
    """Settings of one PPO run.

    Attributes:
        policy: Hub id or folder of the causal language model to train.
        reward_model: Hub id or folder of a sequence-classification model with one or two outputs,
            or the address, `http(s)://...`, of a `tokencredit serve` that serves one.
        prompts: dataset id or JSON-lines file.
        output: run folder.
        prompt_column: column of the prompts, texts or lists of chat messages.
        prompt_tokens: keep this many first tokens of each prompt, drawn evenly between the two
            numbers; None keeps whole prompts.
        max_prompts: use only the first prompts of the dataset; None uses all.
        held_out_reward_model: a second reward model that scores every response and that the
            policy never sees.
        reward_token_variable: name of the environment variable that holds the token of a reward
            server; None for one that asks for none.
        reward_server_timeout: seconds that a reward server may take for one answer.
        reward_server_retries: how often a reward server that is down, slow or full is asked again,
            later and later, before the run stops; its last checkpoint stays.
        credit: how the score becomes token scores.
        credit_beta: share of the score that attention spreads; the rest stays on the last token.
        attention_layer: layer whose attention is read; -1 is the last.
        credit_decay: how much of the smoothed score before each token stays, from 0 (not smoothed
            at all) to below 1.
        credit_model: what the credit needs besides the reward model: a policy trained by DPO for
            the log-ratios, a token classifier with two classes for `discriminator`.
        credit_reference: reference of the first; None for the one in its configuration.
        credit_dpo_beta: price of a log-ratio; None for the one in its configuration.
        credit_clip: largest absolute log-ratio, in nats, after its price; None for none.
        segments: how responses are cut into segments: `ngram` of `segment_length` tokens,
            `random-ngram` of 1 to 10, `sentence` and `clause` of the text, `entropy` before
            tokens where that of the reference exceeds `segment_entropy`, `perplexity` where the
            reference is more surprised than before.
        segment_length: in tokens.
        segment_entropy: in nats.
        segment_use: `pay-at-end` sums the token scores of a segment and pays them at its last
            token, `macro-actions` leaves them and estimates one advantage per segment.
        terminal_share: share of the reward that is paid as a terminal reward instead, 0 to 1.
        score_normalization: `running` divides scores by the standard deviation seen so far and
            subtracts their mean, before they are spread.
        score_clip: largest absolute sequence score, in nats, after normalisation; None for none.
        steps: PPO steps: rollouts with their updates.
        batch_size: responses per step, over all processes.
        minibatch_size: responses per optimiser step; None for the whole batch.
        micro_batch_size: responses per backward pass, and per forward pass of scoring; gradients
            add up to the minibatch. None for the whole minibatch, and all responses of a process.
        ppo_epochs: passes over each batch.
        min_new_tokens: no end of sequence before this many tokens.
        max_new_tokens: responses are cut here.
        response_lengths: `eos` ends responses at the end of sequence; `uniform` forbids it and
            draws each length evenly from min_new_tokens to max_new_tokens.
        temperature: of sampling.
        top_k: of sampling; 0 for all tokens.
        top_p: of sampling; 1 for all tokens.
        force_eos: force the end of sequence as last token of a response of full length.
        logprobs_of: `sampled` scores the distribution tokens were drawn from (suppressed tokens,
            temperature, top-k and top-p included); `unmasked` ignores suppression and truncation,
            as published code does, and lets the policy farm negative KL.
        truncated: what a response that was cut off is: `ended` like any other, `bootstrap` adds
            the critic's value of its last state, `mask` leaves it out of the losses, `penalty`
            subtracts `truncation_penalty` from its last token.
        truncation_penalty: in nats.
        learning_rate: of AdamW.
        lr_schedule: `constant`, or `linear` down to zero at the last step.
        adam_epsilon: of AdamW.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        gamma: discount; below 1 no credit conserves the return.
        gae_lambda: of generalised advantage estimation.
        clip_eps: half-width of the trusted range of the policy ratio.
        value_clip_eps: how far values may move per batch, in nats; None for freely.
        value_coef: weight of the critic's loss.
        whiten_advantages: scale advantages to mean 0 and variance 1 over the batch.
        kl_coef: price of a nat of KL in the reward.
        kl_target: KL per response, in nats, to which kl_coef adapts; None keeps it fixed.
        kl_horizon: responses over which a full correction of kl_coef is spread.
        kl_estimator: of the KL in the reward or loss.
        kl_loss_coef: price of a nat of KL in the loss instead of the reward.
        critic: `shared` puts a value head on the policy's trunk, `separate` trains a copy of the
            policy, `reward-model` a copy of the reward model, whose prefix scores it starts from.
        lora_rank: train a LoRA adapter of this rank instead of all weights; 0 for all.
        lora_alpha: scale of the adapter.
        dtype: of the frozen reward model and reference.
        offload_frozen: keep the frozen models on the CPU and bring each to the device only while it
            is called.
        gather_for_generation: under FSDP2, hold the whole policy on every device while responses
            are drawn; False gathers one layer at a time for every token, slowly, for policies that
            are larger than a device.
        vllm_server: address of a vLLM server that draws the responses and is sent the weights
            before every rollout, for example `http://localhost:8000`; None draws them here.
        mixed_precision: `bf16` runs generation and updates under autocast.
        pad_token: padding of a policy whose tokenizer has none.
        attn_implementation: of transformers; None for its default.
        trust_remote_code: run code that comes with a model; off unless you trust its author.
        seed: of everything random.
        device: `cpu` keeps to the CPU; None takes what Accelerate finds.
        process_timeout: seconds that one of several processes waits for the others before it stops;
            more than the slowest step of any of them, a checkpoint included.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many stay.
        sample_every: steps between written samples with their token rewards.
        sample_count: responses per written sample.
        trackers: of Accelerate, for example `tensorboard`, `wandb`, `trackio`.
        progress: show a progress bar.
    """

    policy: str
    reward_model: str
    prompts: str
    output: str
    prompt_column: str = "prompt"
    prompt_tokens: list[int] | None = None
    max_prompts: int | None = None
    held_out_reward_model: str | None = None
    reward_token_variable: str | None = None
    reward_server_timeout: float = 90.0
    reward_server_retries: int = 10
    credit: PolicyCredit = "prefix-difference"
    credit_beta: float = 0.8
    attention_layer: int = -1
    credit_decay: float = 0.5
    credit_model: str | None = None
    credit_reference: str | None = None
    credit_dpo_beta: float | None = None
    credit_clip: float | None = None
    segments: Segments = "none"
    segment_length: int = 5
    segment_entropy: float = 2.0
    segment_use: Literal["pay-at-end", "macro-actions"] = "pay-at-end"
    terminal_share: float = 0.0
    score_normalization: Literal["none", "running"] = "none"
    score_clip: float | None = None
    steps: int = 200
    batch_size: int = 16
    minibatch_size: int | None = None
    micro_batch_size: int | None = None
    ppo_epochs: int = 4
    min_new_tokens: int = 0
    max_new_tokens: int = 64
    response_lengths: Literal["eos", "uniform"] = "eos"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    force_eos: bool = False
    logprobs_of: Literal["sampled", "unmasked"] = "sampled"
    truncated: Literal["ended", "bootstrap", "mask", "penalty"] = "ended"
    truncation_penalty: float = 0.0
    learning_rate: float = 1e-5
    lr_schedule: Literal["constant", "linear"] = "constant"
    adam_epsilon: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    value_clip_eps: float | None = 0.2
    value_coef: float = 0.1
    whiten_advantages: bool = True
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: int = 10_000
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_loss_coef: float = 0.0
    critic: Literal["shared", "separate", "reward-model"] = "shared"
    lora_rank: int = 0
    lora_alpha: int = 32
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    offload_frozen: bool = False
    gather_for_generation: bool = True
    vllm_server: str | None = None
    mixed_precision: Literal["no", "bf16"] = "no"
    pad_token: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    device: str | None = None
    process_timeout: float = 600.0
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    sample_every: int = 10
    sample_count: int = 4
    trackers: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        _require_positive(
            self, "steps", "batch_size", "ppo_epochs", "checkpoint_every", "keep_checkpoints"
        )
        if not 0 < self.process_timeout < 1e9:
            raise ConfigError(
                f"process_timeout is {self.process_timeout}; expected a number of seconds above 0"
            )
        minibatch = self.batch_size if self.minibatch_size is None else self.minibatch_size
        _require_multiple("batch_size", self.batch_size, "minibatch_size", minibatch)
        micro_batch = minibatch if self.micro_batch_size is None else self.micro_batch_size
        _require_multiple("minibatch_size", minibatch, "micro_batch_size", micro_batch)
        if self.kl_coef > 0 and self.kl_loss_coef > 0:
            raise ConfigError(
                f"kl_coef is {self.kl_coef} and kl_loss_coef {self.kl_loss_coef}; expected KL in "
                "the reward or in the loss, not both: set one of them to 0"
            )
        if self.kl_loss_coef > 0 and self.kl_estimator == "k1":
            raise ConfigError(
                "kl_loss_coef with kl_estimator 'k1', whose gradient is zero on average; expected "
                "'k2' (the gradient of the true KL) or 'k3'"
            )
        if self.kl_target is not None and self.kl_coef <= 0:
            raise ConfigError(
                f"kl_target is {self.kl_target} with kl_coef {self.kl_coef}; an adaptive "
                "coefficient needs a positive start"
            )
        if self.prompt_tokens is not None and not (
            len(self.prompt_tokens) == 2 and 1 <= self.prompt_tokens[0] <= self.prompt_tokens[1]
        ):
            raise ConfigError(
                f"prompt_tokens is {self.prompt_tokens}; expected two numbers, 1 <= least <= most"
            )
        if self.truncation_penalty and self.truncated != "penalty":
            raise ConfigError(
                f"truncation_penalty is {self.truncation_penalty} but truncated is "
                f"{self.truncated!r}; expected truncated='penalty', or no penalty"
            )
        if self.response_lengths == "uniform" and (self.force_eos or self.truncated != "ended"):
            raise ConfigError(
                "response_lengths is 'uniform', which forbids the end of sequence, together with "
                f"force_eos={self.force_eos} and truncated={self.truncated!r}; expected "
                "force_eos=False and truncated='ended'"
            )
        if self.vllm_server is not None and self.lora_rank:
            raise ConfigError(
                f"vllm_server is {self.vllm_server!r} with lora_rank {self.lora_rank}; expected "
                "lora_rank 0: the server is sent whole weights, not an adapter"
            )
        if not 0 < self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ConfigError(
                f"gamma is {self.gamma} and gae_lambda {self.gae_lambda}; expected gamma in (0, 1] "
                "and gae_lambda in [0, 1]"
            )
        self._require_credit_settings_that_fit()
        require_settings_that_fit_a_server(self)
        if self.gamma < 1 and self.credit != "terminal":
            warnings.warn(
                f"gamma is {self.gamma} with credit {self.credit!r}: the sum of token rewards is "
                "conserved only undiscounted, so the objective changes; gamma = 1 keeps it",
                TokenCreditWarning,
                stacklevel=3,
            )

    def _require_credit_settings_that_fit(self) -> None:
        needs = self.credit in NEEDS_CREDIT_MODEL
        if needs != (self.credit_model is not None):
            expected = "a model for it" if needs else "none: this credit needs no second model"
            raise ConfigError(
                f"credit_model is {self.credit_model!r} with credit {self.credit!r}; expected "
                f"{expected}"
            )
        if self.credit == "segment" and self.segments == "none":
            raise ConfigError(
                "credit is 'segment' and segments 'none'; expected a kind of segments"
            )
        if self.segment_use == "macro-actions" and self.segments == "none":
            raise ConfigError(
                "segment_use is 'macro-actions' and segments 'none'; expected a kind of segments"
            )
        if not 0 <= self.terminal_share <= 1 or not 0 <= self.credit_decay < 1:
            raise ConfigError(
                f"terminal_share is {self.terminal_share} and credit_decay {self.credit_decay}; "
                "expected numbers from 0 to 1, the second below it"
            )


def sampling_of(config: TrainPolicyConfig, eos_token_id: int | None) -> Sampling:
    """How responses are drawn under these settings."""
    without_end = config.response_lengths == "uniform" and eos_token_id is not None
    return Sampling(
        min_new_tokens=config.min_new_tokens,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        suppress_tokens=(eos_token_id,) if without_end and eos_token_id is not None else (),
        force_eos=config.force_eos,
    )


def require_settings_that_fit_a_server(config: Any) -> None:
    """Settings of a `TrainPolicyConfig` that a served reward model does not allow.

    Raises:
        ConfigError: a critic that starts from its weights, a held-out one that is served, a token
            without a server, or an address that is none.
    """
    held_out = config.held_out_reward_model
    if held_out is not None and is_address(held_out):
        raise ConfigError(
            "held_out_reward_model is an address; expected a Hub id or folder: only reward_model "
            "may be served"
        )
    if not is_address(config.reward_model):
        if config.reward_token_variable is not None:
            raise ConfigError(
                f"reward_token_variable is {config.reward_token_variable!r} and reward_model "
                f"{config.reward_model!r}, which is no address; expected http://host:port or "
                "https://host:port, or no token"
            )
        return
    if config.critic == "reward-model":
        raise ConfigError(
            "critic is 'reward-model' and reward_model an address, whose weights stay where they "
            "are; expected critic 'shared' or 'separate', or a Hub id or folder"
        )
    RewardServer(
        config.reward_model,
        timeout=config.reward_server_timeout,
        retries=config.reward_server_retries,
    )


NEEDS_CREDIT_MODEL = ("log-ratio", "shaped-log-ratio", "discriminator")


def _require_positive(config: TrainPolicyConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected at least 1")


def _require_multiple(larger: str, size: int, smaller: str, part: int) -> None:
    if part < 1 or size % part:
        raise ConfigError(
            f"{larger} is {size} and {smaller} {part}; expected {larger} to be a multiple of "
            f"{smaller}"
        )
