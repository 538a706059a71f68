"""The responses of one step: which prompts, how long, and who draws."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.prompts import PolicyPrompts, prompts_of_step
from tokencredit.recipes.policy.settings import MachineSettings, TrainPolicyConfig, sampling_of
from tokencredit.recipes.policy.sharding import gathers_for_every_token, kept_gathered
from tokencredit.recipes.policy.vllm import send_weights, served_responses
from tokencredit.text.hf_token_rows import left_padded


def draw_responses(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    prompts: PolicyPrompts,
    step: int,
    rng: torch.Generator,
) -> tuple[ResponseBatch, Bool[Tensor, "batch"], list[Prompt] | None]:
    """One response to each prompt that this process has in a step.

    Args:
        config: the settings.
        accelerator: of the run.
        models: its models.
        prompts: all of them.
        step: its number.
        rng: draws how much of a prompt is kept and how long a response may be.

    Returns:
        The batch, True for each response that was cut off, and the chats that the prompts were
        rendered from.
    """
    share = config.batch_size // accelerator.num_processes
    chosen = prompts_of_step(len(prompts.rows), config.batch_size, config.seed, step)
    mine = chosen[accelerator.process_index * share : (accelerator.process_index + 1) * share]
    rows = [prompts.rows[i] for i in mine]
    chats = None if prompts.chats is None else [prompts.chats[i] for i in mine]
    if config.data.tokens is not None:
        least, most = config.data.tokens
        cuts = torch.randint(least, most + 1, (share,), generator=rng).tolist()
        rows = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
    lengths = None
    if config.sampling.response_lengths == "uniform":
        most = config.sampling.max_new_tokens
        least = max(config.sampling.min_new_tokens, 1)
        lengths = torch.randint(least, most + 1, (share,), generator=rng)
    prompt_ids, prompt_mask = left_padded(rows, models.tokenizer.pad_token_id)
    batch, truncated = _drawn_responses(
        config.machine,
        accelerator,
        models,
        prompt_ids=prompt_ids.to(accelerator.device),
        prompt_mask=prompt_mask.to(accelerator.device),
        sampling=sampling_of(config.sampling, models.tokenizer.eos_token_id),
        pad_token_id=models.tokenizer.pad_token_id,
        eos_token_id=models.tokenizer.eos_token_id,
        response_lengths=None if lengths is None else lengths.to(accelerator.device),
    )
    return batch, truncated, chats


def _drawn_responses(
    machine: MachineSettings, accelerator: Accelerator, models: PolicyModels, **request: Any
) -> tuple[ResponseBatch, Bool[Tensor, "batch"]]:
    """Responses from the server if there is one, else from the policy itself."""
    if models.server is not None:
        send_weights(models.server, models.actor_critic.policy)
        return served_responses(models.server, **request)
    gather = machine.gather_for_generation
    gathered = kept_gathered(accelerator, models.actor_critic) if gather else nullcontext()
    in_step = gathers_for_every_token(models.actor_critic, kept=gather)
    with accelerator.autocast(), gathered:
        return models.actor_critic.policy_alone(
            partial(sampled_responses, **request, in_step=in_step)
        )
