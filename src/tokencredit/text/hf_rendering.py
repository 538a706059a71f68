"""Prompts and responses rendered for a model: as plain text, or by its chat template."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.text.hf_encoding import EncodedResponses, encode_chats, encode_responses
from tokencredit.text.hf_token_rows import sequence_start
from tokencredit.text.hf_tool_turns import require_tools_rendered


def prompt_rows(prompts: list[Any], tokenizer: Any, *, where: str) -> list[list[int]]:
    """Prompts as ids: texts with the special tokens that begin them, chats in their template.

    Raises:
        DataError: a prompt has no tokens, or the chat template refuses it.
    """
    if isinstance(prompts[0], str):
        rows = tokenizer(prompts, add_special_tokens=True)["input_ids"]
    else:
        rows = [_chat_row(chat, tokenizer, where=where) for chat in prompts]
    eos = tokenizer.eos_token_id
    if eos is not None and all(row and row[-1] == eos for row in rows):
        rows = [row[:-1] for row in rows]
    if any(not row for row in rows):
        raise DataError(
            f"a prompt of {where} has no tokens; expected text, or a tokenizer that begins with a "
            "BOS token"
        )
    return rows


def _chat_row(chat: Any, tokenizer: Any, *, where: str) -> list[int]:
    require_tools_rendered(tokenizer, chat)
    try:
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # templates raise what they like
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses a prompt of {where} with the "
            f"roles {[message['role'] for message in chat]}: {error}; expected roles and an order "
            "that it knows"
        ) from error


Template = Literal["auto", "plain", "chat"]


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
        DataError: a conversation where plain texts are to be joined, or as in `encode_responses`.
        ModelError: as in `encode_chats`.
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
