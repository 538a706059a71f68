"""What a reward model is shown in training: judged rows, and where their scores are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.hf_decoding import decoded_response
from tokencredit.preference.pairs import LabelledResponse, PreferencePair, RatedResponse
from tokencredit.recipes.encoded_texts import (
    EncodedText,
    Truncation,
    encoded_texts,
    right_padded,
)
from tokencredit.recipes.reward_model_config import TrainRewardModelConfig
from tokencredit.segments import ngram_segments, segment_ends
from tokencredit.sentences import text_segments

Judgement = PreferencePair | LabelledResponse | RatedResponse
# For each token of a row: whether the score there is read.
ReadAt = Callable[[EncodedText], list[bool]]


@dataclass(frozen=True)
class Judged:
    """What one row of the data says.

    Attributes:
        responses: the chosen and the rejected one, or the one with a label or rating.
        target: the margin in nats, the label, or the rating.
        strength: the weight of a preference.
    """

    responses: tuple[EncodedText, ...]
    target: float
    strength: float = 1.0

    def __len__(self) -> int:
        return max(map(len, self.responses))


def judged_rows(
    config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase, data: Sequence[Judgement]
) -> list[Judged]:
    """Rows as token ids, with their margins, labels or ratings."""
    default: Truncation = "prompt-start" if config.objective == "bradley-terry" else "response-end"
    encoded = partial(
        encoded_texts,
        tokenizer,
        [row.prompt for row in data],
        append_eos=config.append_eos,
        max_length=config.max_length,
        truncation=config.truncation or default,
    )
    pairs = [row for row in data if isinstance(row, PreferencePair)]
    if pairs:
        chosen = encoded([pair.chosen for pair in pairs])
        rejected = encoded([pair.rejected for pair in pairs])
        return [
            Judged(both, pair.margin, pair.strength)
            for both, pair in zip(zip(chosen, rejected, strict=True), pairs, strict=True)
        ]
    alone = [row for row in data if not isinstance(row, PreferencePair)]
    rows = encoded([row.response for row in alone])
    return [Judged((row,), _target(one)) for row, one in zip(rows, alone, strict=True)]


def _target(one: LabelledResponse | RatedResponse) -> float:
    return one.rating if isinstance(one, RatedResponse) else float(one.label)


def read_last_token(text: EncodedText) -> list[bool]:
    """Only at the end of the row, where the whole is scored."""
    return [False] * (len(text) - 1) + [True]


def read_every_token(text: EncodedText) -> list[bool]:
    """At each token of the response, and at the end of the row."""
    return [*text.response_mask[:-1], True]


def read_segment_ends(config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase) -> ReadAt:
    """At the last token of each segment; the last segment ends where the row does."""

    def read_at(text: EncodedText) -> list[bool]:
        mask = torch.tensor([text.response_mask])
        if config.segments == "ngram":
            segment_ids = ngram_segments(mask, n=config.segment_length)
        else:
            ids = text.input_ids
            decoded = decoded_response(
                tokenizer, ids[: text.start], [ids[i] for i in mask[0].nonzero().flatten().tolist()]
            )
            segment_ids = torch.full(mask.shape, -1)
            segment_ids[mask] = text_segments(decoded.spans, decoded.response, kind=config.segments)
        ends = segment_ends(segment_ids)[0]
        ends[ends.nonzero()[-1]] = False
        return [*ends[:-1].tolist(), True]

    return read_at


def reading(config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase) -> ReadAt:
    """Where scores are read in training."""
    if config.positions == "segments":
        return read_segment_ends(config, tokenizer)
    return read_last_token if config.positions in ("last", "pairs") else read_every_token


def reward_batch(judged: Sequence[Judged], *, pad_id: int, read_at: ReadAt) -> dict[str, Tensor]:
    """Rows of several judgements padded on the right: all first responses, then all second ones.

    Returns:
        `input_ids`, `attention_mask`, `targets`, `strengths`, and `counted`: True where scores are
        read.
    """
    rows = list(chain.from_iterable(zip(*(one.responses for one in judged), strict=True)))
    ids, attention_mask, counted = scored_rows(rows, pad_id=pad_id, read_at=read_at)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "counted": counted,
        "targets": torch.tensor([one.target for one in judged]),
        "strengths": torch.tensor([one.strength for one in judged]),
    }


def scored_rows(
    rows: Sequence[EncodedText], *, pad_id: int, read_at: ReadAt
) -> tuple[
    Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"], Bool[Tensor, "batch sequence"]
]:
    """Token ids, attention mask, and where scores are read."""
    ids, attention_mask, _ = right_padded(rows, pad_id=pad_id)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        counted[index, : len(row)] = torch.tensor(read_at(row))
    return ids, attention_mask, counted
