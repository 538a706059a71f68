"""Prompts and responses as rows of token ids: cut, padded, and where scores are read."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch, padded_rows
from tokencredit.errors import DataError, ModelError
from tokencredit.text.hf_encoding import EncodedResponses


@dataclass(frozen=True)
class EncodedText:
    """A prompt and its response as one row of token ids.

    Attributes:
        input_ids: prompt, response, and what the chat template or tokenizer puts after it.
        response_mask: True on response tokens.
        two_segments: whether the model is told which tokens are the response's.
    """

    input_ids: list[int]
    response_mask: list[bool]
    two_segments: bool = False

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


def read_response(text: EncodedText) -> list[bool]:
    """From the first token of the response to the end of the row."""
    return [False] * text.start + [True] * (len(text) - text.start)


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


def unpadded_texts(encoded: EncodedResponses, *, two_segments: bool = False) -> list[EncodedText]:
    """The rows of a padded batch without their padding.

    Args:
        encoded: the batch.
        two_segments: as of `EncodedText`.
    """
    no_prompt = torch.zeros_like(encoded.batch.prompt_mask)
    counts = torch.cat([no_prompt, encoded.batch.response_mask], dim=-1)
    real = encoded.attention_mask.bool()
    return [
        EncodedText(ids[is_real].tolist(), mask[is_real].tolist(), two_segments)
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


def shortened_text(
    row: EncodedText,
    number: int,
    length: int,
    truncation: Truncation,
    *,
    stays: Collection[int | None],
    longest: int | None = None,
) -> EncodedText:
    """A row cut to a length.

    Args:
        row: prompt, response and what follows.
        number: of the row, for messages.
        length: in tokens.
        truncation: what goes first: the end of the response, or the start of the prompt (and then,
            with one token of it left, the end of the response).
        stays: ids that stay where one of them begins the row.
        longest: of rows that shall keep the same part of their prompt, the tokens of the longest;
            None for this row alone.

    Raises:
        DataError: nothing of the response is left.

    >>> row = EncodedText([1, 5, 6, 7, 8], [False, False, False, True, True])
    >>> shortened_text(row, 0, 4, "prompt-start", stays={1}).input_ids
    [1, 6, 7, 8]
    """
    ids, mask = row.input_ids, row.response_mask
    if truncation == "prompt-start":
        first = 1 if row.start > 1 and ids[0] in stays else 0
        cut = max(0, min((longest or len(ids)) - length, row.start - 1 - first))
        ids = [*ids[:first], *ids[first + cut :]]
        mask = [*mask[:first], *mask[first + cut :]]
    if True not in mask[:length]:
        raise DataError(
            f"the prompt of row {number} has {row.start} tokens and leaves none of max_length "
            f"{length} to its response; expected a shorter prompt, a larger max_length, or "
            "truncation='prompt-start'"
        )
    return replace(row, input_ids=ids[:length], response_mask=mask[:length])


def right_padded(
    rows: Sequence[EncodedText], *, pad_id: int
) -> tuple[
    Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"], Bool[Tensor, "batch sequence"]
]:
    """Token ids, attention mask and response mask of rows, padded on the right."""
    ids, real = padded_rows([row.input_ids for row in rows], fill=pad_id, side="right")
    response_mask, _ = padded_rows([row.response_mask for row in rows], fill=False, side="right")
    return ids, real.long(), response_mask.bool()


def token_types(rows: Sequence[EncodedText], *, width: int) -> Int[Tensor, "batch sequence"] | None:
    """1 from the response on, 0 before and on padding; None where the model is not told.

    Args:
        rows: all of one model.
        width: columns of the rows padded on the right.
    """
    if not rows[0].two_segments:
        return None
    types = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        types[at, row.start : len(row)] = 1
    return types


def token_texts(
    tokenizer: PreTrainedTokenizerBase, encoded: EncodedResponses, responses: Sequence[str]
) -> list[list[str]]:
    """What each response token stands for in its text; the name of a special token.

    Args:
        tokenizer: of the ids.
        encoded: the responses.
        responses: their texts.
    """
    texts = []
    for ids, spans, response in zip(
        encoded.batch.response_ids.tolist(), encoded.response_spans, responses, strict=True
    ):
        names = tokenizer.convert_ids_to_tokens(ids[: len(spans)])
        texts.append(
            [response[a:b] if b > a else name for (a, b), name in zip(spans, names, strict=True)]
        )
    return texts
