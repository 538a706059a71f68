"""What the architecture of a model allows: prefix scores, one reading position, lengths."""

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import DataError, ModelError
from tokencredit.models.heads import last_positions, objective_names, require_one_score
from tokencredit.models.hf_attention import pretrained_model


def require_evaluation(model: nn.Module) -> None:
    """Reject a model in training mode.

    Raises:
        ModelError: it is: dropout would make scores random.
    """
    if model.training:
        raise ModelError(
            f"{type(model).__name__} is in training mode; expected it in evaluation mode: call "
            "model.eval() before decoding"
        )


def accepts(module: nn.Module, argument: str) -> bool:
    """Whether the forward pass of a module names this argument."""
    return argument in inspect.signature(module.forward).parameters


def vocabulary_width(model: PreTrainedModel) -> int:
    """How many ids the model has embeddings for.

    Raises:
        ModelError: it has no such table (CANINE).
    """
    try:
        weight = model.get_input_embeddings().weight
    except NotImplementedError as error:
        raise ModelError(
            f"{type(model).__name__} has no table of embeddings; expected a model that looks up "
            "its tokens by their ids"
        ) from error
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 leaves an empty tensor


def config_value(model: nn.Module, name: str) -> Any:
    """What the configuration says of the text part of a model; None where it is silent.

    Models of several parts, which read images too, have a configuration for each.

    Args:
        model: of transformers, with or without PEFT.
        name: of the entry.
    """
    config: Any = model.config
    return getattr(config.get_text_config(), name, None)


def padding_id(model: nn.Module) -> int:
    """An id that a model reads where there is no text: its own for padding, if it has one."""
    return int(config_value(model, "pad_token_id") or 0)


