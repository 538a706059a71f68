"""Carry token scores from one tokenization of a text to another, by character spans.

A reward model may cut the response into other tokens than the policy. What it says about its
tokens is handed to the policy's tokens that cover the same characters; nothing is lost or made.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError

Span = tuple[int, int]


def project_token_scores(
    token_scores: Float[Tensor, "source"] | Sequence[float],
    source_spans: Sequence[Span],
    target_spans: Sequence[Span],
    *,
    split: Literal["overlap", "last"] = "overlap",
) -> Float[Tensor, "target"]:
    """Scores of one list of tokens handed over to another list of the same text.

        r'_j = Σ_i r_i · |s_i ∩ s'_j| / Σ_k |s_i ∩ s'_k|

    Tokens of one list that share a span, such as the bytes of one character, are taken to hold
    equal parts of it, in order. A source token without characters (a special token), or whose
    characters no target token holds, pays the last target token that starts no later than it, or
    the first one if none does.

    Args:
        token_scores: of the source tokens, in nats.
        source_spans: character span of each source token, end exclusive, in the order of the text.
        target_spans: likewise for the target tokens.
        split: "overlap" shares a score by the number of common characters. "last" pays the whole
            of it to the token that holds the source token's last character, so that no target
            token is paid for characters that come after it: the form for prefix differences.

    Returns:
        Scores of the target tokens, whose sum is the sum of `token_scores`. Time and memory are
        linear in tokens.

    Raises:
        ShapeError: scores and source spans differ in number, a span ends before it starts, or
            there are source tokens but no target token.

    >>> project_token_scores([3.0, 1.0], [(0, 6), (6, 8)], [(0, 2), (2, 6), (6, 8)])
    tensor([1., 2., 1.])
    >>> project_token_scores([3.0, 1.0], [(0, 6), (6, 8)], [(0, 2), (2, 6), (6, 8)], split="last")
    tensor([0., 3., 1.])
    """
    scores = torch.as_tensor(token_scores, dtype=torch.float32)
    _check_spans(len(scores), source_spans, target_spans)
    if list(source_spans) == list(target_spans):
        return scores.clone()
    if len(scores) == 0:
        return scores.new_zeros(len(target_spans))
    source, target = _apart(source_spans), _apart(target_spans)
    pairs = _overlap_pairs if split == "overlap" else _last_pairs
    givers, takers, shares = pairs(source, target)
    unplaced = torch.ones(len(source), dtype=torch.bool)
    unplaced[givers] = False
    alone = unplaced.nonzero().flatten()
    givers = torch.cat([givers, alone])
    takers = torch.cat([takers, _nearest(source[alone], target)])
    shares = torch.cat([shares, shares.new_ones(len(alone))])
    # Double precision: the shares of a token sum to one only up to rounding.
    paid = torch.zeros(len(target), dtype=torch.float64)
    return paid.index_add(0, takers, scores.cpu().double()[givers] * shares).to(scores)


def spans_of_words(spans: Sequence[Span], text: str) -> list[Span]:
    """Spans without the spaces that they begin with; a token of spaces alone keeps its span.

    Many tokenizers join a word to the space before it. What such a token is paid is for the word:
    projected from these spans, none of it falls on a space that is a token of its own elsewhere.

    Args:
        spans: character spans in `text`.
        text: the text that they cut.

    >>> spans_of_words([(0, 3), (3, 8), (8, 9)], "not good ")
    [(0, 3), (4, 8), (8, 9)]
    """
    words = []
    for start, end in spans:
        word = text[start:end].lstrip()
        words.append((end - len(word), end) if word else (start, end))
    return words


def _check_spans(
    num_scores: int, source_spans: Sequence[Span], target_spans: Sequence[Span]
) -> None:
    if num_scores != len(source_spans):
        raise ShapeError(
            f"{num_scores} token scores for {len(source_spans)} spans; expected one span per token"
        )
    if source_spans and not target_spans:
        raise ShapeError(
            f"{len(source_spans)} tokens to project onto none; expected at least one target token"
        )
    for start, end in (*source_spans, *target_spans):
        if end < start:
            raise ShapeError(f"span ({start}, {end}) ends before it starts; expected start <= end")


def _apart(spans: Sequence[Span]) -> Float[Tensor, "tokens 2"]:
    """Spans as numbers; neighbours that share one hold equal parts of it, in order."""
    parts: list[tuple[float, float]] = []
    first = 0
    while first < len(spans):
        start, end = spans[first]
        count = 1
        while first + count < len(spans) and spans[first + count] == spans[first]:
            count += 1
        cuts = [start + (end - start) * part / count for part in range(count)] + [float(end)]
        parts.extend(itertools.pairwise(cuts))
        first += count
    return torch.tensor(parts, dtype=torch.float64).reshape(-1, 2)


Pairs = tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Float[Tensor, "pairs"]]
"""A source token, a target token, and the share of the first one's score that the second gets."""


def _overlap_pairs(source: Float[Tensor, "source 2"], target: Float[Tensor, "target 2"]) -> Pairs:
    """Pairs with common characters, and which part of those of the source token they are.

    Time and memory are linear in tokens, since few target tokens lie between the first one that
    reaches past the start of a source token and the last one that begins before its end.
    """
    order = target[:, 0].argsort(stable=True)
    begun = target[order]
    first = torch.searchsorted(begun[:, 1].cummax(0).values, source[:, 0].contiguous(), right=True)
    after = torch.searchsorted(begun[:, 0].contiguous(), source[:, 1].contiguous())
    counts = (after - first).clamp(min=0)
    givers = torch.arange(len(source)).repeat_interleave(counts)
    within = torch.arange(len(givers)) - (counts.cumsum(0) - counts)[givers]
    takers = order[first[givers] + within]
    ends = torch.minimum(source[givers, 1], target[takers, 1])
    common = ends - torch.maximum(source[givers, 0], target[takers, 0])
    there = common > 0
    givers, takers, common = givers[there], takers[there], common[there]
    totals = common.new_zeros(len(source)).index_add(0, givers, common)
    return givers, takers, common / totals[givers]


def _last_pairs(source: Float[Tensor, "source 2"], target: Float[Tensor, "target 2"]) -> Pairs:
    """Each source token with the first target token that reaches its end, if one does."""
    ends = target[:, 1].masked_fill(target[:, 1] <= target[:, 0], -torch.inf).cummax(0).values
    # The parts of a shared character are fractions, hence the slack, far below one part.
    reaching = torch.searchsorted(ends, source[:, 1] - 1e-6)
    givers = ((reaching < len(target)) & (source[:, 1] > source[:, 0])).nonzero().flatten()
    return givers, reaching[givers], torch.ones(len(givers), dtype=torch.float64)


def _nearest(
    source: Float[Tensor, "source 2"], target: Float[Tensor, "target 2"]
) -> Int[Tensor, "source"]:
    """The last target token that starts no later than each source token, or the first one."""
    starts = target[:, 0].flip(0).cummin(0).values.flip(0)  # of each token and those after it
    return (torch.searchsorted(starts, source[:, 0].contiguous(), right=True) - 1).clamp(min=0)
