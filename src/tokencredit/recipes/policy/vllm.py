"""Responses from a vLLM server, which is sent the policy's weights before every rollout.

The first process alone speaks with the server: it sends the prompts of all processes and hands the
responses out. What the server says of log-probabilities is not used. The policy computes them
itself, of the distribution that the server was asked to draw from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Bool, Int
from torch import Tensor

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, ServerError
from tokencredit.models.hf_sampling import response_extent
from tokencredit.recipes.policy.setting_groups import MachineSettings
from tokencredit.recipes.policy.vllm_weights import (
    FolderTransport,
    Transport,
    WeightSender,
    require_version,
)
from tokencredit.sampling import Sampling, end_ids
from tokencredit.server.asking import RewardServer
from tokencredit.server.vllm_writing import WritingServer, drawn_ids, weight_taker


@dataclass(frozen=True)
class VLLMServer:
    """A server that draws responses.

    Attributes:
        accelerator: of the run.
        writer: the server in the first process, None in the others.
        sender: what brings it the policy's weights.
    """

    accelerator: Accelerator
    writer: WritingServer | None
    sender: WeightSender


def connect(machine: MachineSettings, accelerator: Accelerator, output: Path) -> VLLMServer:
    """The server of the settings, ready to be sent weights.

    Args:
        machine: name it, and the way that weights take.
        accelerator: of the run.
        output: folder of the run, below which weights are written unless the settings name another.

    Raises:
        ConfigError: TRL or vLLM is not installed here and weights are to go over NCCL, or the
            server takes none.
        ServerError: nobody answers there.
    """
    if not accelerator.is_main_process:
        return VLLMServer(accelerator, None, WeightSender())
    address, way = str(machine.vllm_server), machine.vllm_weights
    # All processes wait for the first one meanwhile, and no longer than that.
    writer = weight_taker(RewardServer(address, timeout=machine.process_timeout, retries=3))
    if way == "auto":
        over_nccl = writer.takes_nccl and accelerator.device.type == "cuda"
        way = "nccl" if over_nccl else "folder"
    transport: Transport
    if way == "nccl":
        transport = _nccl_transport(writer.server.address, accelerator)
    else:
        folder = Path(machine.vllm_folder or output).absolute()
        transport = FolderTransport(writer, folder)
    half = accelerator.mixed_precision != "no"
    return VLLMServer(accelerator, writer, WeightSender(writer, transport, half_precision=half))


def _nccl_transport(address: str, accelerator: Accelerator) -> Transport:
    try:
        from trl.generation.vllm_client import VLLMClient

        client = VLLMClient(base_url=address)
        client.init_communicator(device=accelerator.device)
    except ImportError as error:
        raise ConfigError(
            f"weights are to go to {address!r} over NCCL, and TRL's client for it cannot be used "
            f"here ({error}); run `pip install tokencredit[trl] vllm`, or set machine.vllm_weights "
            "to 'folder'"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"the vLLM server at {address!r} cannot be sent weights over NCCL: {error}; expected "
            "one that was started as docs/engines-vllm.md says, and the policy on a CUDA device, "
            "or machine.vllm_weights 'folder'"
        ) from error
    return client.update_named_params


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
    if server.writer is not None:
        try:
            answers = drawn_ids(server.writer, everyone, sampling=sampling, ends=ends)
        except ServerError as error:
            raise ServerError(
                f"{error}. The last checkpoint is whole: start the server again, then run the same "
                "command"
            ) from error
        require_version(server.sender)
    broadcast_object_list(answers)
    first = server.accelerator.process_index * len(prompts)
    return answers[first : first + len(prompts)]
