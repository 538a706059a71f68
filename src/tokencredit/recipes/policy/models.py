"""What `train-policy` loads before its first step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from tokencredit.batch import RewardScorer
from tokencredit.credit.methods import credit_method
from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_adapters import (
    lora_model,
    quantized_loading,
    round_frozen_linear_layers,
)
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loading import (
    disable_dropout,
    load_model,
    load_tokenizer,
    model_description,
    require_pad_token,
)
from tokencredit.models.hf_sampling import undrawable_ids
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.policy.hf_models import ActorCritic, Result, load_value_head
from tokencredit.recipes.policy.setting_groups import ServerSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import on_device
from tokencredit.recipes.policy.vllm import VLLMServer
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.scorers.feature_folders import has_feature_model
from tokencredit.scorers.features import feature_reward
from tokencredit.scorers.functions import named_function, names_function
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.rewards import Rewards
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.server.client import RewardServer
from tokencredit.server.exchange import token_in
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading


@dataclass(frozen=True)
class PolicyModels:
    """Everything that speaks during a rollout.

    Attributes:
        reference: None for a PEFT policy, which is its own with the adapters off.
        reading: how the policy reads prompts, and what ends its responses.
        rewards: all sources of reward, with their credit.
        held_out: a judge that the policy never sees.
        server: draws responses in the policy's place; None where it draws them itself.
        visits: the device to which frozen models come from the CPU to be called; None where they
            are on it.
        undrawable: ids that the policy has logits for but no token.
        policy_autocast: the precision that the policy's frozen weights were rounded to, under whose
            autocast alone it can be called; None where none were.
        judges: say of each response whether it passes.
    """

    actor_critic: ActorCritic
    reading: Reading
    reference: Any | None
    rewards: Rewards
    held_out: RewardScorer | None = None
    visits: torch.device | None = None
    server: VLLMServer | None = None
    undrawable: tuple[int, ...] = ()
    policy_autocast: torch.dtype | None = None
    judges: tuple[FunctionScorer, ...] = ()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the policy."""
        return self.reading.tokenizer

    def of_reference(self, call: Callable[[Any], Result]) -> Result:
        """What `call` returns for the reference."""
        if self.reference is None:
            with self._autocast():
                return self.actor_critic.adapters_off(call)
        with on_device(self.visits, self.reference):
            return call(self.reference)

    def of_policy(self, call: Callable[[Any], Result]) -> Result:
        """What `call` returns for the policy as it is now."""
        with self._autocast():
            return self.actor_critic.policy_alone(call)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.policy_autocast is None:
            return nullcontext()
        device = next(self.actor_critic.policy.parameters()).device
        return torch.autocast(device.type, dtype=self.policy_autocast)


def loaded_models(
    config: TrainPolicyConfig,
    checkpoint: Path | None,
    device: torch.device,
    *,
    sharded: bool = False,
) -> PolicyModels:
    """The models of a run, trained ones from its last checkpoint if it has one.

    Args:
        config: the settings.
        checkpoint: of this run; None for one that begins.
        device: where models are called.
        sharded: leave trained models on the CPU, from where each process takes its part of them.

    Raises:
        ModelError: a model is missing, lacks a pad token, or has the wrong head.
        ServerError, ConfigError: a reward server does not answer, or lacks what the credit needs.
        ConfigError: the reward model cannot be the critic.
    """
    tokenizer = load_tokenizer(
        config.policy,
        trust_remote_code=config.loading.trust_remote_code,
        pad_token=config.loading.pad_token,
    )
    require_pad_token(tokenizer)
    place = "cpu" if config.machine.offload_frozen else str(device)
    frozen: dict[str, Any] = {**config.loading.of_frozen, "device": place}
    place = "cpu" if sharded else str(device)
    shared: dict[str, Any] = {**frozen, "dtype": "float32", "device": place}
    size = config.algorithm.micro_batch_size
    # Before the weights are read, so that a server that is not there is an error at once.
    described = model_description(config.policy, trust_remote_code=config.loading.trust_remote_code)
    reading = reading_of(described, tokenizer, config.policy_reading)
    _require_ends(config, reading)
    rewards = loaded_rewards(
        config.sources,
        config.credit,
        config.segments,
        config.combine,
        reading,
        server=lambda address: reward_server_of(address, config.server),
        reading=config.reading,
        micro_batch_size=size,
        loading=frozen,
        has_policy=True,
    )
    judges = tuple(
        FunctionScorer(named_function(name), reading, f"the judge {name}")
        for name in config.judges.functions
    )
    held_out: RewardScorer | None = None
    name = config.held_out_reward_model or ""
    if has_feature_model(name):
        held_out = FunctionScorer(feature_reward(name), reading, f"the features of {name}")
    elif names_function(name):
        held_out = FunctionScorer(named_function(name), reading, f"the function {name}")
    elif config.held_out_reward_model is not None:
        judge = loaded_reward_model(config.held_out_reward_model, config.reading, **frozen)
        held_out = LocalScorer(*judge, reading, micro_batch_size=size)
    policy = _policy(config, checkpoint, shared)
    _require_trainable(policy, config.policy)
    rounds = _is_called_under_autocast_alone(config, sharded=sharded)
    if rounds:
        round_frozen_linear_layers(policy, torch.bfloat16)
    actor_critic = ActorCritic(
        policy,
        _critic(config, checkpoint, shared, tokenizer),
        reads_beginnings_once=not sharded,  # since processes must make the same passes
    )
    if checkpoint is not None and actor_critic.has_value_head:
        load_value_head(actor_critic, checkpoint)
    disable_dropout(actor_critic)
    reference = None
    if not config.lora.rank:
        own: dict[str, Any] = {**frozen, "dtype": config.kl.reference_dtype}
        reference = load_model(AutoModelForCausalLM, config.policy, **own).requires_grad_(False)
    return PolicyModels(
        actor_critic=actor_critic,
        reading=reading,
        reference=reference,
        rewards=rewards,
        held_out=held_out,
        visits=device if config.machine.offload_frozen else None,
        undrawable=undrawable_ids(tokenizer, policy),
        policy_autocast=torch.bfloat16 if rounds else None,
        judges=judges,
    )


