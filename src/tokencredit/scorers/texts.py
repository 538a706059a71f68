"""Reward models that read texts, and whole texts as such a model reads them."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt
from tokencredit.models.hf_loading import context_length, pad_token_id
from tokencredit.reward_model.hf_scores import load_reward_model
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


def whole_texts(
    reward_model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    template: Template = "auto",
) -> EncodedResponses:
    """Whole responses in the reward model's own tokens, with the end of sequence if it learnt it.

    Args:
        reward_model: a sequence-classification model.
        tokenizer: its tokenizer.
        prompts: texts or conversations; an empty text stands for the start of a sequence.
        responses: one per prompt.
        template: as in `encoded_prompts`.

    Raises:
        DataError, ModelError: as `encoded_prompts`.
    """
    return encoded_prompts(
        tokenizer,
        prompts,
        responses,
        template=template,
        append_eos=bool(reads_eos(reward_model)),
        max_length=context_length(reward_model, tokenizer),
        device=next(reward_model.parameters()).device,
    )
