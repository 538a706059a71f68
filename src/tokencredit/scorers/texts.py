"""Reward models that read texts, and whole texts as such a model reads them."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokencredit.batch import Prompt
from tokencredit.models.hf_loading import context_length, pad_token_id
from tokencredit.models.hf_objectives import split_objectives
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.scorers.ensemble import combination_named
from tokencredit.scorers.feature_folders import require_tokens
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings


def loaded_reward_model(
    name_or_path: str, settings: ReadingSettings | None = None, **loading: Any
) -> tuple[nn.Module, Reading]:
    """A reward model, and how it reads texts; its tokenizer has a pad token.

    Args:
        name_or_path: a folder or a Hub id; of a model of several objectives or heads with what is
            asked of it, as `load_reward_model` takes it or as `combination_named`.
        settings: how it reads; None leaves that to the model.
        **loading: as `load_reward_model` takes it.

    Raises:
        ConfigError: there is no such objective or combination, the dtype is none of those that
            `load_model` knows, or as `reading_of`.
        ModelError: as `load_reward_model`, there is no pad token, or the folder is one of
            `train-feature-model`, which has no tokens.
    """
    require_tokens(name_or_path)
    _, asked = split_objectives(name_or_path)
    model, tokenizer = load_reward_model(name_or_path, join=combination_named(asked), **loading)
    pad_token_id(tokenizer)
    return model, reading_of(model, tokenizer, settings)


def whole_texts(
    reward_model: nn.Module,
    reading: Reading,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    ended: bool | Sequence[bool] = True,
) -> EncodedResponses:
    """Texts in the reward model's own tokens, on its device, none longer than it can read.

    They are on the CPU for a model without weights here, which a server has.

    Args:
        reward_model: a sequence-classification model.
        reading: how it reads.
        prompts: texts or conversations; an empty text stands for the start of a sequence.
        responses: one per prompt.
        ended: as in `Reading.encoded`.

    Raises:
        DataError, ModelError: as `Reading.encoded`.
    """
    device = next(reward_model.parameters()).device
    return reading.encoded(
        prompts,
        responses,
        ended=ended,
        max_length=context_length(reward_model, reading.tokenizer),
        device="cpu" if device.type == "meta" else device,
    )
