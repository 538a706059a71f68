"""Texts as a reward model reads them, and what it says about them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tokencredit.errors import DataError
from tokencredit.hf_loading import context_length, load_tokenizer, pad_token_id
from tokencredit.hf_text import EncodedResponses, encode_chats, encode_responses
from tokencredit.preference.pairs import Prompt
from tokencredit.recipes.encoded_texts import sequence_start
from tokencredit.reward_model.hf_backbone import (
    ResponseScores,
    load_reward_model,
    score_responses,
)

Template = Literal["auto", "plain", "chat"]


def loaded_reward_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    pad_token: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A reward model and its tokenizer, which has a pad token.

    Raises:
        ModelError: as `load_reward_model` and `load_tokenizer`, or there is no pad token.
    """
    model, tokenizer = load_reward_model(
        name_or_path,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if pad_token is not None:
        tokenizer = load_tokenizer(
            name_or_path, pad_token=pad_token, trust_remote_code=trust_remote_code
        )
    pad_token_id(tokenizer)
    return model, tokenizer


def encoded_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    template: Template = "auto",
    append_eos: bool | Sequence[bool] = False,
    max_length: int | None = None,
    empty: Literal["error", "keep"] = "error",
    device: torch.device | str | None = None,
) -> EncodedResponses:
    """Prompts and responses as a reward model reads them.

    Args:
        tokenizer: the reward model's.
        prompts: texts, or conversations: lists of messages. An empty text stands for the token
            that begins a sequence.
        responses: one per prompt.
        template: "chat" renders with the chat template, a text as one message of the user; "plain"
            joins texts; "auto" is "chat" where the tokenizer has a chat template.
        append_eos: end plain responses, or those named by True, with the end of sequence; a chat
            template ends them itself.
        max_length: of a row, in tokens.
        empty: whether an empty response is an error.
        device: to put the tensors on.

    Raises:
        DataError: a conversation where plain texts are to be joined, or as in `hf_text`.
        ModelError: as in `hf_text`.
    """
    chat = template == "chat" or (template == "auto" and tokenizer.chat_template is not None)
    if chat:
        conversations = [
            [{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts
        ]
        return encode_chats(
            tokenizer, conversations, responses, max_length=max_length, empty=empty, device=device
        )
    texts = [prompt or sequence_start(tokenizer) for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise DataError(
            f"{len(prompts) - len(texts)} prompts are conversations, but template is {template!r} "
            f"and the tokenizer {tokenizer.name_or_path!r} has "
            f"{'no' if tokenizer.chat_template is None else 'a'} chat template; expected texts, or "
            "template 'chat' and a tokenizer with a chat template"
        )
    return encode_responses(
        tokenizer,
        texts,
        responses,
        append_eos=append_eos,
        max_length=max_length,
        empty=empty,
        device=device,
    )


def reads_eos(reward_model: nn.Module) -> bool | None:
    """Whether the reward model learnt on responses that end with the end of sequence.

    None where its configuration does not say: `train-reward-model` writes it there.
    """
    config: Any = reward_model.config
    return getattr(config, "eos_appended", None)


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
    scores = score_responses(
        reward_model,
        encoded.batch,
        attention_mask=encoded.attention_mask,
        attention_layer=attention_layer,
        micro_batch_size=micro_batch_size,
    )
    return encoded, scores


def token_texts(
    tokenizer: PreTrainedTokenizerBase, encoded: EncodedResponses, responses: Sequence[str]
) -> list[list[str]]:
    """What each response token stands for in its text; the name of a special token."""
    texts = []
    for ids, spans, response in zip(
        encoded.batch.response_ids.tolist(), encoded.response_spans, responses, strict=True
    ):
        names = tokenizer.convert_ids_to_tokens(ids[: len(spans)])
        texts.append(
            [response[a:b] if b > a else name for (a, b), name in zip(spans, names, strict=True)]
        )
    return texts
