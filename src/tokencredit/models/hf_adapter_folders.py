"""Folders that hold an adapter alone: which model it stands on, and both as one."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_architecture import HEADS
from tokencredit.models.hf_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Place,
    file_of,
    readable,
)
from tokencredit.models.hf_loaded_weights import head_modules


def adapter_config(place: Place) -> Any | None:
    """PEFT's settings of an adapter that lies there; None where a whole model does.

    Raises:
        ConfigError: PEFT is not installed.
        ModelError: the settings cannot be read, name no base, or are not of weights that can be
            added to those of the base.
    """
    file = file_of(place, ADAPTER_CONFIG)
    if file is None:
        return None
    if any(
        file_of(place, name) is not None for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    ):
        raise ModelError(
            f"{place.name!r} holds both a whole model and an adapter ({ADAPTER_CONFIG}); expected "
            "one of them: move the other to a folder of its own"
        )
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ConfigError(
            f"{place.name!r} holds an adapter and PEFT is not installed; expected it: "
            "pip install 'tokencredit[peft]'"
        ) from error
    try:
        config = PeftConfig.from_pretrained(str(file.parent))
    except Exception as error:
        raise ModelError(
            f"{str(file)!r} cannot be read ({type(error).__name__}: {error}); expected settings of "
            "an adapter as PEFT writes them, of a version that is not newer than the installed one"
        ) from error
    if config.is_prompt_learning or not config.base_model_name_or_path:
        raise ModelError(
            f"{str(file)!r} is of type {config.peft_type} on the base "
            f"{config.base_model_name_or_path!r}; expected an adapter of weights such as LoRA, "
            "which names its base"
        )
    beside = file.parent / str(config.base_model_name_or_path)
    if not Path(config.base_model_name_or_path).is_dir() and beside.is_dir():
        config.base_model_name_or_path = str(beside)
    return config


def has_head(place: Place) -> bool:
    """Whether an adapter brings a head that gives scores."""
    return any(set(key.split(".")) & HEADS for key in _weights(place))


def merged_adapter(
    base: PreTrainedModel, place: Place, config: Any, *, new_head: bool
) -> PreTrainedModel:
    """The base with the weights of the adapter added to its own; all of it can be trained.

    Args:
        base: the model that the adapter stands on.
        place: of the adapter.
        config: as of `adapter_config`.
        new_head: whether a head will be trained anew, so that the adapter's part in another is
            left out.

    Raises:
        ModelError: a weight of the adapter has no place in the base, or lacks.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    weights = _weights(place)
    if new_head:
        weights = {key: value for key, value in weights.items() if "lm_head" not in key.split(".")}
    heads = [key for key in weights if set(key.split(".")) & set(head_modules(base))]
    if not heads:  # so that PEFT does not look for a head of the task it was trained for
        config.task_type = None
    config.inference_mode = False
    try:
        model = get_peft_model(base, config)
        # A copy: PEFT 0.19 renames the keys of the head in what it is given.
        unused = set(set_peft_model_state_dict(model, dict(weights)).unexpected_keys)
        lacking = set(get_peft_model_state_dict(model, save_embedding_layers=False)) - set(weights)
    except Exception as error:
        raise ModelError(
            f"the adapter at {place.name!r} does not fit its base "
            f"{config.base_model_name_or_path!r} ({type(error).__name__}: {error}); expected the "
            "base that it was trained on"
        ) from error
    if unused or lacking:
        raise ModelError(
            f"of the adapter at {place.name!r} {len(unused)} weights have no place in the base "
            f"{config.base_model_name_or_path!r} and {len(lacking)} are missing, such as "
            f"{', '.join(sorted(unused | lacking)[:3])}; expected the base that it was trained on"
        )
    merged = model.merge_and_unload().requires_grad_(True)
    merged.name_or_path = merged.config._name_or_path = place.name
    return merged


def _weights(place: Place) -> dict[str, Any]:
    """The tensors of an adapter.

    Raises:
        ModelError: they are absent, pickled, cut off or damaged.
    """
    file = file_of(place, ADAPTER_WEIGHTS)
    if file is None:
        raise ModelError(
            f"{place.name!r} holds {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}; expected the weights "
            "of the adapter as safetensors: nothing is unpickled"
        )
    return load_file(readable(file))
