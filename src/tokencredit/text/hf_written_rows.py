"""Responses with the token ids that were drawn, as another model of this vocabulary reads them.

The ids are not cut anew: what the writer wrote stays, and the prompt and the closing around it are
those of the reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch
from tokencredit.masking import last_true_index
from tokencredit.models.hf_loading import pad_token_id
from tokencredit.text.hf_cut_texts import CutText
from tokencredit.text.hf_reading import Reading


@dataclass(frozen=True)
class WrittenRows:
    """Responses with the token ids of their writer, as another model of this vocabulary reads them.

    Attributes:
        batch: response columns are those of the writer, and more where closing tokens follow.
        attention_mask: True on every token that is read.
    """

    batch: ResponseBatch
    attention_mask: Bool[Tensor, "batch sequence"]


def written_rows(
    reading: Reading,
    batch: ResponseBatch,
    prompts: Sequence[Prompt] | None,
    ended: Bool[Tensor, "batch"],
    end_tokens: Bool[Tensor, "batch"] | None = None,
) -> WrittenRows:
    """Responses with the ids that were drawn, in the prompt and closing of a reading.

    Args:
        reading: of the model that reads.
        batch: in the tokens of its very vocabulary.
        prompts: what was asked; None takes the ids of the prompts, as text or as they are.
        ended: True for responses that have ended: they get the reading's own closing.
        end_tokens: True for those whose last token ended them: the closing takes the place of that
            token, which counts as before, read or not. None for all that ended.
    """
    ends = ended.tolist()
    replaced = ends if end_tokens is None else end_tokens.tolist()
    asked = prompts_of(reading, batch, reading.tokenizer) if prompts is None else list(prompts)
    kept = [
        prompts is None and isinstance(prompt, str) and not _is_wrapped(reading, prompt)
        for prompt in asked
    ]
    frames = [
        _frame(reading, prompt, end, as_it_is=keep)
        for prompt, end, keep in zip(asked, ends, kept, strict=True)
    ]
    reads = batch.attention_mask[:, batch.prompt_ids.shape[1] :].bool()
    lengths = (last_true_index(reads) + 1).tolist()
    heads, texts, masks, read = [], [], [], []
    for row, (frame, length, keep) in enumerate(zip(frames, lengths, kept, strict=True)):
        own = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
        heads.append(own if keep else frame.prompt)
        written = length - replaced[row]
        closing = [*frame.response, *frame.tail]
        unread = replaced[row] and not closing
        ids = batch.response_ids[row, :written].tolist()
        counts = batch.response_mask[row, :written].tolist()
        filler = [pad_token_id(reading.tokenizer)] if unread else []
        texts.append([*ids, *closing, *filler])
        after = [replaced[row], *[False] * len(closing)][: len(closing) + len(filler)]
        masks.append([*counts, *after])
        read.append(
            [*reads[row, :written].tolist(), *[True] * len(closing), *[False] * len(filler)]
        )
    return _written(reading.tokenizer, heads, texts, masks, read, batch)


def prompts_of(
    reading: Reading, batch: ResponseBatch, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """The texts of prompts that are there as token ids alone.

    Special tokens are left out, but for prompts in the marks of the reading's chat template.

    Args:
        reading: of the model that reads.
        batch: whose prompts.
        tokenizer: of their ids.
    """
    found: list[Prompt] = []
    for ids, real in zip(batch.prompt_ids, batch.prompt_mask, strict=True):
        row = ids[real].tolist()
        marked = tokenizer.decode(row, clean_up_tokenization_spaces=False)
        if reading.template == "chat" and reading.marks.open_answer(marked):
            found.append(marked)
        else:
            found.append(
                tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
    return found


def ended_responses(batch: ResponseBatch, turn_ends: Sequence[int]) -> Bool[Tensor, "batch time"]:
    """True on the last token of each response that ended itself.

    Args:
        batch: responses in the tokens of their writer.
        turn_ends: ids that end one.

    >>> batch = ResponseBatch.of_rows([[5], [5]], [[6, 2], [6, 7]], pad_token_id=0)
    >>> ended_responses(batch, [2]).tolist()
    [[False, True], [False, False]]
    """
    last = last_true_index(batch.response_mask)[:, None]
    is_last = torch.arange(batch.response_ids.shape[1], device=last.device) == last
    ends = batch.response_ids.new_tensor(list(turn_ends), dtype=torch.long)
    return is_last & (last >= 0) & torch.isin(batch.response_ids, ends)


def _is_wrapped(reading: Reading, prompt: str) -> bool:
    """Whether a text is put into the chat template as a message."""
    return reading.template == "chat" and prompt != "" and not reading.marks.open_answer(prompt)


def _frame(reading: Reading, prompt: Prompt, ended: bool, *, as_it_is: bool) -> CutText:
    """What stands before and after an answer, whatever it says."""
    # The ids of a prompt as it is are there already, and what closes an answer hangs on none.
    if as_it_is and not prompt:
        reading = replace(reading, template="plain")
    asked = "x" if as_it_is else prompt
    # What closes an answer is that of one with text: after none it may be one token with what
    # precedes.
    opened, closed = reading.cut([asked] * 2, ["", "x"], [False, ended])
    after_text = (len("x"), len("x"))
    spans = zip(closed.response, closed.spans, strict=True)
    closing = [id_ for id_, span in spans if span == after_text]
    return CutText(opened.prompt, closing, closed.tail, [])


def _written(
    tokenizer: PreTrainedTokenizerBase,
    heads: list[list[int]],
    texts: list[list[int]],
    masks: list[list[bool]],
    read: list[list[bool]],
    batch: ResponseBatch,
) -> WrittenRows:
    """Rows as a batch that is at least as wide as the writer's."""
    width = max(batch.response_ids.shape[1], *map(len, texts))
    pad = pad_token_id(tokenizer)

    def wide(rows: list[list[Any]], fill: Any) -> list[list[Any]]:
        return [[*row, *[fill] * (width - len(row))] for row in rows]

    made = ResponseBatch.of_rows(
        heads, wide(texts, pad), masks=wide(masks, False), pad_token_id=pad
    )
    real = torch.cat([made.prompt_mask, torch.tensor(wide(read, False))], dim=-1)
    device = batch.response_ids.device
    return WrittenRows(made.to(device), real.to(device))
