"""Responses cut into segments, by settings."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError
from tokencredit.models.hf_ends import turn_end_ids
from tokencredit.scorers.functions import named_function
from tokencredit.text.hf_decoding import response_text_segments
from tokencredit.text.segments import (
    SegmentSettings,
    closed_when_shown,
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
)
from tokencredit.text.sentences import SpanFunction

_WITHOUT_REFERENCE = ("ngram", "random-ngram", "sentence", "clause", "phrase", "spans")

Asked = Callable[[], Float[Tensor, "batch time"]]


def response_segments(
    settings: SegmentSettings,
    tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    ref_logprobs: Asked | None = None,
    ref_entropies: Asked | None = None,
    turn_ends: Sequence[int] | None = None,
) -> Int[Tensor, "batch time"] | None:
    """Segment ids of responses; None where the settings cut none.

    Args:
        settings: the kind of segments.
        tokenizer: of the ids in `batch`.
        batch: the responses.
        ref_logprobs: gives the log-prob of each response token under a reference, for
            "perplexity".
        ref_entropies: gives the entropy of the reference where each response token is drawn, for
            "entropy".
        turn_ends: ids that end a response, and begin no segment; None for those that the tokenizer
            declares.

    Raises:
        ConfigError: the kind needs a reference and there is none, or the function of "spans" is
            not there.
        DataError: that function finds something else than spans of the text, in order.
    """
    mask = batch.response_mask
    match settings.kind:
        case "none":
            return None
        case "ngram":
            return ngram_segments(mask, n=settings.length)
        case "random-ngram":
            return random_ngram_segments(mask, generator=torch.default_generator)
        case "sentence" | "clause" | "phrase" | "spans":
            return response_text_segments(
                tokenizer,
                batch,
                kind=settings.kind,
                length=settings.length,
                function=segment_function(settings),
                close=settings.close,
            )
        case "perplexity":
            ids = perplexity_segments(_asked(ref_logprobs, settings), mask)
            return closed_when_shown(ids) if settings.close == "when-shown" else ids
        case "entropy":
            entropies = _asked(ref_entropies, settings)
            if settings.close == "when-shown":  # no token shows that the next one ends the sequence
                return entropy_segments(entropies, mask, threshold=settings.entropy)
            ends = turn_end_ids(tokenizer) if turn_ends is None else turn_ends
            return entropy_segments(
                entropies,
                mask,
                threshold=settings.entropy,
                is_eos=torch.isin(batch.response_ids, batch.response_ids.new_tensor(list(ends))),
            )


def segment_function(settings: SegmentSettings) -> SpanFunction | None:
    """What finds the units of "spans" in a text; None for other kinds.

    Raises:
        ConfigError: there is no such function.
    """
    return None if settings.function is None else named_function(settings.function)


def _asked(ask: Asked | None, settings: SegmentSettings) -> Float[Tensor, "batch time"]:
    if ask is None:
        raise ConfigError(
            f"segments.kind is {settings.kind!r}, and there is no reference that could say where "
            f"it is unsure; expected one of {', '.join(map(repr, _WITHOUT_REFERENCE))} here"
        )
    return ask()
