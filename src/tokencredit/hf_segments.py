"""Sentences and clauses of generated ids: decoded, cut, and brought back to the tokens."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch
from tokencredit.hf_decoding import decoded_response
from tokencredit.masking import last_true_index
from tokencredit.sentences import text_segments


def response_text_segments(
    tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    kind: Literal["sentence", "clause"],
) -> Int[Tensor, "batch time"]:
    """Segment ids of a batch of responses, by the sentences or clauses of their text.

    Tokens inside a response that the policy did not choose belong to its text, but to no segment;
    special tokens that it chose, the end of sequence among them, belong to the segment before.

    Args:
        tokenizer: the policy's.
        batch: prompts and responses; prompts are decoded too, since a first space depends on them.
        kind: how finely to cut, as in `text_segments`.

    Returns:
        Segment ids, -1 outside `batch.response_mask`.

    Raises:
        ConfigError: `kind` is neither of the two.
    """
    segment_ids = torch.full_like(batch.response_ids, -1)
    for row, end in enumerate((last_true_index(batch.response_mask) + 1).tolist()):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
        decoded = decoded_response(tokenizer, prompt, batch.response_ids[row, :end].tolist())
        ids = text_segments(decoded.spans, decoded.response, kind=kind)
        counts = batch.response_mask[row, :end]
        # A segment that lies wholly outside the mask leaves no gap in the numbers.
        chosen = torch.unique_consecutive(ids.to(counts.device)[counts], return_inverse=True)[1]
        segment_ids[row, :end][counts] = chosen.to(segment_ids)
    return segment_ids
