"""Searches watched while they run: what they draw, and from which logits."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from tiny_guides import next_logits_of, prompts
from tiny_models import PAD_ID

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.search.hf_branching_texts import BranchingTexts
from tokencredit.sampling import Sampling


def sampling(max_new_tokens: int = 6, *, eos_token_ids=(), **options) -> dict[str, Any]:
    """Arguments of a search that say how tokens are drawn and where responses end."""
    drawn = Sampling(max_new_tokens=max_new_tokens, **options)
    return {"sampling": drawn, "eos_token_ids": eos_token_ids, "pad_token_id": PAD_ID}


def prompt_lists() -> list[list[int]]:
    ids, mask = prompts()
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def wave(text: Sequence[int]) -> float:
    """A score that every token and its place change."""
    return sum(math.sin(3.0 * token + place) for place, token in enumerate(text))


def other_wave(text: Sequence[int]) -> float:
    return sum(math.cos(2.0 * token - place) for place, token in enumerate(text))


def scored_by(function):
    """A function of token lists as a scorer of batches.

    What it was asked stands in `asked`, and in `numbers` which prompt it was told each time, beside
    the prompt that was there.
    """

    def score(batch: ResponseBatch, prompts: torch.Tensor) -> torch.Tensor:
        real = batch.attention_mask.bool()
        own = zip(batch.prompt_ids, batch.prompt_mask, strict=True)
        told = [ids[mask].tolist() for ids, mask in own]
        score.numbers += list(zip(prompts.tolist(), told, strict=True))
        texts = [row[mask].tolist() for row, mask in zip(batch.input_ids, real, strict=True)]
        score.asked += texts
        return torch.tensor([function(text) for text in texts], dtype=torch.float32)

    score.asked = []
    score.numbers = []
    return score


@contextmanager
def watched(model=None) -> Iterator[list[list[int]]]:
    """The tokens of every draw; with a model, its logits are compared with a fresh forward pass."""
    draws: list[list[int]] = []
    plain, fed = BranchingTexts._draw, BranchingTexts.next_logits
    fresh = None if model is None else next_logits_of(model)

    def next_logits(self, writing):
        logits = fed(self, writing)
        for row in writing.nonzero().flatten().tolist() if fresh else ():
            expected = torch.tensor(fresh(self.ids[row][self.mask[row]].tolist()))
            allowed = logits[row] > -math.inf
            torch.testing.assert_close(
                logits[row][allowed], expected[allowed], rtol=1e-4, atol=1e-4
            )
        return logits

    def drawn(self, logits):
        tokens = plain(self, logits)
        draws.append(tokens.tolist())
        return tokens

    with (
        patch.object(BranchingTexts, "_draw", drawn),
        patch.object(BranchingTexts, "next_logits", next_logits),
    ):
        yield draws


def response_lists(batch: ResponseBatch) -> list[list[int]]:
    return [
        ids[mask].tolist()
        for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)
    ]