def _require_ends(config: TrainPolicyConfig, reading: Reading) -> None:
    """Reject a policy whose responses shall end themselves, and cannot.

    Raises:
        ModelError: it declares no token that ends a response.
    """
    if config.sampling.response_lengths == "eos" and not reading.turn_ends:
        raise ModelError(
            f"the tokenizer of {config.policy} has no end-of-sequence token; expected one, or "
            "policy_reading.turn_ends, or sampling.response_lengths='uniform'"
        )


def _is_called_under_autocast_alone(config: TrainPolicyConfig, *, sharded: bool) -> bool:
    """Whether frozen weights of a policy with adapters may be kept as autocast rounds them.

    What shards weights wants them of one precision.
    """
    adapted = bool(config.lora.rank) and config.lora.quantization is None
    return adapted and config.machine.mixed_precision == "bf16" and not sharded


def _policy(config: TrainPolicyConfig, checkpoint: Path | None, shared: dict[str, Any]) -> Any:
    trained = None if checkpoint is None else str(checkpoint / "policy")
    if not config.lora.rank:
        return load_model(AutoModelForCausalLM, trained or config.policy, **shared)
    if config.lora.quantization is not None:
        shared = {**shared, "device": None, **quantized_loading()}
    base = load_model(AutoModelForCausalLM, config.policy, **shared)
    if trained is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(base, trained, is_trainable=True)
    torch.manual_seed(config.seed)
    return lora_model(
        base,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        task_type="CAUSAL_LM",
        target_modules=config.lora.target_modules,
    )


def _require_trainable(policy: Any, name: str) -> None:
    """Raise ModelError where an update would move nothing of the policy."""
    if not any(weight.requires_grad for weight in policy.parameters()):
        raise ModelError(
            f"no weight of the policy {name!r} requires a gradient, so that a value head alone "
            "would learn; expected a policy whose weights or adapters can be trained"
        )


def _critic(
    config: TrainPolicyConfig, checkpoint: Path | None, shared: dict[str, Any], tokenizer: Any
) -> Any | None:
    """What says values: a copy of the policy or of the reward model, a head, or nothing."""
    if not config.algorithm.has_critic:
        return None
    if config.algorithm.critic == "shared":
        return "shared"
    if checkpoint is not None:
        return load_model(AutoModelForSequenceClassification, str(checkpoint / "critic"), **shared)
    if config.algorithm.critic == "reward-model":
        return _reward_model_as_critic(config, shared, tokenizer)
    critic = load_model(
        AutoModelForSequenceClassification, config.policy, num_labels=1, new_head=True, **shared
    )
    torch.nn.init.zeros_(critic.score.weight)
    return critic


@torch.no_grad()
def _reward_model_as_critic(
    config: TrainPolicyConfig, shared: dict[str, Any], tokenizer: Any
) -> Any:
    """A copy of the reward model whose value of a text is the reward that it expects to come.

    The score of a text so far stands for the score of the whole. Where tokens are paid for what
    they add to the score, all of that has been paid already but for the share that is paid at the
    end: the head starts at that share of the reward model's.

    Raises:
        ConfigError: it reads other ids than the policy writes, or what comes after a token.
    """
    source = config.sources[0]
    critic, own = load_reward_model(source.model, **shared)
    if not shares_vocabulary(own, tokenizer):
        raise ConfigError(
            f"algorithm.critic is 'reward-model', and {source.model} has another vocabulary than "
            f"{config.policy}: as a critic it would read the policy's ids as other tokens; "
            "expected one vocabulary, or algorithm.critic 'shared' or 'separate'"
        )
    if not is_causal(critic):
        raise ConfigError(
            f"algorithm.critic is 'reward-model', and {source.model} reads in both directions: its "
            "value before a token would know that token; expected a causal reward model, or "
            "algorithm.critic 'shared' or 'separate'"
        )
    credit = source.own_credit or config.credit
    if credit_method(credit.method).pays_increases:
        for weight in critic.score.parameters():
            weight.mul_(credit.terminal_share)
    return critic.requires_grad_(True)


def reward_server_of(address: str, settings: ServerSettings) -> RewardServer:
    """The reward server at an address, with its token.

    Raises:
        ConfigError: the variable of the token is not set, or as `RewardServer`.
    """
    token = settings.token_variable
    if token is not None:
        token = token_in(token, setting="server.token_variable")
    return RewardServer(address, token, timeout=settings.timeout, retries=settings.retries)
