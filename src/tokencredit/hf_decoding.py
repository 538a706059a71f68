"""Generated token ids to text, with the characters that each of them stands for.

Ids that a policy generated are never tokenized again: the same text may have other tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tokencredit.alignment import Span

# Ids before a token that its decoded text may depend on: leading-space rules, joined bytes.
_DECODING_WINDOW = 8


@dataclass(frozen=True)
class DecodedResponse:
    """The text of generated token ids, special tokens left out.

    Attributes:
        prompt: text of the prompt.
        response: what the response's ids add to it.
        spans: character span in `response` of each response id; empty for special tokens.
    """

    prompt: str
    response: str
    spans: list[Span]


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

    The response is decoded behind its prompt, since many tokenizers drop the leading space of what
    they decode alone. Bytes that begin a character at the end of the prompt count to the response.
    """
    ids = [*prompt_ids, *response_ids]
    text = _decoded(tokenizer, ids)
    border = len(_whole_characters(_decoded(tokenizer, ids[: len(prompt_ids)])))
    positions = range(len(prompt_ids), len(ids))
    ends = _text_ends(tokenizer, ids, positions, window=_DECODING_WINDOW)
    if ends and border + ends[-1][0] != len(_whole_characters(text)):
        ends = _text_ends(tokenizer, ids, positions, window=len(ids))
    limit, spans, done, reached = len(text) - border, [], 0, 0
    for end, has_begun in ends:
        end = max(end, done)
        stop = min(end + has_begun, limit)
        # A token without text stands behind all that came before it.
        spans.append((min(done, limit), stop) if stop > done else (reached, reached))
        done, reached = end, max(reached, stop)
    return DecodedResponse(text[:border], text[border:], spans)


def _text_ends(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], positions: range, *, window: int
) -> list[tuple[int, bool]]:
    """Whole characters up to each position, and whether its token begins another one.

    Where a window holds nothing but bytes of no character, what they count is known behind the last
    of them alone, from a window that holds all of them.
    """
    special = set(tokenizer.all_special_ids)
    plain = [id_ for id_ in ids if id_ not in special]
    at = sum(id_ not in special for id_ in ids[: positions.start])
    ends, total, anchor = [], 0, 0
    for position in positions:
        if ids[position] in special:
            ends.append((total, False))
            continue
        first = max(0, at - window)
        before, now = (_decoded(tokenizer, plain[first:end]) for end in (at, at + 1))
        if first == 0 or not before or _whole_characters(before):
            anchor = first
        elif _whole_characters(now):
            before, now = (_decoded(tokenizer, plain[anchor:end]) for end in (at, at + 1))
        total += len(_whole_characters(now)) - len(_whole_characters(before))
        ends.append((total, now.endswith("\ufffd")))
        at += 1
    return ends


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _whole_characters(text: str) -> str:
    """The text without replacement characters at its end, where bytes are still missing."""
    return text.rstrip("\ufffd")
