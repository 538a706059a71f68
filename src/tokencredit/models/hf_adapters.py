"""Low-rank adapters: what they are put on, merging them, and the weights that training moves."""

import copy
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from tokencredit.errors import ConfigError, RunFolderError
from tokencredit.models.hf_architecture import HEADS

TargetModules = Sequence[str] | Literal["all-linear"]
_WEIGHTS = "trained.safetensors"


def lora_config(
    *,
    rank: int,
    alpha: int,
    task_type: str,
    target_modules: TargetModules = "all-linear",
    dropout: float = 0.0,
) -> Any:
    """PEFT's settings of adapters.

    Args:
        rank: of each adapter.
        alpha: what the adapter is multiplied by, times the rank.
        task_type: as PEFT names it: `SEQ_CLS` trains the head too, `CAUSAL_LM` leaves it.
        target_modules: layers that get one, by the ends of their names; "all-linear" for all linear
            ones but the head.
        dropout: share of the inputs of adapters that training sets to zero.

    Raises:
        ConfigError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError(
            f"lora.rank is {rank} and PEFT is not installed; expected it: "
            "pip install 'tokencredit[peft]'"
        ) from error
    named = target_modules if isinstance(target_modules, str) else list(target_modules)
    return LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=alpha,
        target_modules=named,
        lora_dropout=dropout,
    )


def lora_model(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    task_type: str = "SEQ_CLS",
    target_modules: TargetModules = "all-linear",
    dropout: float = 0.0,
) -> Any:
    """The model with adapters in training and its own weights frozen.

    Adapters and a head that is trained with them are float32, whatever the frozen weights are.

    Args:
        model: of transformers.
        rank: as of `lora_config`; 0 gives the model itself, all of it in training.
        alpha: as of `lora_config`.
        task_type: as of `lora_config`.
        target_modules: as of `lora_config`.
        dropout: as of `lora_config`.

    Raises:
        ConfigError: PEFT is not installed, or the model has no layer of these names.
    """
    if not rank:
        return model
    adapter = lora_config(
        rank=rank,
        alpha=alpha,
        task_type=task_type,
        target_modules=target_modules,
        dropout=dropout,
    )
    from peft import get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for name, module in model.named_children():
        if name in HEADS:
            module.float().register_forward_pre_hook(_in_float32)
    try:
        with warnings.catch_warnings():  # PEFT asks transformers for a name that it will lose
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            return get_peft_model(model, adapter)
    except (TypeError, ValueError) as error:
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        raise ConfigError(
            f"lora.target_modules: {error}; expected 'all-linear', or some of "
            f"{', '.join(sorted(linear))}"
        ) from error


def _in_float32(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(one.float() for one in inputs)


def quantized_loading() -> dict[str, Any]:
    """What `from_pretrained` takes to keep weights in 4 bits, as QLoRA does.

    NormalFloat of 4 bits with quantised constants, computed in bfloat16: Dettmers et al. 2023,
    arXiv 2305.14314.

    Raises:
        ConfigError: there is no GPU, or bitsandbytes is not installed.
    """
    lacking = ""
    if not torch.cuda.is_available():
        lacking = "there is no GPU; expected one"
    elif find_spec("bitsandbytes") is None:
        lacking = "bitsandbytes is not installed; expected it: pip install bitsandbytes"
    if lacking:
        raise ConfigError(f"lora.quantization is '4bit' and {lacking}, or lora.quantization null")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": settings, "device_map": {"": torch.cuda.current_device()}}


def round_frozen_linear_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of frozen linear layers as autocast would round them at every call.

    Autocast casts a weight that needs no gradient anew in every forward pass, in generation for
    every token. Rounded once they are the same numbers, so that what a model says under autocast
    stays the same, bit for bit; without autocast it cannot be called any more. Norms and embeddings
    stay as they are. An output head that shares its weight with the embeddings gets one of its own.

    Args:
        model: whose linear layers in training, adapters for example, stay as they are.
        dtype: of autocast.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            for name, weight in list(module.named_parameters(recurse=False)):
                rounded = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                setattr(module, name, rounded)


def merged_model(model: Any) -> PreTrainedModel:
    """The model whose adapters, if it has any, are added to its own weights, in float32."""
    return model.float().merge_and_unload() if hasattr(model, "merge_and_unload") else model


def on_whole_weights(adapted: Any, whole: Any) -> Any:
    """Adapters that were trained on rounded weights, on the weights as they were.

    Args:
        adapted: the model in 4 bits, with its adapters.
        whole: the same model in float32, with adapters of the same settings, which become those.
    """
    trained = trained_weights(adapted)
    for name, weight in trained_weights(whole).items():
        weight.copy_(trained[name])
    settings = copy.deepcopy(adapted.get_base_model().config)
    vars(settings).pop("quantization_config", None)
    whole.get_base_model().config = settings
    return whole


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight that a gradient moves, by its name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def write_trained_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights in training into a folder, as safetensors.

    Raises:
        OSError, SafetensorError: the disk is full or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in trained_weights(model).items()}
    save_file(weights, folder / _WEIGHTS)


def restore_trained_weights(model: nn.Module, folder: Path) -> None:
    """Put back what `write_trained_weights` wrote.

    Raises:
        RunFolderError: the folder holds other weights than those in training.
    """
    saved, weights = load_file(folder / _WEIGHTS), trained_weights(model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    different = sorted(shapes.items() ^ {(n, tuple(w.shape)) for n, w in saved.items()})
    if different:
        raise RunFolderError(
            f"the checkpoint {folder} and the model in training differ in {different[0][0]!r}; "
            "expected the model that the run began with: it was written by another version, so "
            "delete the folder or choose another `output`"
        )
    for name, weight in weights.items():
        weight.copy_(saved[name])
