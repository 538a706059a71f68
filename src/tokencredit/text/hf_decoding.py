"""Generated token ids to text, with the characters that each of them stands for.

Ids that a policy generated are never tokenized again: the same text may have other tokens.
Sentences and other units are cut in the text and brought back to the tokens.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch
from tokencredit.masking import last_true_index
from tokencredit.text.alignment import Span
from tokencredit.text.sentences import (
    SpanFunction,
    TextKind,
    text_segments,
    text_segments_when_shown,
)

# Ids before a token that its decoded text may depend on: leading-space rules, joined bytes.
_DECODING_WINDOW = 8
# Decodings of everything up to a token, where tokens do not add up to the text.
_MOST_DECODINGS = 64


@dataclass(frozen=True)
class DecodedResponse:
    """The text of generated token ids, special tokens left out.

    Attributes:
        prompt: text of the prompt.
        response: what the response's ids add to it.
        spans: character span in `response` of each response id; empty for special tokens.
        ends: how many characters of `response` are whole after each response id. What the text so
            far says is in these alone; a span may end with a character that is only begun.
    """

    prompt: str
    response: str
    spans: list[Span]
    ends: list[int]


def token_spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Span]:
    """Character span of each of these ids in their decoded text, found by decoding alone.

    Tokens that are parts of one character share its span. Special tokens, which are left out of
    the text, have empty spans.
    """
    return decoded_response(tokenizer, [], ids).spans


def decoded_response(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> DecodedResponse:
    """Text of a prompt and of what its response adds, and the characters of each response token.

    The response is decoded after its prompt, since many tokenizers drop the leading space of what
    they decode alone. Bytes that begin a character at the end of the prompt count to the response.
    """
    ids = [*prompt_ids, *response_ids]
    text = _decoded(tokenizer, ids)
    border = len(_whole_characters(_decoded(tokenizer, ids[: len(prompt_ids)])))
    positions = range(len(prompt_ids), len(ids))
    ends = _text_ends(tokenizer, ids, positions)
    characters_in_all = len(_whole_characters(text)) - border
    if ends and ends[-1][0] != characters_in_all:

        def characters(number: int) -> int:
            """Whole characters up to so many tokens of the response."""
            before = _decoded(tokenizer, ids[: len(prompt_ids) + number])
            return len(_whole_characters(before)) - border

        ends = _corrected_ends(ends, characters, characters_in_all)
    limit, spans, whole, done, reached = len(text) - border, [], [], 0, 0
    for end, has_begun in ends:
        end = max(end, done)
        stop = min(end + has_begun, limit)
        # A token without text stands after all that came before it.
        spans.append((min(done, limit), stop) if stop > done else (reached, reached))
        done, reached = end, max(reached, stop)
        whole.append(min(done, limit))
    return DecodedResponse(text[:border], text[border:], spans, whole)


def _text_ends(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], positions: range
) -> list[tuple[int, bool]]:
    """Whole characters up to each position, and whether its token begins another one.

    Each token is decoded with a few before it, the first of them one that begins a character:
    bytes are text in whole runs alone. Where no character has ended for long, what the bytes count
    is known after the last of them, from all of them.
    """
    special = set(tokenizer.all_special_ids)
    plain = [id_ for id_ in ids if id_ not in special]
    at = sum(id_ not in special for id_ in ids[: positions.start])
    first, ends, total = max(0, at - _DECODING_WINDOW), [], 0
    begins: deque[int] = deque(maxlen=2 * _DECODING_WINDOW)
    before = _decoded(tokenizer, plain[first:at])
    for position in positions:
        if ids[position] in special:
            ends.append((total, False))
            continue
        if at - first >= 2 * _DECODING_WINDOW and not before.endswith("\ufffd"):
            far = at - _DECODING_WINDOW
            first = next((begin for begin in reversed(begins) if begin <= far), far)
            before = _decoded(tokenizer, plain[first:at])
        at += 1
        is_long = at - first > 4 * _DECODING_WINDOW
        if is_long and _decoded(tokenizer, plain[at - _DECODING_WINDOW : at]).endswith("\ufffd"):
            ends.append((total, True))
            continue
        now = _decoded(tokenizer, plain[first:at])
        total += len(_whole_characters(now)) - len(_whole_characters(before))
        before, has_begun = now, now.endswith("\ufffd")
        ends.append((total, has_begun))
        if not has_begun:
            begins.append(at)
        elif is_long:
            # Bytes before have spoilt the run; those that follow are read without them.
            first, before = at, ""
    return ends


def _corrected_ends(
    ends: list[tuple[int, bool]], characters: Callable[[int], int], whole: int
) -> list[tuple[int, bool]]:
    """Ends of tokens that add up to the text, corrected in those stretches that do not.

    Stretches are halved until they do or are one token. Where so much is wrong that this would take
    too long, as in long runs of bytes of no character, what is left is shared out evenly.

    Args:
        ends: as `_text_ends` gives them.
        characters: whole characters up to so many tokens.
        whole: of all tokens.
    """
    counted, corrected = [0, *(end for end, _ in ends)], list(ends)
    stretches, left = deque([(0, len(ends), 0, whole)]), _MOST_DECODINGS
    while stretches:
        first, last, start, stop = stretches.popleft()
        if counted[last] - counted[first] == stop - start:
            for index in range(first, last):
                corrected[index] = counted[index + 1] - counted[first] + start, ends[index][1]
        elif last - first == 1:
            corrected[first] = stop, ends[first][1]
        elif left > 0:
            left -= 1
            middle = (first + last) // 2
            there = min(max(start, characters(middle)), stop)
            stretches += [(first, middle, start, there), (middle, last, there, stop)]
        else:
            for index in range(first, last):
                share = (stop - start) * (index + 1 - first) // (last - first)
                corrected[index] = start + share, False
    return corrected


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _whole_characters(text: str) -> str:
    """The text without replacement characters at its end, where bytes are still missing."""
    return text.rstrip("\ufffd")


def response_text_segments(
    tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    kind: TextKind,
    length: int = 5,
    function: SpanFunction | None = None,
    close: Literal["at-end", "when-shown"] = "at-end",
) -> Int[Tensor, "batch time"]:
    """Segment ids of a batch of responses, by the sentences or other units of their text.

    Tokens inside a response that the policy did not choose belong to its text, but to no segment;
    special tokens that it chose, the end of sequence among them, belong to the segment before.

    Args:
        tokenizer: the policy's.
        batch: prompts and responses; prompts are decoded too, since a first space depends on them.
        kind: how to cut, as in `text_segments`.
        length: the most words of a phrase.
        function: finds the units of "spans" in the text of a response.
        close: whether a segment ends where its text does, or with the token that shows its end, as
            in `text_segments_when_shown`.

    Returns:
        Segment ids, -1 outside `batch.response_mask`.

    Raises:
        ConfigError: as in `text_segments`.
        DataError: what the function finds is not spans of the text, in order.
    """
    segment_ids = torch.full_like(batch.response_ids, -1)
    for row, end in enumerate((last_true_index(batch.response_mask) + 1).tolist()):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
        decoded = decoded_response(tokenizer, prompt, batch.response_ids[row, :end].tolist())
        options: dict[str, Any] = {"kind": kind, "length": length, "function": function}
        if close == "when-shown":
            ids = text_segments_when_shown(decoded.ends, decoded.response, **options)
        else:
            ids = text_segments(decoded.spans, decoded.response, **options)
        counts = batch.response_mask[row, :end]
        # A segment that lies wholly outside the mask leaves no gap in the numbers.
        chosen = torch.unique_consecutive(ids.to(counts.device)[counts], return_inverse=True)[1]
        segment_ids[row, :end][counts] = chosen.to(segment_ids)
    return segment_ids
