"""Prompts and responses as rows of token ids: cut, padded, and where scores are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, padded_rows
from tokencredit.errors import DataError, ModelError
from tokencredit.text.hf_encoding import EncodedResponses, encode_chats, encode_responses


@dataclass(frozen=True)
class EncodedText:
    """A prompt and its response as one row of token ids.

    Attributes:
        input_ids: prompt, response, and what the chat template or tokenizer puts after it.
        response_mask: True on response tokens.
    """

    input_ids: list[int]
    response_mask: list[bool]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def start(self) -> int:
        """Index of the first response token."""
        return self.response_mask.index(True)


def response_batch(rows: Sequence[EncodedText], *, pad_id: int) -> ResponseBatch:
    """Rows as a batch whose responses reach to the end of the row."""
    return ResponseBatch.of_rows(
        [row.input_ids[: row.start] for row in rows],
        [row.input_ids[row.start :] for row in rows],
        pad_token_id=pad_id,
    )


# For each token of a row: whether the score there is read.
ReadAt = Callable[[EncodedText], list[bool]]


def read_last_token(text: EncodedText) -> list[bool]:
    """Only at the end of the row, where the whole is scored."""
    return [False] * (len(text) - 1) + [True]


def read_every_token(text: EncodedText) -> list[bool]:
    """Scores are read at each token of the response, and at the end of the row."""
    return [*text.response_mask[:-1], True]


def scored_rows(
    rows: Sequence[EncodedText], *, pad_id: int, read_at: ReadAt
) -> tuple[
    Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"], Bool[Tensor, "batch sequence"]
]:
    """Token ids, attention mask, and where scores are read."""
    ids, attention_mask, _ = right_padded(rows, pad_id=pad_id)
    counted, _ = padded_rows([read_at(row) for row in rows], fill=False, side="right")
    return ids, attention_mask, counted.bool()


Truncation = Literal["response-end", "prompt-start"]

# Texts that are encoded at a time.
CHUNK = 256


def encoded_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    append_eos: bool,
    max_length: int | None = None,
    truncation: Truncation = "response-end",
) -> list[EncodedText]:
    """Every prompt and response as token ids, cut to `max_length`.

    Args:
        tokenizer: a fast one; conversations need its chat template.
        prompts: texts, or all of them lists of messages; an empty text stands for the token that
            begins a sequence.
        responses: one text per prompt.
        append_eos: end each response with the end of sequence; a chat template ends it itself.
        max_length: in tokens; None cuts nothing.
        truncation: what goes first: the end of the response, or the start of the prompt (and then,
            with one token of it left, the end of the response).

    Raises:
        DataError: nothing of a response is left, or some prompts are texts and some messages.
        ModelError: texts stand alone and the tokenizer has no token to begin them.
    """
    as_chats = {isinstance(prompt, list) for prompt in prompts}
    if len(as_chats) > 1:
        raise DataError("some prompts are texts and some are messages; expected one kind only")
    rows: list[EncodedText] = []
    for at in range(0, len(responses), CHUNK):
        some, answers = prompts[at : at + CHUNK], responses[at : at + CHUNK]
        if True in as_chats:
            encoded = encode_chats(tokenizer, some, answers)  # type: ignore[arg-type]
        else:
            texts = [str(prompt) or sequence_start(tokenizer) for prompt in some]
            encoded = encode_responses(tokenizer, texts, answers, append_eos=append_eos)
        rows += unpadded_texts(encoded)
    if max_length is None:
        return rows
    return [_shortened(row, number, max_length, truncation) for number, row in enumerate(rows)]


def encoded_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    append_eos: bool,
    max_length: int,
    truncation: Truncation,
) -> list[tuple[EncodedText, EncodedText]]:
    """Every prompt with each of its two answers as token ids, both cut to the same prompt.

    Args:
        tokenizer: as of `encoded_texts`.
        prompts: as of `encoded_texts`.
        chosen: one answer per prompt.
        rejected: the other.
        append_eos: as of `encoded_texts`.
        max_length: in tokens.
        truncation: as of `encoded_texts`; of the start of the prompt both sides lose what the
            longer one has too much, so that they differ in their answers alone.

    Raises:
        DataError, ModelError: as `encoded_texts`.
    """
    sides = [
        encoded_texts(tokenizer, prompts, answers, append_eos=append_eos)
        for answers in (chosen, rejected)
    ]
    pairs = []
    for number, (one, other) in enumerate(zip(*sides, strict=True)):
        longest = max(len(one), len(other))
        better, worse = (
            _shortened(row, number, max_length, truncation, longest=longest) for row in (one, other)
        )
        pairs.append((better, worse))
    return pairs


def unpadded_texts(encoded: EncodedResponses) -> list[EncodedText]:
    """The rows of a padded batch without their padding."""
    no_prompt = torch.zeros_like(encoded.batch.prompt_mask)
    counts = torch.cat([no_prompt, encoded.batch.response_mask], dim=-1)
    real = encoded.attention_mask.bool()
    return [
        EncodedText(ids[is_real].tolist(), mask[is_real].tolist())
        for ids, is_real, mask in zip(encoded.batch.input_ids, real, counts, strict=True)
    ]


def sequence_start(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt that is nothing but the token that begins a sequence.

    Empty where the tokenizer adds that token by itself.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    first = tokenizer("a")["input_ids"][0]
    if first in tokenizer.all_special_ids:
        return ""
    if tokenizer.bos_token is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no token that begins a sequence; "
            "expected one for texts without a prompt: set tokenizer.bos_token, or give prompts"
        )
    return str(tokenizer.bos_token)


def _shortened(
    row: EncodedText,
    number: int,
    length: int,
    truncation: Truncation,
    *,
    longest: int | None = None,
) -> EncodedText:
    """The row cut to a length; its prompt to what leaves room for a row of `longest` tokens."""
    ids, mask = row.input_ids, row.response_mask
    if truncation == "prompt-start":
        cut = max(0, min((longest or len(ids)) - length, row.start - 1))
        ids, mask = ids[cut:], mask[cut:]
    if True not in mask[:length]:
        raise DataError(
            f"the prompt of row {number} has {row.start} tokens and leaves none of max_length "
            f"{length} to its response; expected a shorter prompt, a larger max_length, or "
            "truncation='prompt-start'"
        )
    return EncodedText(ids[:length], mask[:length])


def right_padded(
    rows: Sequence[EncodedText], *, pad_id: int
) -> tuple[
    Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"], Bool[Tensor, "batch sequence"]
]:
    """Token ids, attention mask and response mask of rows, padded on the right."""
    ids, real = padded_rows([row.input_ids for row in rows], fill=pad_id, side="right")
    response_mask, _ = padded_rows([row.response_mask for row in rows], fill=False, side="right")
    return ids, real.long(), response_mask.bool()
