"""Texts as token ids cut in three: before the response, the response, what follows it.

Prompt and response are tokenized as one text: two texts tokenized apart and joined give other
tokens at the border.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from tokencredit.errors import DataError, ModelError
from tokencredit.text.alignment import Span
from tokencredit.text.hf_rendering import RenderedText


@dataclass(frozen=True)
class CutText:
    """Token ids of one text, cut in three, and spans of the middle part.

    Attributes:
        prompt: before the response.
        response: its tokens.
        tail: what follows it and is no token of it.
        spans: characters of the response that each of its tokens stands for.
    """

    prompt: list[int]
    response: list[int]
    tail: list[int]
    spans: list[Span]


def cut_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    borders: list[tuple[int, int]],
    *,
    special: bool,
) -> list[CutText]:
    """Each text's tokens cut where the response starts and where it stops.

    A token that stands on the border belongs to the response. One beginning of sequence stays
    where a text brings its own.

    Args:
        tokenizer: a fast one.
        texts: prompt, response and what follows, as one text.
        borders: the characters where each response starts and stops.
        special: whether the tokenizer adds its special tokens.

    Raises:
        DataError: a text holds half of a character.
    """
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


def _cut(ids: list[int], spans: list[Span], is_text: list[bool], start: int, stop: int) -> CutText:
    text_at = [index for index, counts in enumerate(is_text) if counts]
    after_text = text_at[-1] + 1 if text_at else len(ids)
    first = next((i for i in text_at if spans[i][1] > start or spans[i][0] >= start), after_text)
    last = next((i for i in text_at if i >= first and spans[i][0] >= stop), after_text)
    if start == stop:  # what precedes and what closes an empty response may be one token
        last = first
    clipped = [
        (min(max(a, start), stop) - start, min(max(b, start), stop) - start)
        for a, b in spans[first:last]
    ]
    return CutText(ids[:first], ids[first:last], ids[last:], clipped)


def cut_rendered(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[RenderedText]
) -> list[CutText]:
    """Ids of rendered conversations; encoders get the special tokens that no template writes.

    Args:
        tokenizer: a fast one.
        texts: conversations with the answers in them.

    Raises:
        DataError: a text holds half of a character.
    """
    cls = tokenizer.cls_token
    frames = cls is not None and not texts[0].text.startswith(cls)
    rows = cut_texts(
        tokenizer,
        [one.text for one in texts],
        [(one.start, one.stop) for one in texts],
        special=frames,
    )
    return [
        replace(row, spans=[text.span(*span) for span in row.spans])
        for row, text in zip(rows, texts, strict=True)
    ]


def cut_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> list[CutText]:
    """Tokens of pairs of sentences: the prompt with the token after it, the response, the rest.

    Args:
        tokenizer: a fast one that knows pairs.
        prompts: the first of each pair.
        responses: the second.

    Raises:
        DataError: a text holds half of a character.
    """
    _require_unicode([*prompts, *responses])
    encoded = tokenizer(
        list(prompts),
        list(responses),
        add_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    rows = []
    for row in range(len(prompts)):
        ids, parts = encoded["input_ids"][row], encoded.sequence_ids(row)
        spans = _covering(encoded["offset_mapping"][row], [part == 1 for part in parts])
        # Of an empty response there is nothing but the token that closes the pair.
        first = parts.index(1) if 1 in parts else len(ids) - 1
        last = len(parts) - parts[::-1].index(1) if 1 in parts else first
        rows.append(CutText(ids[:first], ids[first:last], ids[last:], spans[first:last]))
    return rows


def with_end(tokenizer: PreTrainedTokenizerBase, row: CutText, length: int) -> CutText:
    """The row with the end of sequence as last token of its response.

    Args:
        tokenizer: of the row.
        row: to close; an end that the tokenizer added is moved, not doubled.
        length: characters of the response.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token to append; "
            "set tokenizer.eos_token, or reading.append_eos to false"
        )
    tail = row.tail[1:] if row.tail[:1] == [eos] else row.tail
    return CutText(row.prompt, [*row.response, eos], tail, [*row.spans, (length, length)])
