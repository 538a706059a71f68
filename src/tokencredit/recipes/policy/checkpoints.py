"""Checkpoints that are there whole or not at all, in safetensors and JSON alone.

Layout: `checkpoints/step-000050/` with `policy/` (Hugging Face layout, tokenizer beside it), the
critic, `optimizer.safetensors` (named `parameter.moment`), `state.json`, and `checksums.json` over
all of them. Tensors are whole however many processes hold them, so that a run may go on with
another number of processes. Random generators need no saving: every step seeds them from the run's
seed and its own number.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tokencredit.errors import RunFolderError, TokenCreditWarning
from tokencredit.policy.hf_models import ActorCritic, save_actor_critic
from tokencredit.recipes.policy.sharding import (
    is_partitioned,
    named_parameters,
    placed_like,
    restore_moments,
)
from tokencredit.recipes.run.checksums import damage, seal
from tokencredit.recipes.run.run_folder import flush, writing


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps stands."""
    return folder / "checkpoints" / f"step-{step:06d}"


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, the oldest first; folders of other names are none.

    Args:
        folder: of the run.
    """
    named = (
        (re.fullmatch(r"step-(\d{6,})", p.name), p) for p in (folder / "checkpoints").glob("*")
    )
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run of which every file is as it was written.

    One that is damaged is renamed, so that it stays to be looked at and is never taken for whole,
    and the one before it is taken, with a warning. Every byte of a checkpoint is read.

    Args:
        folder: of the run.

    Raises:
        RunFolderError: all that there are are damaged.
    """
    damaged: dict[Path, str] = {}
    checkpoint: Path | None
    for checkpoint in reversed(checkpoints_in(folder).values()):
        fault = damage(checkpoint)
        if fault is None:
            break
        damaged[checkpoint] = fault
    else:
        checkpoint = None
    if not damaged:
        return checkpoint
    wrong = ", ".join(f"the checkpoint {path} is damaged ({why})" for path, why in damaged.items())
    if checkpoint is None:
        raise RunFolderError(
            f"{wrong}; expected a whole one to go on from: put its files back, or choose another "
            "`output`"
        )
    for path in damaged:
        _put_aside(path)
    warnings.warn(
        f"{wrong}: the run goes on from {checkpoint.name}, and does again what came after",
        TokenCreditWarning,
        stacklevel=2,
    )
    return checkpoint


def _put_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def write_checkpoint(
    path: Path,
    actor_critic: ActorCritic,
    tokenizer: Any,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    state: dict[str, Any],
    *,
    keep: int,
    spare: int | None = None,
    others: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Write beside, flush to disk, then rename; older checkpoints beyond `keep` go afterwards.

    The checksums of all files are written last.

    Args:
        path: of the checkpoint.
        actor_critic: what is trained.
        tokenizer: of its policy.
        weights: of `actor_critic`, whole.
        moments: of its optimiser, whole, named `parameter.moment`.
        state: what else the run must remember, as JSON has it.
        keep: how many checkpoints stay, the newest.
        spare: the steps of one that stays besides, however old it is.
        others: more tensors, by the name of their file.

    Raises:
        RunFolderError: the disk is full or cannot be written; older checkpoints stay.
    """
    beside = path.with_name(f".writing-{path.name}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_actor_critic(actor_critic, weights, beside)
        tokenizer.save_pretrained(beside / "policy")
        save_file(moments, beside / "optimizer.safetensors")
        for name, tensors in (others or {}).items():
            save_file({k: v.contiguous() for k, v in tensors.items()}, beside / name)
        (beside / "state.json").write_text(json.dumps(state))
        seal(beside)
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)
        flush(path.parent)
    except Exception as error:  # safetensors and tokenizers have exceptions of their own
        raise RunFolderError(
            f"the checkpoint {path} could not be written ({error}); expected room and permission "
            "on that disk. Earlier checkpoints are whole: run the same command to go on"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for steps, old in list(checkpoints_in(path.parents[1]).items())[:-keep]:
        if steps != spare:
            shutil.rmtree(old)


def restore_optimizer(
    actor_critic: torch.nn.Module,
    optimizer: Any,
    path: Path,
    *,
    file: str = "optimizer.safetensors",
) -> None:
    """Put the moments of a checkpoint back, each process its part of those that are sharded.

    Args:
        actor_critic: what is trained, after it was sharded.
        optimizer: of it, without Accelerate's wrapper.
        path: of the checkpoint.
        file: in which the moments stand there.

    Raises:
        RunFolderError: the checkpoint holds moments of other parameters.
    """
    parameters = named_parameters(actor_critic)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path / file, "pt") as saved:
        for key in saved.keys():  # noqa: SIM118 (not a dictionary)
            name, moment = key.rsplit(".", 1)
            if name not in parameters:
                raise RunFolderError(
                    f"the checkpoint {path} holds moments of {name!r}; expected a parameter of the "
                    "policy or its critic: it was written by another version, so delete the "
                    "folder or choose another `output`"
                )
            value = placed_like(saved.get_tensor(key), parameters[name])
            moments.setdefault(name, {})[moment] = value
    if any(map(is_partitioned, parameters.values())):
        restore_moments(parameters, optimizer, moments)
        return
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    states = {index: moments[name] for index, name in enumerate(order) if name in moments}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint remembers besides tensors."""
    return json.loads((path / "state.json").read_text())


def export_policy(folder: Path, steps: int, *, name: str = "policy") -> None:
    """Copy the policy of a checkpoint to a folder, where it appears whole or not at all.

    Args:
        folder: of the run.
        steps: of the checkpoint.
        name: of the folder in that of the run.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    beside = folder / f".{name}.writing"
    try:
        with writing(folder / name):
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(checkpoint_path(folder, steps) / "policy", beside)
            for file in beside.iterdir():
                flush(file)
            shutil.rmtree(folder / name, ignore_errors=True)
            beside.rename(folder / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
