"""Models and tokenizers from a folder or the Hub: safetensors only, no remote code unasked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tokencredit.errors import ModelError, TokenCreditWarning
from tokencredit.models.hf_architecture import context_limit
from tokencredit.names import require_named

DTYPES = ("float32", "bfloat16", "float16", "auto")


def load_tokenizer(
    name_or_path: str | Path, *, trust_remote_code: bool = False, pad_token: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a Hub id.

    Args:
        name_or_path: a folder written by `save_pretrained`, or a Hub id.
        trust_remote_code: let Python code that comes with the tokenizer run.
        pad_token: a token of the vocabulary to pad with, for tokenizers that name none.

    Raises:
        ModelError: nothing that can be loaded is there, or `pad_token` is not in the vocabulary.
    """
    tokenizer = _from_pretrained(
        AutoTokenizer, name_or_path, what="tokenizer", trust_remote_code=trust_remote_code
    )
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ModelError(
                f"pad_token {pad_token!r} is not in the vocabulary of the tokenizer at "
                f"{str(name_or_path)!r}; expected one of its tokens, such as its unknown token"
            )
        tokenizer.pad_token = pad_token
    return tokenizer


def load_model(
    auto_class: Any,
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model of a folder or of a Hub id, in evaluation mode.

    Args:
        auto_class: what to load it with: `AutoModelForCausalLM`,
            `AutoModelForSequenceClassification` or a model class.
        name_or_path: a folder written by `save_pretrained`, or a Hub id.
        dtype: of the weights: "float32", "bfloat16", "float16", or "auto" for that of the file.
        attn_implementation: "eager", "sdpa", "flash_attention_2"; None for the model's default.
        device: to put it on; None leaves it on the CPU.
        trust_remote_code: let Python code that comes with the model run.
        **kwargs: for `from_pretrained`.

    Raises:
        ConfigError: `dtype` is not one of those named.
        ModelError: nothing that can be loaded is there.
    """
    return load_model_and_info(
        auto_class,
        name_or_path,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=trust_remote_code,
        **kwargs,
    )[0]


def load_model_and_info(
    auto_class: Any,
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model as `load_model` gives it, and what transformers says about the weights it found.

    Returns:
        The model, and a dictionary whose "missing_keys" are weights that were not in the file and
        are freshly drawn, and whose "unexpected_keys" were in the file and are not used.

    Raises:
        ConfigError: `dtype` is not one of those named.
        ModelError: nothing that can be loaded is there.
    """
    require_named("dtype", dtype, DTYPES)
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    model, info = _from_pretrained(
        auto_class,
        name_or_path,
        what="model",
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        **kwargs,
    )
    if device is not None:
        model = model.to(device)
    return model.eval(), info


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
    """Set every dropout probability of the model to zero, in training mode too."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Attention modules hold the probability that they hand to the fused kernels as a number.
        for name in ("attention_dropout", "dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _from_pretrained(auto_class: Any, name_or_path: str | Path, *, what: str, **kwargs: Any) -> Any:
    """What `auto_class` loads from there, its many errors turned into one."""
    name = str(name_or_path)
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path and not Path(name).expanduser().is_dir():
        raise ModelError(
            f"there is no folder {name!r}; expected a {what} as `save_pretrained` writes it, or a "
            "Hub id"
        )
    try:
        return auto_class.from_pretrained(Path(name).expanduser() if is_path else name, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"cannot load a {what} from {name!r}: {str(error).strip()} (expected a folder as "
            "`save_pretrained` writes it, weights as safetensors; or a Hub id that is in the "
            "local cache or can be reached)"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers: no bars, and no remarks about weights it loads or masks it misses."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
