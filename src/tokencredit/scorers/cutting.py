"""Prompts and responses cut to the length that a reward model reads, as texts and messages."""

from typing import Any

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import Truncation


def cut_to_fit(
    reading: Reading,
    prompt: Prompt,
    response: str,
    *,
    max_length: int | None,
    truncation: Truncation | None,
) -> tuple[Prompt, str]:
    """A prompt and its response, without what is too much for the reward model.

    Args:
        reading: of the reward model.
        prompt: text or conversation.
        response: what answers it.
        max_length: of both, in tokens; None cuts nothing.
        truncation: what goes first: the start of the prompt (of a conversation, that of its oldest
            turn but the system's) and then the end of the response, or that alone. None cuts
            nothing.

    Raises:
        DataError: they are too long and nothing may be cut, or nothing of the response is left.
    """
    if max_length is None:
        return prompt, response
    for _ in range(_MOST_CUTS):
        encoded = reading.encoded([prompt], [response])
        excess = int(encoded.attention_mask.sum()) - max_length
        if excess <= 0:
            return prompt, response
        shorter = None
        if truncation == "prompt-start":
            shorter = _prompt_without(reading.tokenizer, prompt, excess)
        if shorter is not None:
            prompt = shorter
        elif truncation is not None:
            response = _response_without(encoded, response, excess)
        if truncation is None or not response.strip():
            break
    raise DataError(
        f"prompt and response are longer than {max_length} tokens; expected no more: set "
        "truncation to cut them, or drop the row"
    )


# Cuts change how texts are cut into tokens, so that one is not always enough; every one but the
# last few takes a whole turn of a conversation away.
_MOST_CUTS = 1000


def _prompt_without(tokenizer: Any, prompt: Prompt, excess: int) -> Prompt | None:
    """The prompt without so many tokens at its start, or with one left; None if one is all."""
    if isinstance(prompt, str):
        return _without_start(tokenizer, prompt, excess)
    for at, turn in enumerate(prompt):
        if turn["role"] == "system":
            continue
        content = _without_start(tokenizer, turn["content"], excess)
        if content is not None:
            return [*prompt[:at], {**turn, "content": content}, *prompt[at + 1 :]]
        if at + 1 < len(prompt):
            return [*prompt[:at], *prompt[at + 1 :]]
    return None


def _without_start(tokenizer: Any, text: str, excess: int) -> str | None:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in offsets["offset_mapping"]]
    if len(starts) < 2:
        return None
    kept = text[starts[min(excess, len(starts) - 1)] :]
    return kept if kept.strip() and len(kept) < len(text) else None


def _response_without(encoded: EncodedResponses, response: str, excess: int) -> str:
    spans = [end for start, end in encoded.response_spans[0] if end > start]
    kept = len(spans) - max(excess, 1)
    return response[: spans[kept - 1]] if kept > 0 else ""
