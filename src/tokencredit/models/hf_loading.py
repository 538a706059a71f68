"""Models and tokenizers from a folder or the Hub: safetensors only, no remote code unasked."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tokencredit.errors import ConfigError, ModelError, TokenCreditError, TokenCreditWarning
from tokencredit.models.hf_adapter_folders import adapter_config, has_head, merged_adapter
from tokencredit.models.hf_architecture import context_limit
from tokencredit.models.hf_files import Place, file_of, found_place, weight_files
from tokencredit.models.hf_loaded_weights import (
    head_modules,
    head_of_two_as_one,
    keep_head_in_float32,
    require_whole,
    warn_of_redrawn_head,
)
from tokencredit.models.precision import warn_of_emulated_bfloat16
from tokencredit.names import require_named

DTYPES = ("float32", "bfloat16", "float16", "auto")
_LOG = logging.getLogger("tokencredit.loading")


def load_tokenizer(
    name_or_path: str | Path, *, trust_remote_code: bool = False, pad_token: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a Hub id; beside an adapter alone, that of its base.

    Args:
        name_or_path: a folder written by `save_pretrained`, or a Hub id.
        trust_remote_code: let Python code that comes with the tokenizer run.
        pad_token: a token of the vocabulary to pad with, for tokenizers that name none.

    Raises:
        ModelError: nothing that can be loaded is there, or `pad_token` is not in the vocabulary.
    """
    place = found_place(name_or_path, what="tokenizer")
    if file_of(place, "tokenizer_config.json") is None:
        adapter = adapter_config(place)
        if adapter is not None:
            place = found_place(adapter.base_model_name_or_path, what="tokenizer")
    with _said_as_model_error("tokenizer", place, files="tokenizer.json, tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(
            place.name, trust_remote_code=trust_remote_code, local_files_only=place.local_only
        )
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ModelError(
                f"pad_token {pad_token!r} is not in the vocabulary of the tokenizer at "
                f"{str(name_or_path)!r}; expected one of its tokens, such as its unknown token"
            )
        tokenizer.pad_token = pad_token
    return tokenizer