def context_limit(model: nn.Module) -> int | None:
    """How many tokens the model reads at most; None where it does not say.

    RoBERTa and its like count positions from behind that of padding, so that the first ones are
    never used.
    """
    limit = config_value(model, "max_position_embeddings")
    pretrained = pretrained_model(model)
    table = getattr(getattr(pretrained.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return limit if limit is None or padding is None else limit - padding - 1


def require_room(model: nn.Module, tokens: int) -> None:
    """Reject texts that are longer than the model can read.

    Args:
        model: that reads them.
        tokens: of the longest text, with all that is to follow it.

    Raises:
        DataError: the model reads fewer.
    """
    limit = context_limit(model)
    if limit is not None and tokens > limit:
        raise DataError(
            f"the longest text, with what is to follow it, has {tokens} tokens and "
            f"{type(model).__name__} reads at most {limit}; expected shorter prompts and "
            "responses: truncate or drop them, or lower max_new_tokens"
        )


def text_positions(
    text_mask: Bool[Tensor, "batch time"] | Int[Tensor, "batch time"], *, limit: int | None = None
) -> Int[Tensor, "batch time"]:
    """Position of each token among the real ones of its row, from 0.

    Args:
        text_mask: True, or 1, on real tokens. Padding has the position of the token before it.
        limit: how many positions there are, as of `context_limit`. A row that is finished may run
            past it while others go on; it stays at the last one.

    >>> text_positions(torch.tensor([[False, False, True, True]]))
    tensor([[0, 0, 0, 1]])
    """
    return (text_mask.long().cumsum(-1) - 1).clamp(0, None if limit is None else limit - 1)


HEADS = {"score", "classifier", "classification_head", "logits_proj"}
"""First parts of the names of heads that give scores; other heads are over a vocabulary."""


def is_causal(model: nn.Module) -> bool:
    """Whether the head can score every prefix: no position sees later ones.

    True for models whose head `score` stands on every position and whose attention layers are all
    causal; false for encoders and encoder-decoders.

    Raises:
        ModelError: there is no Hugging Face model.
    """
    pretrained = pretrained_model(model)
    one_stack = not getattr(pretrained.config, "is_encoder_decoder", False)
    return hasattr(pretrained, "score") and one_stack and False not in _layer_directions(pretrained)


def reads_both_ways(model: PreTrainedModel) -> bool:
    """Whether a language model is no decoder, so that every position sees the later ones.

    Families that can be either say so in their configuration. Its class has to know the entry, and
    the layers not to say otherwise: GPT-NeoX is a decoder whatever stands there.
    """
    config = type(model.config)
    named = [name for name in ("is_decoder", "causal") if hasattr(config, name)]
    declared = any(config_value(model, name) is False for name in named)
    return declared and _layer_directions(model) != {True}


def sequence_classifier(model: nn.Module, *, every_output: bool = False) -> PreTrainedModel:
    """The Hugging Face model under any wrappers, with a head that gives one score of a sequence.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        every_output: whether each of its outputs is read, so that there may be any number.

    Raises:
        ModelError: there is none, it has no such head or more than two outputs, a PEFT adapter
            that adds virtual tokens, or it reads its score at the last column whether or not that
            is padding.
    """
    pretrained = pretrained_model(model)
    peft_config = getattr(model, "active_peft_config", None)
    if getattr(peft_config, "is_prompt_learning", False):
        raise ModelError(
            "the reward model has a PEFT adapter that adds virtual tokens; expected an adapter of "
            "weights such as LoRA: merge it, or train one of that kind"
        )
    if getattr(pretrained.config, "summary_type", None) == "last" and not is_causal(pretrained):
        raise ModelError(
            f"{type(pretrained).__name__} reads its score at the last column, padding or not; "
            "expected a model that reads it at the first token or at the last real one"
        )
    if not _has_classification_head(pretrained):
        raise ModelError(
            f"{type(pretrained).__name__} has no head that scores a sequence; expected a model "
            "for sequence classification, or a causal language model with `VocabScorer`"
        )
    if not every_output:
        require_one_score(pretrained.config.num_labels, objective_names(pretrained.config))
    return pretrained


def _has_classification_head(model: PreTrainedModel) -> bool:
    """Whether there is a head, under a usual name or another, that is not over the vocabulary."""
    if HEADS & {name for name, _ in model.named_children()}:
        return True
    return model.base_model is not model and model.get_output_embeddings() is None


def require_prefix_scores(model: nn.Module, *, instead: str) -> None:
    """Reject a model that gives prefixes no score.

    Args:
        model: a sequence-classification model.
        instead: what scores with it all the same, for the message.

    Raises:
        ModelError: it is no causal model with a head `score`.
    """
    if not is_causal(model):
        raise ModelError(
            f"{type(model).__name__} gives prefixes no score; expected a causal model with a head "
            f"named 'score': take {instead}"
        )


def reading_positions(
    model: PreTrainedModel, packed: Bool[Tensor, "batch sequence"]
) -> Int[Tensor, "batch"]:
    """Where a model that scores no prefixes reads its score: an encoder at the first token.

    Raises:
        ModelError: it is read from several positions, or in a decoder of its own.
    """
    config = model.config
    pooling = getattr(config, "classifier_pooling", "cls")
    if getattr(config, "is_encoder_decoder", False) or pooling not in ("cls", "bos"):
        raise ModelError(
            f"{type(model).__name__} does not read its score at one position of the text; "
            "expected a decoder or an encoder with a first-token head for attention credit: "
            "choose another credit method"
        )
    # CTRL has no module that says which way it reads.
    if _layer_directions(model) == {True} or config.model_type == "ctrl":
        return last_positions(packed)
    return packed.new_zeros(len(packed), dtype=torch.long)


def require_readable(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch sequence"],
    real: Bool[Tensor, "batch sequence"],
) -> None:
    """Reject rows that are empty, longer than the model can read, or of tokens that it lacks.

    Raises:
        DataError: a row is empty or too long.
        ModelError: the model has no embedding for an id.
    """
    last_positions(real)
    require_room(model, int(real.sum(-1).max()))
    require_known_ids(model, input_ids[real])


def require_known_ids(model: PreTrainedModel, ids: Int[Tensor, "tokens"]) -> None:
    """Reject ids that the model has no embedding for.

    Raises:
        ModelError: there is one.
    """
    size = vocabulary_width(model)
    if bool(((ids < 0) | (ids >= size)).any()):
        raise ModelError(
            f"the batch holds token ids from {int(ids.min())} to {int(ids.max())}; "
            f"{type(model).__name__} knows 0 to {size - 1}: expected a batch in the model's own "
            "tokens (`require_same_vocabulary`), without ids that are no token "
            "(`token_ids_without_text`)"
        )


def _layer_directions(model: PreTrainedModel) -> set[bool]:
    """What the model and its attention layers say about themselves: causal or not."""
    # A part that reads images sees in both directions, and no text.
    composite = model.config.get_text_config() is not model.config
    text = model.get_decoder() if composite else model
    # From `vars`, since a failing `getattr` on each of hundreds of modules is slow.
    said = [config_value(model, "is_causal")]
    said += [vars(module).get("is_causal") for module in text.modules()]
    # A configuration read from JSON may say 0 for False; anything but a number says nothing.
    return {bool(causal) for causal in said if isinstance(causal, int)}
