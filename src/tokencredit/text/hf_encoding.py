"""Text to token ids, with the characters that each response token stands for.

Prompt and response are tokenized as one text: two texts tokenized apart and joined give other
tokens at the border. The way back, from generated ids to text, is `hf_decoding`.
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
from tokencredit.text.hf_tool_turns import require_tools_rendered

# Stands for the response while a chat template is rendered: private-use characters, which no
# template looks for.
_PLACEHOLDER = "\ue000response\ue001"


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


@dataclass(frozen=True)
class _Row:
    """Token ids of one text, cut in three, and spans of the middle part."""

    prompt: list[int]
    response: list[int]
    tail: list[int]
    spans: list[Span]


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

    A token that stands on the border belongs to the response. The tokenizer adds its special
    tokens; one beginning of sequence stays where the prompt's text brings its own.

    Args:
        tokenizer: a fast one, which knows the characters of its tokens.
        prompts: one text per response; may be empty where the tokenizer adds a first token.
        responses: what follows each prompt, with its leading space if it has one.
        max_length: of prompt and response together, in tokens.
        append_eos: end each response, or those named by True, with the end-of-sequence token, as
            one of its tokens.
        empty: whether a response without characters is an error or a row without response tokens.
        device: to put the tensors on.

    Raises:
        DataError: prompts and responses differ in number; a response is empty; nothing precedes
            a response; a text is longer than `max_length`.
        ModelError: the tokenizer gives no offsets, or lacks the pad or end token asked for.
    """
    _check_texts(tokenizer, prompts, responses, empty=empty)
    ended = [append_eos] * len(responses) if isinstance(append_eos, bool) else append_eos
    eos = _eos_token_id(tokenizer) if any(ended) else None
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    borders = [(len(p), len(t)) for p, t in zip(prompts, texts, strict=True)]
    rows = _cut_rows(tokenizer, texts, borders, special=True)
    if eos is not None:
        rows = [
            _with_eos(row, eos, len(text)) if ends else row
            for row, text, ends in zip(rows, responses, ended, strict=True)
        ]
    return _padded(tokenizer, rows, max_length=max_length, empty=empty, device=device)


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    *,
    max_length: int | None = None,
    empty: Literal["error", "keep"] = "error",
    device: torch.device | str | None = None,
) -> EncodedResponses:
    """Conversations and the assistant's next turn, rendered by the tokenizer's chat template.

    The template writes all special tokens itself, so the tokenizer adds none. What the template
    puts after the response is attended to but is no response token.

    Args:
        tokenizer: a fast one with a chat template.
        conversations: messages with "role" and "content", up to the turn to be answered.
        responses: the assistant's answer to each.
        max_length: of the rendered text, in tokens.
        empty: whether a response without characters is an error or a row without response tokens.
        device: to put the tensors on.

    Raises:
        DataError: as in `encode_responses`, or the template refuses the messages.
        ModelError: there is no chat template, it rewrites the response, or as above.
    """
    _check_texts(tokenizer, conversations, responses, empty=empty)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; expected one to "
            "render messages: set tokenizer.chat_template, or give prompts as plain text"
        )
    texts, borders, shifts = [], [], []
    for conversation, response in zip(conversations, responses, strict=True):
        require_tools_rendered(tokenizer, conversation)
        text, start, stop = _rendered(tokenizer, conversation, response)
        texts.append(text)
        borders.append((start, stop))
        shifts.append(response.index(text[start:stop]))
    rows = [
        _Row(row.prompt, row.response, row.tail, [(a + shift, b + shift) for a, b in row.spans])
        for row, shift in zip(
            _cut_rows(tokenizer, texts, borders, special=False), shifts, strict=True
        )
    ]
    return _padded(tokenizer, rows, max_length=max_length, empty=empty, device=device)


def _check_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[str],
    *,
    empty: Literal["error", "keep"],
) -> None:
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


def _rendered(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], response: str
) -> tuple[str, int, int]:
    """The conversation as its template writes it, and where the response stands in it."""

    def render(answer: str) -> str:
        messages = [*map(dict, conversation), {"role": "assistant", "content": answer}]
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # templates raise what they like
            roles = [message.get("role") for message in messages]
            raise DataError(
                f"the chat template of {tokenizer.name_or_path!r} refuses messages with the roles "
                f"{roles}: {error}; expected roles and an order that it knows"
            ) from error

    head, _, tail = render(_PLACEHOLDER).partition(_PLACEHOLDER)
    text = render(response)
    start, stop = len(head), len(text) - len(tail)
    fits = text.startswith(head) and text.endswith(tail) and start <= stop
    if not fits or text[start:stop] not in (response, response.strip(), response.lstrip()):
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path!r} rewrites the response {response!r}; "
            "expected it to appear unchanged, but for spaces around it"
        )
    return text, start, stop


def _cut_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    borders: list[tuple[int, int]],
    *,
    special: bool,
) -> list[_Row]:
    """Each text's tokens cut where the response starts and where it stops."""
    _require_unicode(texts)
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    rows = []
    for row, (start, stop) in enumerate(borders):
        ids, spans = encoded["input_ids"][row], encoded["offset_mapping"][row]
        is_text = [part is not None for part in encoded.sequence_ids(row)]
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id and not is_text[0]:
            ids, spans, is_text = ids[1:], spans[1:], is_text[1:]
        rows.append(_cut(ids, _covering(spans, is_text), is_text, start, stop))
    return rows


def _require_unicode(texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {row} holds the lone surrogate {text[error.start]!a}, half of a character; "
                "expected Unicode text: mend or drop the row"
            ) from error


def _covering(spans: list[Span], is_text: list[bool]) -> list[Span]:
    """The spans with the spaces that tokenizers cut off given to the token after them."""
    covering, done = [], 0
    for (start, end), counts in zip(spans, is_text, strict=True):
        covering.append((min(start, done), end) if counts else (start, end))
        done = max(done, end) if counts else done
    return covering


def _cut(ids: list[int], spans: list[Span], is_text: list[bool], start: int, stop: int) -> _Row:
    text_at = [index for index, counts in enumerate(is_text) if counts]
    after_text = text_at[-1] + 1 if text_at else len(ids)
    first = next((i for i in text_at if spans[i][1] > start or spans[i][0] >= start), after_text)
    last = next((i for i in text_at if i >= first and spans[i][0] >= stop), after_text)
    clipped = [
        (min(max(a, start), stop) - start, min(max(b, start), stop) - start)
        for a, b in spans[first:last]
    ]
    return _Row(ids[:first], ids[first:last], ids[last:], clipped)


def _eos_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token to append; "
            "set tokenizer.eos_token, or do not append one"
        )
    return tokenizer.eos_token_id


def _with_eos(row: _Row, eos: int, length: int) -> _Row:
    tail = row.tail[1:] if row.tail[:1] == [eos] else row.tail
    return _Row(row.prompt, [*row.response, eos], tail, [*row.spans, (length, length)])


def _padded(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[_Row],
    *,
    max_length: int | None,
    empty: Literal["error", "keep"],
    device: torch.device | str | None,
) -> EncodedResponses:
    """Rows as tensors: prompts end and responses start at the same column in each."""
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
    number: int, row: _Row, *, max_length: int | None, empty: Literal["error", "keep"]
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