def load_config(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model; of an adapter alone, that of its base.

    Raises:
        ModelError: none that can be read is there.
    """
    place = found_place(name_or_path, what="model")
    adapter = adapter_config(place)
    if adapter is not None:
        return load_config(adapter.base_model_name_or_path, trust_remote_code=trust_remote_code)
    return _own_config(place, trust_remote_code=trust_remote_code)


def model_description(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """What the files of a model say of it, without its weights: `config`, `generation_config`.

    The second is None where there is no such file. What the folder of an adapter alone does not
    say, its base does.

    Raises:
        ModelError: there is no configuration that can be read.
    """
    place = found_place(name_or_path, what="model")
    adapter = adapter_config(place)
    if adapter is None:
        found = _own_config(place, trust_remote_code=trust_remote_code)
        found = SimpleNamespace(config=found, generation_config=None)
    else:
        base = adapter.base_model_name_or_path
        found = model_description(base, trust_remote_code=trust_remote_code)
    with suppress(OSError):
        found.generation_config = GenerationConfig.from_pretrained(
            place.name, local_files_only=place.local_only
        )
    return found


def _own_config(place: Place, *, trust_remote_code: bool) -> Any:
    with _said_as_model_error("model", place, files="config.json"):
        return AutoConfig.from_pretrained(
            place.name, trust_remote_code=trust_remote_code, local_files_only=place.local_only
        )


def load_model(
    auto_class: Any,
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    new_head: bool = False,
    expected: str | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model of a folder or of a Hub id, whole, in evaluation mode.

    Every weight comes from the file and every weight of the file is used, or there is an error. An
    adapter alone is added to its base. The head of a classifier is float32, whatever `dtype`.

    Args:
        auto_class: what to load it with: `AutoModelForCausalLM`,
            `AutoModelForSequenceClassification` or a model class.
        name_or_path: a folder written by `save_pretrained`, or a Hub id.
        dtype: of the weights: "float32", "bfloat16", "float16", or "auto" for that of the file.
        attn_implementation: "eager", "sdpa", "flash_attention_2"; None for the model's default.
        device: to put it on; None leaves it on the CPU.
        trust_remote_code: let Python code that comes with the model run.
        new_head: a head will be trained anew: one that is missing or of another size is drawn. One
            output is made of two in the file, the second less the first.
        expected: what a message says was expected, where the head is that of another task.
        **kwargs: for `from_pretrained`.

    Raises:
        ConfigError: `dtype` is not one of those named, or there is no such device.
        ModelError: nothing that can be loaded is there, or weights are missing, of another shape or
            left over.
    """
    require_named("dtype", dtype, DTYPES)
    if device is not None:
        require_device(device)
    place = found_place(name_or_path, what="model")
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    kwargs |= {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "trust_remote_code": trust_remote_code,
    }
    model, head = _loaded(auto_class, place, new_head, expected, kwargs)
    if device is not None:
        with _said_as_model_error("model", place, files=f"to {device}"):
            model = model.to(device)
    if model.dtype == torch.bfloat16:
        warn_of_emulated_bfloat16(model.device, setting="dtype 'float32'")
    count = sum(weight.numel() for weight in model.parameters())
    _LOG.info(
        "%s: %s, %s parameters, %s%s",
        name_or_path,
        type(model).__name__,
        f"{count:,}",
        str(model.dtype).removeprefix("torch."),
        f", head {head}" if head_modules(model) else "",
    )
    return model.eval()


def _loaded(
    auto_class: Any, place: Place, new_head: bool, expected: str | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, str]:
    """A model, with its adapter if one lies there, and what its head is."""
    config = adapter_config(place)
    if config is None:
        return _whole_model(auto_class, place, new_head, expected, kwargs)
    base = found_place(config.base_model_name_or_path, what="base of an adapter")
    brings_head = has_head(place)
    below, head = _loaded(auto_class, base, new_head or brings_head, expected, kwargs)
    model = merged_adapter(below, place, config, new_head=new_head)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    _LOG.info("%s: %s adapter, merged into its base %s", place.name, kind, base.name)
    return model, "trained" if brings_head else head


def _whole_model(
    auto_class: Any, place: Place, new_head: bool, expected: str | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, str]:
    """A model of its own files, and what its head is."""
    config = _own_config(place, trust_remote_code=kwargs["trust_remote_code"])
    if getattr(config, "transformers_weights", None) is not None:  # may name a pickle
        raise ModelError(
            f"config.json of {place.name!r} names {config.transformers_weights!r} as the file of "
            "its weights; expected model.safetensors, or its index, and no other name"
        )
    files = weight_files(place)
    stage = _said_as_model_error("model", place, files=f"config.json, {files[0].name}")
    with stage, quiet_transformers():
        model, info = auto_class.from_pretrained(
            place.name,
            local_files_only=place.local_only,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are looked at below
            **kwargs,
        )
    is_new = require_whole(model, info, name=place.name, new_head=new_head, expected=expected)
    if is_new and head_of_two_as_one(model, info, files):
        head = "trained, the second of two outputs less the first"
    else:
        head = "new" if is_new else "trained"
        if is_new:
            warn_of_redrawn_head(info, place.name)
    keep_head_in_float32(model, files)
    return model, head


def require_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: it has none of this name.
    """
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = torch.accelerator.current_accelerator()
        raise ConfigError(
            f"device is {device!r}, which this machine or this build of PyTorch does not have "
            f"({str(error).splitlines()[0]}); expected 'cpu'"
            + (f" or {str(found)!r}" if found is not None else "")
        ) from error


@contextmanager
def _said_as_model_error(what: str, place: Place, *, files: str) -> Iterator[None]:
    """Whatever a library raises while it loads, as one error that names the place.

    Damaged, foreign and newer files bring exceptions of every kind.
    """
    try:
        yield
    except TokenCreditError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise ModelError(
            f"cannot load a {what} from {place.name!r} ({files}): {type(error).__name__}: {said} "
            "(expected a folder as `save_pretrained` writes it, weights as safetensors, of a "
            "version of transformers that is not newer than the installed "
            f"{transformers.__version__}; or a Hub id that is in the local cache or can be reached)"
        ) from error


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padding; masks, never this id, tell padding from text.

    Raises:
        ModelError: the tokenizer names no pad token.
    """
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no pad token; expected one, to batch "
            "texts of different lengths: set tokenizer.pad_token, or the setting "
            "loading.pad_token, to a token of its vocabulary that does not end a response"
        )
    return tokenizer.pad_token_id


def require_pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token's id, with a warning where it is the end-of-sequence token too.

    Scores do not depend on it, since padding is known by mask; but a model that is trained with
    its end of sequence hidden as padding never learns to stop.

    Raises:
        ModelError: the tokenizer names no pad token.
    """
    pad = pad_token_id(tokenizer)
    if pad == tokenizer.eos_token_id:
        warnings.warn(
            f"the tokenizer {tokenizer.name_or_path!r} pads with its end-of-sequence token "
            f"{tokenizer.eos_token!r}; a separate pad token is safer, since code that finds "
            "padding by id takes the end of a response for padding",
            TokenCreditWarning,
            stacklevel=2,
        )
    return pad


def context_length(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many tokens the model can read at once; None where neither it nor its tokenizer says."""
    limits = (context_limit(model), tokenizer.model_max_length)
    # Tokenizers that know no limit hold 10^30.
    return min((limit for limit in limits if limit is not None and 0 < limit < 10**9), default=None)


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability of the model to zero, in training mode too.

    Probabilities stand in modules of dropout, in numbers of other modules, and in the
    configuration, where some architectures look them up in every pass. So the saved configuration
    says zero too.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _without_dropout(module)
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig):
            configs[id(config)] = config
    while configs:
        _, config = configs.popitem()
        _without_dropout(config)
        parts = (part for part in vars(config).values() if isinstance(part, PreTrainedConfig))
        configs.update((id(part), part) for part in parts)


def _without_dropout(holder: Any) -> None:
    """Set the numbers of an object that are named after dropout, or after noise, to zero."""
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(holder, name, 0.0)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers: no bars, and no remarks about weights it loads or masks it misses."""
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
