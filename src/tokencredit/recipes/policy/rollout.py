"""The responses of one step: which prompts, how long, and who draws."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch, padded_rows
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.preferences import told_rows
from tokencredit.recipes.policy.prompts import PolicyPrompts, prompts_of_step
from tokencredit.recipes.policy.setting_groups import MachineSettings, SamplingSettings, sampling_of
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import gathers_for_every_token, kept_gathered
from tokencredit.recipes.policy.vllm import served_responses
from tokencredit.recipes.policy.vllm_weights import send_weights

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rollout:
    """The responses of one step that this process has.

    Attributes:
        batch: the responses; those to one prompt stand together.
        truncated: True for each that was cut off.
        asked: the prompts themselves, one per response; None where only their first tokens are
            kept.
        group_ids: responses of all processes with the same number answer the same prompt.
        greedy: the likeliest response to each prompt, for algorithms that compare with it.
        greedy_truncated: True for each of those that was cut off.
        preferences: the weight of each reward that the prompt told; None where none did.
    """

    batch: ResponseBatch
    truncated: Bool[Tensor, "batch"]
    asked: list[Prompt] | None = None
    group_ids: Int[Tensor, "batch"] | None = None
    greedy: ResponseBatch | None = None
    greedy_truncated: Bool[Tensor, "prompts"] | None = None
    preferences: Float[Tensor, "batch rewards"] | None = None


def draw_responses(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    prompts: PolicyPrompts,
    step: int,
    rng: torch.Generator,
) -> Rollout:
    """Draw the responses to each prompt that this process has in a step.

    Args:
        config: the settings.
        accelerator: of the run.
        models: its models.
        prompts: all of them.
        step: its number.
        rng: draws how much of a prompt is kept and how long a response may be.
    """
    samples = config.algorithm.samples_per_prompt
    count = config.batch_size // samples  # prompts of the step
    share = count // accelerator.num_processes
    first = accelerator.process_index * share
    mine = prompts_of_step(len(prompts.rows), count, config.seed, step)[first : first + share]
    rows = kept_rows([prompts.rows[i] for i in mine], config.data.tokens, rng)
    preferences = None
    if config.preference.names and prompts.asked is not None:
        questions = [prompts.asked[i] for i in mine]
        rows, vectors = told_rows(config, models, questions, step=step, first=first)
        preferences = vectors.repeat_interleave(samples, dim=0).to(accelerator.device)
    asked = None if prompts.asked is None else repeated([prompts.asked[i] for i in mine], samples)
    device = accelerator.device
    prompt_ids, prompt_mask = padded_rows(
        repeated(rows, samples), fill=models.tokenizer.pad_token_id, side="left"
    )
    lengths = drawn_lengths(config.sampling, share * samples, rng)
    request = {
        "prompt_ids": prompt_ids.to(device),
        "prompt_mask": prompt_mask.to(device),
        "sampling": sampling_of(
            config.sampling, end_ids=models.reading.turn_ends, undrawable=models.undrawable
        ),
        "response_lengths": None if lengths is None else lengths.to(device),
    }
    requests = [request]
    if ALGORITHMS[config.algorithm.name].needs == "greedy":
        requests.append(_greedy_request(request, samples))
    (batch, truncated), *greedy = _drawn_responses(config.machine, accelerator, models, requests)
    group_ids = first + torch.arange(share * samples, device=device) // samples
    drawn = Rollout(batch, truncated, asked, group_ids, preferences=preferences)
    if not greedy:
        return drawn
    return replace(drawn, greedy=greedy[0][0], greedy_truncated=greedy[0][1])


def kept_rows(
    rows: list[list[int]], bounds: list[int] | None, rng: torch.Generator
) -> list[list[int]]:
    """Prompts cut to their first tokens, as many as drawn between the bounds."""
    if bounds is None:
        return rows
    least, most = bounds
    cuts = torch.randint(least, most + 1, (len(rows),), generator=rng).tolist()
    return [row[:cut] for row, cut in zip(rows, cuts, strict=True)]


def repeated(items: Sequence[Item], times: int) -> list[Item]:
    """Each item several times in a row."""
    return [item for item in items for _ in range(times)]


def drawn_lengths(
    settings: SamplingSettings, count: int, rng: torch.Generator
) -> Int[Tensor, "batch"] | None:
    """How long each response shall be; None where it ends by itself."""
    if settings.response_lengths != "uniform":
        return None
    least, most = max(settings.min_new_tokens, 1), settings.max_new_tokens
    return torch.randint(least, most + 1, (count,), generator=rng)


def _greedy_request(request: dict[str, Any], samples: int) -> dict[str, Any]:
    """The request for the likeliest response to each prompt, as long as the first one drawn."""
    lengths = request["response_lengths"]
    return {
        "prompt_ids": request["prompt_ids"][::samples],
        "prompt_mask": request["prompt_mask"][::samples],
        "sampling": replace(request["sampling"], temperature=1.0, top_k=1, top_p=1.0),
        "response_lengths": None if lengths is None else lengths[::samples],
    }


def _drawn_responses(
    machine: MachineSettings,
    accelerator: Accelerator,
    models: PolicyModels,
    requests: list[dict[str, Any]],
) -> list[tuple[ResponseBatch, Bool[Tensor, "batch"]]]:
    """Responses to each request, from the server if there is one, else from the policy itself."""
    tokens = {
        "pad_token_id": models.tokenizer.pad_token_id,
        "eos_token_id": models.reading.turn_ends,
    }
    if models.server is not None:
        send_weights(
            models.server.sender,
            models.actor_critic.policy,
            models.of_policy,
            vocabulary=len(models.tokenizer),
        )
        return [served_responses(models.server, **request, **tokens) for request in requests]
    gather = machine.gather_for_generation
    gathered = kept_gathered(accelerator, models.actor_critic) if gather else nullcontext()
    in_step = gathers_for_every_token(models.actor_critic, kept=gather)
    with accelerator.autocast(), gathered:
        return [
            models.actor_critic.policy_alone(
                partial(sampled_responses, **request, **tokens, in_step=in_step)
            )
            for request in requests
        ]
