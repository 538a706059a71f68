"""Whether every weight of a model came from its file, and what becomes of heads that did not."""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ModelError, TokenCreditWarning
from tokencredit.models.hf_architecture import HEADS
from tokencredit.models.hf_files import stored_weights

_CRITICS = {"v_head", "value_head"}
_WRAPPERS = {
    "_orig_mod.": "torch.compile: save `model._orig_mod`",
    "module.": "DistributedDataParallel: save `model.module`",
    "_fsdp_wrapped_module.": "FSDP: save a full state dict",
    "base_model.model.": "PEFT: save the model that `merge_and_unload()` gives",
    "pretrained_model.": "TRL's model with a value head: save `model.pretrained_model`",
}


def require_whole(
    model: PreTrainedModel,
    info: Mapping[str, Any],
    *,
    name: str,
    new_head: bool = False,
    expected: str | None = None,
) -> bool:
    """Every weight of the model was in its files, in its shape, and every weight was used.

    Exempt are a head that will be trained anew, heads of other tasks that the model has no place
    for, weights that are tied to others, and buffers that are computed. A head that gave scores and
    is left out brings a warning.

    Args:
        model: as it was loaded.
        info: as transformers reports the weights it found.
        name: where they come from.
        new_head: whether weights of the head may be missing, or have another shape.
        expected: what stands after "expected" in the message where the head is that of another
            task.

    Returns:
        Whether the head is new, all of it or a part.

    Raises:
        ModelError: a weight is missing, has another shape, or is left over.
    """
    heads = set(head_modules(model))
    mismatched = {key: (found, own) for key, found, own in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) - set(mismatched)
    is_new = {key for key in missing | set(mismatched) if new_head and _is_of_head(key, heads)}
    left = {key for key in info["unexpected_keys"] if not _is_computed(model, key)}
    other_heads = {key for key in left if _is_other_head(model, key)}
    if model.get_output_embeddings() is not None:  # a reward model makes no language model
        other_heads -= {key for key in other_heads if _first_part(key) in HEADS}
    parts = [
        _counted(missing - is_new, "missing, such as"),
        _counted(
            {f"{k} {tuple(a)} for {tuple(b)}" for k, (a, b) in mismatched.items()}
            if set(mismatched) - is_new
            else (),
            "of another shape, such as",
        ),
        _counted(left - other_heads, "left over, such as"),
    ]
    if any(parts):
        raise ModelError(
            f"the weights of {name!r} do not make a whole {type(model).__name__}: "
            f"{'; '.join(filter(None, parts))}; expected "
            f"{_way_out(model, mismatched, missing - is_new, left - other_heads, expected)}"
        )
    unused = {key for key in other_heads if _first_part(key) in HEADS | _CRITICS}
    if unused:
        warnings.warn(
            f"the weights of {name!r} hold {_some(unused)}, which the model has no place for; "
            "scores may be shifted against those it was trained to give",
            TokenCreditWarning,
            stacklevel=4,
        )
    return bool(is_new)


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules beside the trunk that make scores of its states; none of a language model."""
    if model.get_output_embeddings() is not None:
        return {}
    children = dict(model.named_children())
    if model.base_model is model:
        return {name: module for name, module in children.items() if name in HEADS}
    return {name: child for name, child in children.items() if child is not model.base_model}


def head_of_two_as_one(
    model: PreTrainedModel, info: Mapping[str, Any], files: Collection[Path]
) -> bool:
    """Fill a head of one output from two in the files: the second less the first.

    That is what scoring reads of two outputs.

    Args:
        model: whose head was found to have another shape.
        info: as transformers reports the weights it found.
        files: that hold the weights.

    Returns:
        Whether the head was filled.
    """
    if getattr(model.config, "problem_type", None) == "regression":
        return False  # two outputs are two objectives, and not two classes
    heads = set(head_modules(model))
    wanted = {
        key: model.get_parameter(key)
        for key, found, own in info["mismatched_keys"]
        if _is_of_head(key, heads) and tuple(found) == (2, *own[1:]) and own[0] == 1
    }
    if not wanted or any(_is_of_head(key, heads) for key in info["missing_keys"]):
        return False
    stored = stored_weights(files, wanted)
    if set(stored) != set(wanted):
        return False
    with torch.no_grad():
        for key, weight in wanted.items():
            weight.copy_((stored[key][1:] - stored[key][:1]).to(weight.dtype))
    return True


def warn_of_redrawn_head(info: Mapping[str, Any], name: str) -> None:
    """Say that a trained head of another size is not used, and a new one is drawn."""
    redrawn = {f"{key} {tuple(found)}" for key, found, _ in info["mismatched_keys"]}
    if redrawn:
        warnings.warn(
            f"the head of {name!r} has another size and is not used: {_some(redrawn)}; a new one "
            "is drawn and trained from the start",
            TokenCreditWarning,
            stacklevel=4,
        )


def keep_head_in_float32(model: PreTrainedModel, files: Collection[Path] = ()) -> None:
    """Give the head of a classifier float32, whatever the trunk computes in.

    In bfloat16 a score of 8 nats moves in steps of 0.03, more than most tokens do. The states of
    the trunk are cast up as they enter the head.

    Args:
        model: any; a language model stays as it is.
        files: that hold the weights, from where the head is read again in its own precision.
    """
    for name, head in head_modules(model).items():
        weights = {f"{name}.{key}": weight for key, weight in head.named_parameters()}
        low = {key: weight for key, weight in weights.items() if _is_low(weight)}
        if not low:
            continue
        stored = stored_weights(files, low)
        head.float()
        with torch.no_grad():
            for key in low.keys() & stored.keys():
                if stored[key].shape == weights[key].shape:
                    weights[key].copy_(stored[key])
        head.register_forward_pre_hook(_cast_up)


def _is_low(weight: Tensor) -> bool:
    return weight.dtype in (torch.bfloat16, torch.float16)


def _cast_up(_head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    )


def _first_part(key: str) -> str:
    return key.partition(".")[0]


def _is_of_head(key: str, heads: Collection[str]) -> bool:
    """Whether a weight of the model belongs to its head; the pooler of an encoder does."""
    return _first_part(key) in heads or "pooler" in key.split(".")


def _is_other_head(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight in the file that the model lacks stands beside a trunk, in a head."""
    trunk = {name for name, _ in model.base_model.named_children()} | {model.base_model_prefix}
    parts = set(key.split("."))
    return "pooler" in parts or (model.base_model is not model and not parts & trunk)


