"""Text to token ids, with the characters that each response token stands for.

`hf_cut_texts` finds where the response lies in the ids. The way back, from generated ids to text,
is `hf_decoding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Message, ResponseBatch
from tokencredit.errors import DataError, ModelError
from tokencredit.models.hf_loading import pad_token_id
from tokencredit.text.alignment import Span
from tokencredit.text.hf_cut_texts import CutText, cut_rendered, cut_texts, with_end
from tokencredit.text.hf_rendering import rendered_chat


@dataclass(frozen=True)
class EncodedResponses:
    """Prompts and responses as token ids, and where each response token stands in its text.

    Attributes:
        batch: response tokens count; tokens after the response (the end of a chat turn, a closing
            token of the tokenizer) lie in `response_ids` outside `response_mask`.
        attention_mask: 1 on every real token, those after the response included. Score with this
            one: `batch.attention_mask` ends with the response.
        response_spans: for each row, the character span in the response text of each response
            token. Together they cover the text from its start to its last visible character. A
            token that stands for no character of it has the empty span (n, n).
    """

    batch: ResponseBatch
    attention_mask: Int[Tensor, "batch sequence"]
    response_spans: list[list[Span]]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    max_length: int | None = None,
    append_eos: bool | Sequence[bool] = False,
    empty: Literal["error", "keep"] = "error",
    device: torch.device | str | None = None,
) -> EncodedResponses:
    """Prompts and their responses tokenized together, each as one text.

    What is asked of a model is read in the way it was trained to read: see `Reading`. A token that
    stands on the border belongs to the response. The tokenizer adds its special
    tokens; one beginning of sequence stays where the prompt's text brings its own.

    Args:
        tokenizer: a fast one, which knows the characters of its tokens.
        prompts: one text per response; may be empty where the tokenizer adds a first token.
        responses: what follows each prompt, with its leading space if it has one.
        max_length: of prompt and response together, in tokens.
        append_eos: end each response, or those named by True, with the end-of-sequence token, as
            one of its tokens.
        empty: whether a response without characters is an error, or a row without response tokens
            but for an end of sequence that is appended.
        device: to put the tensors on.

    Raises:
        DataError: prompts and responses differ in number; a response is empty; nothing precedes
            a response; a text is longer than `max_length`.
        ModelError: the tokenizer gives no offsets, or lacks the pad or end token asked for.
    """
    require_texts(tokenizer, prompts, responses, empty=empty)
    ended = [append_eos] * len(responses) if isinstance(append_eos, bool) else append_eos
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    borders = [(len(p), len(t)) for p, t in zip(prompts, texts, strict=True)]
    rows = cut_texts(tokenizer, texts, borders, special=True)
    rows = [
        with_end(tokenizer, row, len(text)) if ends else row
        for row, text, ends in zip(rows, responses, ended, strict=True)
    ]
    return padded_texts(tokenizer, rows, max_length=max_length, empty=empty, device=device)


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    *,
    ended: bool | Sequence[bool] = True,
    max_length: int | None = None,
    empty: Literal["error", "keep"] = "error",
    device: torch.device | str | None = None,
) -> EncodedResponses:
    """Conversations and the assistant's next turn, rendered by the tokenizer's chat template.

    The template writes all special tokens itself, so the tokenizer adds none, but for those of an
    encoder. What the template puts after the response is attended to but is no response token.

    Args:
        tokenizer: a fast one with a chat template.
        conversations: messages with "role" and "content", up to the turn to be answered.
        responses: the assistant's answer to each.
        ended: whether the turns are over, or which of them; the others were cut off, and nothing
            follows them.
        max_length: of the rendered text, in tokens.
        empty: whether a response without characters is an error or a row without response tokens.
        device: to put the tensors on.

    Raises:
        DataError: as in `encode_responses`, or the template refuses the messages.
        ModelError: there is no chat template, or it leaves the response out.
    """
    require_texts(tokenizer, conversations, responses, empty=empty)
    is_over = [ended] * len(responses) if isinstance(ended, bool) else ended
    texts = [
        rendered_chat(tokenizer, conversation, response, ended=over)
        for conversation, response, over in zip(conversations, responses, is_over, strict=True)
    ]
    rows = cut_rendered(tokenizer, texts)
    return padded_texts(tokenizer, rows, max_length=max_length, empty=empty, device=device)


def require_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[str],
    *,
    empty: Literal["error", "keep"],
) -> None:
    """Raise an error for texts that cannot be encoded with the characters of their tokens.

    Args:
        tokenizer: a fast one, which knows the characters of its tokens.
        prompts: one per response.
        responses: what follows each.
        empty: whether a response without characters is an error.

    Raises:
        DataError: prompts and responses differ in number, or a response is empty.
        ModelError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) cannot give "
            "character offsets; expected a fast tokenizer (tokenizer.is_fast): convert it, or "
            "load a model that comes with tokenizer.json"
        )
    if len(prompts) != len(responses):
        raise DataError(
            f"{len(prompts)} prompts and {len(responses)} responses; expected one response per "
            "prompt"
        )
    if not responses:
        raise DataError("no responses; expected at least one")
    for row, response in enumerate(responses):
        if not response and empty == "error":
            raise DataError(f"response {row} is empty; expected text: drop the row")


