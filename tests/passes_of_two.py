"""Two processes that shard a model whose rows need another number of passes on each of them.

`run(folder, architectures)` runs them once; `<architecture>-<process>.pt` holds the scores that the
process found, how often it called the first layer, and the gradients of both.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from forked import run_in_processes
from tiny_models import ARCHITECTURES, tiny_ids, tiny_model
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from tokencredit.reward_model.hf_scores import reward_model_output

END = 1
LENGTHS = {0: [9, 9, 9], 1: [4, 9, 7]}
PHI3: dict[str, Any] = {
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 8,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 8,
    },
}
"""With other frequencies for texts of more than eight tokens."""


def model_of(architecture: str) -> PreTrainedModel:
    ARCHITECTURES.setdefault("phi3", PHI3)
    return tiny_model(architecture, eos_token_id=END)


def texts_of(rank: int) -> tuple[Tensor, Tensor]:
    """Rows that end; on the second process of unlike lengths, one with two ends."""
    lengths = torch.tensor(LENGTHS[rank])
    ids = tiny_ids(3, 9).masked_fill(tiny_ids(3, 9) == END, END + 1)
    ids[range(3), lengths - 1] = END
    if rank:
        ids[2, 2] = END
    return ids, torch.arange(9) < lengths[:, None]


class Scores(nn.Module):
    """The scores of texts, as the root that is sharded."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return reward_model_output(self.model, ids, mask).sequence_scores


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers, each of which is gathered when it is called."""
    trunk = model.base_model
    stacks = [getattr(trunk, name) for name in ("encoder", "decoder") if hasattr(trunk, name)]
    return [layer for stack in stacks for layer in stack.block] or list(trunk.layers)


def run(folder: Path, architectures: Sequence[str]) -> None:
    run_in_processes(run_all, folder, architectures)


def main(folder: Path, architecture: str) -> None:
    rank = distributed.get_rank()
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    scores = Scores(model_of(architecture).eval())
    for layer in layers_of(scores.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(scores, mesh=mesh)
    counted = []
    block = layers_of(scores.model)[0]
    block.register_forward_hook(lambda *_: counted.append(None))
    said = scores(*texts_of(rank))
    passes = len(counted)
    said.sum().backward()
    gradients = {
        name: parameter.grad.full_tensor()
        for name, parameter in scores.model.named_parameters()
        if parameter.grad is not None
    }
    found = {"scores": said.detach(), "gradients": gradients, "passes": passes}
    torch.save(found, folder / f"{architecture}-{rank}.pt")


def run_all(folder: Path, architectures: Sequence[str]) -> None:
    """What each of the processes does."""
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    for name in architectures:
        main(folder, name)
    distributed.destroy_process_group()
