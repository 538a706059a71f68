"""Responses from a vLLM server, which is sent the policy's weights before every rollout.

The first process alone speaks with the server, through TRL's client: it sends the prompts of all
processes and hands the responses out. What the server says of log-probabilities is not used. The
policy computes them itself, of the distribution that the server was asked to draw from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, ServerError
from tokencredit.models.hf_sampling import response_extent
from tokencredit.recipes.policy.sharding import named_parameters, whole
from tokencredit.sampling import Sampling, end_ids

# The most that vLLM lets one take from a logit: what is left is e^-100 of the probability.
_NEVER = -100.0


@dataclass(frozen=True)
class VLLMServer:
    """A server that draws responses.

    Attributes:
        accelerator: of the run.
        client: TRL's `VLLMClient` in the first process, None in the others.
    """

    accelerator: Accelerator
    client: Any | None


def connect(address: str, accelerator: Accelerator) -> VLLMServer:
    """The server at an address, ready to be sent weights.

    Raises:
        ConfigError: TRL or vLLM is not installed here, or the server takes no weights.
        ServerError: nobody answers there.
    """
    if not accelerator.is_main_process:
        return VLLMServer(accelerator, None)
    try:
        from trl.generation.vllm_client import VLLMClient

        client = VLLMClient(base_url=address)
        client.init_communicator(device=accelerator.device)
    except ImportError as error:
        raise ConfigError(
            f"machine.vllm_server is {address!r}, and TRL's client for it cannot be used here "
            f"({error}); run `pip install tokencredit[trl] vllm`, or leave it out"
        ) from error
    except ConnectionError as error:
        raise ServerError(
            f"there is no vLLM server at {address!r} ({error}); expected one that was started as "
            "docs/scaling.md says"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"the vLLM server at {address!r} cannot be sent weights: {error}; expected one that "
            "was started as docs/scaling.md says, and the policy on a CUDA device"
        ) from error
    return VLLMServer(accelerator, client)


@torch.no_grad()
def send_weights(server: VLLMServer, policy: nn.Module) -> None:
    """Give the server the weights of the policy; every process must call this at the same time."""
    parameters = named_parameters(policy)
    gathered = ((name, whole(p).detach().to(p.dtype)) for name, p in parameters.items())
    if server.client is None:
        for _ in gathered:  # a part of each weight lies here
            pass
        return
    described = [
        (name, str(p.dtype).removeprefix("torch."), list(getattr(p, "ds_shape", p.shape)))
        for name, p in parameters.items()
    ]
    server.client.update_named_params(described, gathered)
    server.client.reset_prefix_cache()


def served_responses(
    server: VLLMServer,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    *,
    sampling: Sampling,
    pad_token_id: int,
    eos_token_id: int | Sequence[int] | None,
    response_lengths: Int[Tensor, "batch"] | None = None,
) -> tuple[ResponseBatch, Bool[Tensor, "batch"]]:
    """Draw one response per prompt, as `sampled_responses` does.

    Args:
        server: where to.
        prompt_ids: of this process's prompts, padded anywhere; every process has as many.
        prompt_mask: True on real tokens.
        sampling: how to draw.
        pad_token_id: what stands after a finished response.
        eos_token_id: ends a response and belongs to it, each of several; None for responses
            without end.
        response_lengths: cut each response to its own length.

    Returns:
        The batch, and True for each response that was cut off before it ended.

    Raises:
        ServerError: the server fails, or answers with other responses than it was asked for.
    """
    prompts = [ids[mask].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
    ends = end_ids(eos_token_id)
    rows = _answers(server, prompts, sampling, ends)
    if sampling.force_eos and ends:
        full = sampling.max_new_tokens
        rows = [[*row[:-1], ends[0]] if len(row) == full else row for row in rows]
    drawn = torch.tensor([len(row) for row in rows])
    width = int(drawn.max())
    response_ids = torch.tensor([row + [pad_token_id] * (width - len(row)) for row in rows])
    lengths = drawn if response_lengths is None else drawn.minimum(response_lengths.cpu())
    mask, ended = response_extent(response_ids, ends, lengths)
    response_ids = response_ids.masked_fill(~mask, pad_token_id)
    device = prompt_ids.device
    batch = ResponseBatch(prompt_ids, prompt_mask, response_ids.to(device), mask.to(device))
    return batch, ~ended.to(device)


def _answers(
    server: VLLMServer, prompts: list[list[int]], sampling: Sampling, ends: tuple[int, ...]
) -> list[list[int]]:
    """Token ids of the responses to this process's prompts."""
    everyone = gather_object(prompts)
    answers: list[Any] = [None] * len(everyone)
    if server.client is not None:
        answers = _generated(server.client, everyone, sampling, ends)
    broadcast_object_list(answers)
    first = server.accelerator.process_index * len(prompts)
    return answers[first : first + len(prompts)]


def _generated(
    client: Any, prompts: list[list[int]], sampling: Sampling, ends: tuple[int, ...]
) -> list[list[int]]:
    # No end before this many tokens: with as many as there may be, there is none at all.
    endless = bool(ends) and set(ends) <= set(sampling.suppress_tokens)
    further: dict[str, Any] = {
        "min_tokens": sampling.max_new_tokens if endless else sampling.min_new_tokens,
        "stop_token_ids": list(ends),
    }
    never = set(sampling.suppress_tokens) - set(ends)
    if never:
        further["logit_bias"] = {str(token): _NEVER for token in sorted(never)}
    try:
        # No seed: vLLM would seed each prompt with it, and answer one that comes twice the same.
        answers = client.generate(
            prompts=prompts,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            logprobs=None,
            generation_kwargs=further,
        )["completion_ids"]
    except Exception as error:  # TRL's client raises it bare
        raise ServerError(
            f"the vLLM server failed ({error}); the last checkpoint is whole: start the server "
            "again, then run the same command"
        ) from error
    if len(answers) != len(prompts) or not all(answers):
        raise ServerError(
            f"the vLLM server answered {len(prompts)} prompts with {sum(map(bool, answers))} "
            "responses; expected one of at least a token to each"
        )
    drawn = never & {token for answer in answers for token in answer}
    if drawn:
        raise ServerError(
            f"the vLLM server drew the ids {sorted(drawn)[:5]}, which it was asked to leave out; "
            "expected a server that heeds logit_bias"
        )
    return [list(answer) for answer in answers]