def padded_texts(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[CutText],
    *,
    max_length: int | None,
    empty: Literal["error", "keep"],
    device: torch.device | str | None,
) -> EncodedResponses:
    """Rows as tensors: prompts end and responses start at the same column in each.

    Args:
        tokenizer: names the id that fills padding.
        rows: of `cut_texts` or `cut_pairs`.
        max_length: of a row, in tokens.
        empty: whether a row without response tokens is an error.
        device: to put the tensors on.

    Raises:
        DataError: nothing precedes a response, it has no tokens, or a row is too long.
        ModelError: there is no pad token.
    """
    pad = pad_token_id(tokenizer)
    for number, row in enumerate(rows):
        _check_row(number, row, max_length=max_length, empty=empty)
    batch, attention_mask = closed_batch(
        [(row.prompt, row.response, row.tail) for row in rows], pad_token_id=pad
    )
    if device is not None:
        batch, attention_mask = batch.to(device), attention_mask.to(device)
    return EncodedResponses(batch, attention_mask, [row.spans for row in rows])


def closed_batch(
    rows: Sequence[tuple[list[int], list[int], list[int]]], *, pad_token_id: int
) -> tuple[ResponseBatch, Int[Tensor, "batch sequence"]]:
    """Rows as a batch, and 1 on every token that a model reads, closing ones included.

    Args:
        rows: token ids of each prompt, of its response, and of what closes it without counting.
        pad_token_id: fills padding.

    >>> batch, attention_mask = closed_batch([([5], [6], [2]), ([5], [], [])], pad_token_id=0)
    >>> batch.response_mask.tolist(), attention_mask.tolist()
    ([[True, False], [False, False]], [[1, 1, 1], [1, 0, 0]])
    """
    lengths = torch.tensor([len(response) + len(closing) for _, response, closing in rows])
    # One column at least, so that a batch of empty responses has a last token to look for.
    filler = [] if lengths.any() else [pad_token_id]
    batch = ResponseBatch.of_rows(
        [prompt for prompt, _, _ in rows],
        [response + closing + filler for _, response, closing in rows],
        masks=[[True] * len(r) + [False] * len(closing + filler) for _, r, closing in rows],
        pad_token_id=pad_token_id,
    )
    to_the_end = torch.arange(batch.response_ids.shape[1]) < lengths[:, None]
    return batch, torch.cat([batch.prompt_mask, to_the_end], dim=-1).long()


def _check_row(
    number: int, row: CutText, *, max_length: int | None, empty: Literal["error", "keep"]
) -> None:
    if not row.prompt:
        raise DataError(
            f"no token precedes response {number}; expected a prompt, or a tokenizer that adds a "
            "beginning-of-sequence token: the score before the first response token is read there"
        )
    if not row.response and empty == "error":
        raise DataError(f"response {number} has no tokens; expected visible text: drop the row")
    length = len(row.prompt) + len(row.response) + len(row.tail)
    if max_length is not None and length > max_length:
        raise DataError(
            f"row {number} has {length} tokens, {len(row.prompt)} of them in the prompt; expected "
            f"at most {max_length}, what the model can read: shorten or drop the row"
        )
