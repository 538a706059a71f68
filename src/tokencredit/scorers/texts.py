"""Texts as a reward model reads them, and what it says about them."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseScores
from tokencredit.models.hf_loading import context_length, pad_token_id
from tokencredit.reward_model.hf_scores import load_reward_model
from tokencredit.scorers.local import own_scores
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_rendering import Template, encoded_prompts, reads_eos


def loaded_reward_model(
    name_or_path: str, **loading: Any
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A reward model and its tokenizer, which has a pad token.

    Args:
        name_or_path: a folder or a Hub id.
        **loading: as `load_reward_model` takes it.

    Raises:
        ConfigError: the dtype is none of those that `load_model` knows.
        ModelError: as `load_reward_model`, or there is no pad token.
    """
    model, tokenizer = load_reward_model(name_or_path, **loading)
    pad_token_id(tokenizer)
    return model, tokenizer


def scored_texts(
    reward_model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    template: Template = "auto",
    attention_layer: int | None = None,
    micro_batch_size: int | None = None,
) -> tuple[EncodedResponses, ResponseScores]:
    """Responses in the reward model's own tokens, and what it says about them.

    They are whole responses, and end with the end of sequence if the model learnt on such.

    Args:
        reward_model: a sequence-classification model.
        tokenizer: its tokenizer.
        prompts: texts or conversations; an empty text stands for the start of a sequence.
        responses: one per prompt.
        template: as in `encoded_prompts`.
        attention_layer: whose attention to record; None for none.
        micro_batch_size: responses per forward pass; None for all at once.

    Raises:
        DataError, ModelError: as `encoded_prompts`.
        NumericError: a score is NaN or infinite.
    """
    encoded = encoded_prompts(
        tokenizer,
        prompts,
        responses,
        template=template,
        append_eos=bool(reads_eos(reward_model)),
        max_length=context_length(reward_model, tokenizer),
        device=next(reward_model.parameters()).device,
    )
    scores = own_scores(
        reward_model,
        tokenizer,
        encoded.batch,
        attention_mask=encoded.attention_mask.bool(),
        attention_layer=attention_layer,
        micro_batch_size=micro_batch_size,
    )
    return encoded, scores