def _is_computed(model: PreTrainedModel, key: str) -> bool:
    """Whether this is a buffer that models compute and old files hold, for example a mask."""
    prefix = f"{model.base_model_prefix}."
    names = {key, prefix + key, key.removeprefix(prefix)}
    return any(name in names for name, _ in model.named_buffers())


def _counted(keys: Collection[str], what: str) -> str:
    """How many weights there are of a kind, with some names; empty if there are none."""
    return f"{len(keys)} {what} {_some(keys)}" if keys else ""


def _some(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:3])


def _way_out(
    model: PreTrainedModel,
    mismatched: Mapping[str, Any],
    missing: Collection[str],
    left: Collection[str],
    expected: str | None,
) -> str:
    """What to do, by the looks of what does not fit."""
    if any(0 in tuple(found) for found, _ in mismatched.values()):
        return (
            "whole tensors: empty ones are what a process of DeepSpeed ZeRO-3 sees; gather the "
            "weights when saving (`stage3_gather_16bit_weights_on_model_save`, or "
            "`zero_to_fp32.py`)"
        )
    for prefix, how in _WRAPPERS.items():
        if left and all(key.startswith(prefix) for key in left):
            return f"names without {prefix!r}, which comes from {how}, or take it off in the file"
    if any(_first_part(key) in HEADS for key in left):
        return expected or "a language model: this one gives scores"
    if missing and all(_is_of_head(key, head_modules(model)) for key in missing):
        return expected or "a model trained for this task, with its head"
    layers = {int(n) for key in [*missing, *left] for n in re.findall(r"\.(\d+)\.", key)}
    said = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    also = f" (config.json says {said} layers)" if layers and said is not None else ""
    return f"weights and config.json of the same model, as `save_pretrained` writes them{also}"
