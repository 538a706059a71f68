"""Models as training starts from them and as it leaves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.errors import ConfigError
from tokencredit.models.hf_adapters import (
    lora_model,
    merged_model,
    on_whole_weights,
    quantized_loading,
)
from tokencredit.models.hf_loading import (
    context_length,
    disable_dropout,
    load_model,
    load_tokenizer,
    require_pad_token,
)
from tokencredit.recipes.run.shown_reading import reading_line
from tokencredit.recipes.settings import (
    LoadingSettings,
    LoraSettings,
)
from tokencredit.text.hf_known_readings import reading_of, remember_reading
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings


def require_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """The model can read `max_length` tokens.

    Raises:
        ConfigError: it cannot.
    """
    limit = context_length(model, tokenizer)
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"max_length is {max_length}, and the model reads at most {limit} tokens; expected no "
            "more than that"
        )


def reading_to_train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ReadingSettings,
    *,
    pairs: bool = False,
) -> Reading:
    """How a model will be trained to read, printed, and written into its configuration.

    Args:
        model: about to be trained.
        tokenizer: its own.
        settings: of the run.
        pairs: whether the recipe trains models that read pairs of sentences.

    Raises:
        ConfigError: the template is for pairs and the recipe trains none, or as `reading_of`.
    """
    reading = reading_of(model, tokenizer, settings, training=True)
    if reading.template == "pair" and not pairs:
        raise ConfigError(
            f"reading.template is 'pair' ({reading.origin}); expected 'plain' or 'chat': this "
            "recipe scores tokens of one text"
        )
    remember_reading(reading, model.config, settings)
    print(f"model {reading_line(reading)}")
    return reading


def lasting_name(name_or_path: str) -> str:
    """A Hub id as it is; a folder as a path that means the same from anywhere."""
    path = Path(name_or_path).expanduser()
    return str(path.resolve()) if path.is_dir() else name_or_path


def language_model_to_train(
    name_or_path: str,
    loading: LoadingSettings,
    *,
    max_length: int,
    lora: LoraSettings | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that training starts from, dropout off, and its tokenizer with a pad token.

    Args:
        name_or_path: a folder or a Hub id.
        loading: how it is loaded.
        max_length: of a row, in tokens.
        lora: adapters that will be trained in the place of its weights; None if there are none.

    Raises:
        ModelError: a model or tokenizer is not there, or there is no pad token.
        ConfigError: the model is too short for `max_length`.
    """
    tokenizer = load_tokenizer(
        name_or_path, pad_token=loading.pad_token, trust_remote_code=loading.trust_remote_code
    )
    require_pad_token(tokenizer)
    model = _model_to_train(AutoModelForCausalLM, name_or_path, loading, lora)
    require_context(model, tokenizer, max_length)
    disable_dropout(model)
    return model, tokenizer


def classifier_to_train(
    auto_class: Any,
    name_or_path: str,
    loading: LoadingSettings,
    *,
    max_length: int,
    lora: LoraSettings | None = None,
    **head: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier that training starts from, dropout off, and its tokenizer with a pad token.

    Args:
        auto_class: of transformers; the head is new where the start has another.
        name_or_path: a folder or a Hub id.
        loading: how it is loaded; a pad token that is no token yet is added.
        max_length: of a row, in tokens.
        lora: adapters that will be trained in the place of its weights; None if there are none.
        **head: what the configuration shall say of the head.

    Raises:
        ModelError: a model or tokenizer is not there or lacks what is needed.
        ConfigError: the model is too short for `max_length`.
    """
    tokenizer = load_tokenizer(name_or_path, trust_remote_code=loading.trust_remote_code)
    model = _model_to_train(auto_class, name_or_path, loading, lora, new_head=True, **head)
    if loading.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": loading.pad_token})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = require_pad_token(tokenizer)
    tokenizer.padding_side = "right"
    require_context(model, tokenizer, max_length)
    disable_dropout(model)
    return model, tokenizer


def _model_to_train(
    auto_class: Any,
    name_or_path: str,
    loading: LoadingSettings,
    lora: LoraSettings | None,
    **keywords: Any,
) -> PreTrainedModel:
    """A model to train in float32, or to freeze under adapters."""
    frozen = lora is not None and lora.rank > 0
    if lora is not None and lora.quantization is not None:
        keywords |= quantized_loading()
    return load_model(
        auto_class,
        name_or_path,
        dtype=loading.dtype if frozen else "float32",
        attn_implementation=loading.attn_implementation,
        trust_remote_code=loading.trust_remote_code,
        **keywords,
    )


def without_adapters(
    adapted: Any, lora: LoraSettings, load: Callable[[], PreTrainedModel], *, task_type: str
) -> PreTrainedModel:
    """The trained model, whose adapters, if it has any, are added to its weights in float32.

    Args:
        adapted: after training.
        lora: the settings.
        load: gives the model as it was before training, in float32; called where the one in
            training has weights in 4 bits, which adapters cannot be added to without loss.
        task_type: as of `lora_config`.
    """
    if lora.quantization is not None:
        whole = with_adapters(load(), lora, task_type=task_type)
        adapted = on_whole_weights(adapted, whole)
    return merged_model(adapted)


def with_adapters(model: PreTrainedModel, lora: LoraSettings, *, task_type: str = "SEQ_CLS") -> Any:
    """The model with the adapters of the settings in training, or itself where there are none.

    Args:
        model: to train.
        lora: the settings.
        task_type: as of `lora_config`.
    """
    return lora_model(
        model,
        rank=lora.rank,
        alpha=lora.alpha,
        target_modules=lora.target_modules,
        dropout=lora.dropout,
        task_type=task_type,
    )
