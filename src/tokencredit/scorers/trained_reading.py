"""Where the score of a response is read: at its last token, or at the ends of its segments."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from tokencredit.errors import ConfigError
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_token_rows import EncodedText, ReadAt
from tokencredit.text.segments import ngram_segments, segment_ends
from tokencredit.text.sentences import text_segments


@dataclass(frozen=True)
class SegmentEndSettings:
    """Where segments end, with `positions: segments`."""

    kind: Literal["ngram", "sentence", "clause"] = field(
        default="ngram", metadata={"was": "segments"}
    )
    """`ngram` of `length` tokens, `sentence` or `clause` of the text."""
    length: int = field(default=5, metadata={"was": "segment_length"})
    """Of an `ngram`, in tokens."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length is {self.length}; expected segments of at least 1 token")


def segment_end_reading(segments: SegmentEndSettings, tokenizer: PreTrainedTokenizerBase) -> ReadAt:
    """At the last token of each segment; the last segment ends where the row does."""

    def read_at(text: EncodedText) -> list[bool]:
        mask = torch.tensor([text.response_mask])
        if segments.kind == "ngram":
            segment_ids = ngram_segments(mask, n=segments.length)
        else:
            ids = text.input_ids
            decoded = decoded_response(
                tokenizer, ids[: text.start], [ids[i] for i in mask[0].nonzero().flatten().tolist()]
            )
            segment_ids = torch.full(mask.shape, -1)
            segment_ids[mask] = text_segments(decoded.spans, decoded.response, kind=segments.kind)
        ends = segment_ends(segment_ids)[0]
        ends[ends.nonzero()[-1]] = False
        return [*ends[:-1].tolist(), True]

    return read_at
