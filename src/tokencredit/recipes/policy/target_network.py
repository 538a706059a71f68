"""A slow copy of the weights that are trained: what an estimate is compared with, held still."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FILE = "target.safetensors"
"""Where the slow copy stands in a checkpoint."""

TargetWeights = dict[str, Tensor]
"""Weights by the names of the parameters that they are a slow copy of."""


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module that training moves, by name; all others are those of its copy."""
    return {
        name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad
    }


def opened_target(module: nn.Module, checkpoint: Path | None) -> TargetWeights:
    """The slow copy of a run: that of its checkpoint, or the weights that it begins with.

    Args:
        module: what is trained, on its device.
        checkpoint: of the run; None for one that begins.
    """
    here = trained_weights(module)
    if checkpoint is None:
        return {name: weight.clone() for name, weight in here.items()}
    saved = load_file(checkpoint / FILE)
    return {name: saved[name].to(weight.device) for name, weight in here.items()}


@torch.no_grad()
def follow(target: TargetWeights, module: nn.Module, rate: float) -> None:
    """Move the slow copy towards what is trained.

        w̄ ← (1 − rate) w̄ + rate · w

    Args:
        target: the slow copy, changed in place; an empty one stays empty.
        module: what is trained.
        rate: 1 makes them the same.
    """
    here = trained_weights(module)
    for name, slow in target.items():
        slow.lerp_(here[name], rate)


@contextmanager
def in_place(target: TargetWeights, module: nn.Module) -> Iterator[None]:
    """The slow copy in the place of the trained weights, without a second model.

    No gradient may be asked for in here.

    Args:
        target: the slow copy.
        module: what is trained.
    """
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = target[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
