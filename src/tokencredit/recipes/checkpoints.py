"""Checkpoints that are there whole or not at all, in safetensors and JSON alone.

Layout: `checkpoints/step-000050/` with `policy/` (Hugging Face layout, tokenizer beside it), the
critic, `optimizer.safetensors` and `state.json`. Random generators need no saving: every step seeds
them from the run's seed and its own number.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tokencredit.errors import RunFolderError
from tokencredit.policy.hf_models import ActorCritic, save_critic


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands."""
    return folder / "checkpoints" / f"step-{step:06d}"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = sorted((folder / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def write_checkpoint(
    path: Path,
    actor_critic: ActorCritic,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
) -> None:
    """Write beside, flush to disk, then rename; older checkpoints beyond `keep` go afterwards.

    Raises:
        RunFolderError: the disk is full or cannot be written; older checkpoints stay.
    """
    beside = path.with_name(f".writing-{path.name}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        actor_critic.policy.save_pretrained(beside / "policy")
        tokenizer.save_pretrained(beside / "policy")
        save_critic(actor_critic, beside)
        save_file(optimizer_tensors(optimizer), beside / "optimizer.safetensors")
        (beside / "state.json").write_text(json.dumps(state))
        _flush(beside)
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunFolderError(
            f"the checkpoint {path} could not be written ({error}); expected room and permission "
            "on that disk. Earlier checkpoints are whole: run the same command to go on"
        ) from error
    for old in sorted(path.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The moments of an optimiser, named `parameter.moment`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value.contiguous()
        for index, moments in states.items()
        for name, value in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Put the moments that `optimizer_tensors` named back."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint remembers besides tensors."""
    return json.loads((path / "state.json").read_text())
