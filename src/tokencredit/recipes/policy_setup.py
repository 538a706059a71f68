"""What `train-policy` loads before its first step, and the order of prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.hf_loading import disable_dropout, load_model, load_tokenizer, require_pad_token
from tokencredit.policy.hf_models import ActorCritic, load_value_head
from tokencredit.preference.hf_datasets import load_prompts
from tokencredit.preference.pairs import Prompt
from tokencredit.recipes.policy_config import TrainPolicyConfig
from tokencredit.recipes.policy_credit import credit_models
from tokencredit.recipes.policy_views import PolicyModels
from tokencredit.recipes.reward_server import reward_model_of
from tokencredit.reward_model.hf_backbone import load_reward_model


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
    """
    tokenizer = load_tokenizer(
        config.policy, trust_remote_code=config.trust_remote_code, pad_token=config.pad_token
    )
    require_pad_token(tokenizer)
    if config.response_lengths == "eos" and tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {config.policy} has no end-of-sequence token; expected one, or "
            "response_lengths='uniform'"
        )
    shared: dict[str, Any] = {
        "attn_implementation": config.attn_implementation,
        "device": "cpu" if sharded else str(device),
        "trust_remote_code": config.trust_remote_code,
    }
    frozen: dict[str, Any] = {
        **shared,
        "dtype": config.dtype,
        "device": "cpu" if config.offload_frozen else str(device),
    }
    reward_model, reward_tokenizer = reward_model_of(config, tokenizer, **frozen)
    held_out = (None, None)
    if config.held_out_reward_model is not None:
        held_out = load_reward_model(config.held_out_reward_model, **frozen)
    policy = _policy(config, checkpoint, shared)
    actor_critic = ActorCritic(policy, _critic(config, checkpoint, shared))
    if checkpoint is not None and config.critic == "shared":
        load_value_head(actor_critic, checkpoint)
    disable_dropout(actor_critic)
    reference = None
    if not config.lora_rank:
        reference = load_model(AutoModelForCausalLM, config.policy, **frozen).requires_grad_(False)
    return PolicyModels(
        actor_critic=actor_critic,
        tokenizer=tokenizer,
        reference=reference,
        reward_model=reward_model,
        reward_tokenizer=reward_tokenizer,
        held_out_reward_model=held_out[0],
        held_out_tokenizer=held_out[1],
        credit=credit_models(config, tokenizer, frozen),
        visits=device if config.offload_frozen else None,
    )


def _policy(config: TrainPolicyConfig, checkpoint: Path | None, shared: dict[str, Any]) -> Any:
    trained = None if checkpoint is None else str(checkpoint / "policy")
    if not config.lora_rank:
        return load_model(AutoModelForCausalLM, trained or config.policy, **shared)
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise ConfigError(
            f"lora_rank is {config.lora_rank} but peft is not installed; run "
            "`pip install tokencredit[peft]`, or set lora_rank to 0"
        ) from error
    base = load_model(AutoModelForCausalLM, config.policy, **shared)
    if trained is not None:
        return PeftModel.from_pretrained(base, trained, is_trainable=True)
    torch.manual_seed(config.seed)
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def _critic(
    config: TrainPolicyConfig, checkpoint: Path | None, shared: dict[str, Any]
) -> Any | None:
    """A model apart for the values: a copy of the policy or of the reward model."""
    if config.critic == "shared":
        return None
    if checkpoint is not None:
        return load_model(AutoModelForSequenceClassification, str(checkpoint / "critic"), **shared)
    if config.critic == "reward-model":
        critic, _ = load_reward_model(config.reward_model, **{**shared, "dtype": "float32"})
        return critic.requires_grad_(True)
    critic = load_model(AutoModelForSequenceClassification, config.policy, num_labels=1, **shared)
    torch.nn.init.zeros_(critic.score.weight)
    return critic


@dataclass(frozen=True)
class PolicyPrompts:
    """Token ids of every prompt, and the chats they were rendered from if they were."""

    rows: list[list[int]]
    chats: list[Prompt] | None


def tokenized_prompts(config: TrainPolicyConfig, tokenizer: Any) -> PolicyPrompts:
    """The prompts of a run; chats are rendered with the policy's template.

    Raises:
        DataError: there are no prompts, or one is empty.
        ConfigError: chats are to be cut to their first tokens.
    """
    prompts = load_prompts(config.prompts, column=config.prompt_column, limit=config.max_prompts)
    chats = None if isinstance(prompts[0], str) else prompts
    if chats is not None and config.prompt_tokens is not None:
        raise ConfigError(
            f"prompt_tokens is {config.prompt_tokens} and {config.prompts} holds chats; "
            "expected whole chats: leave prompt_tokens out"
        )
    return PolicyPrompts(prompt_rows(prompts, tokenizer, where=config.prompts), chats)


def prompt_rows(prompts: list[Any], tokenizer: Any, *, where: str) -> list[list[int]]:
    """Prompts as ids: texts with the special tokens that begin them, chats in their template.

    Raises:
        DataError: a prompt has no tokens, or the chat template refuses it.
    """
    if isinstance(prompts[0], str):
        rows = tokenizer(prompts, add_special_tokens=True)["input_ids"]
    else:
        rows = [_chat_row(chat, tokenizer, where=where) for chat in prompts]
    eos = tokenizer.eos_token_id
    if eos is not None and all(row and row[-1] == eos for row in rows):
        rows = [row[:-1] for row in rows]
    if any(not row for row in rows):
        raise DataError(
            f"a prompt of {where} has no tokens; expected text, or a tokenizer that begins with a "
            "BOS token"
        )
    return rows


def _chat_row(chat: Any, tokenizer: Any, *, where: str) -> list[int]:
    try:
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # templates raise what they like
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses a prompt of {where} with the "
            f"roles {[message['role'] for message in chat]}: {error}; expected roles and an order "
            "that it knows"
        ) from error


def prompts_of_step(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which prompts a step uses: each once per pass over the data, in a new order every pass.

    >>> [prompts_of_step(4, 2, seed=0, step=s) for s in range(2)]
    [[0, 1], [3, 2]]
    """
    chosen: list[int] = []
    first = step * batch_size
    orders: dict[int, list[int]] = {}
    for position in range(first, first + batch_size):
        epoch, index = divmod(position, count)
        if epoch not in orders:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(count, generator=rng).tolist()
        chosen.append(orders[epoch][index])
    return chosen


def left_padded(
    rows: list[list[int]], pad_token_id: int
) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
    """Rows of ids as one tensor, padded on the left, and the mask of real tokens.

    >>> left_padded([[5], [6, 7]], 0)
    (tensor([[0, 5],
            [6, 7]]), tensor([[False,  True],
            [ True,  True]]))
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= width - lengths[:, None]


def seeded(seed: int, step: int, process: int) -> torch.Generator:
    """Seed torch for one step of one process; the returned generator is for orders and lengths."""
    mixed = (seed * 1_000_003 + step) * 4_099 + process
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)
