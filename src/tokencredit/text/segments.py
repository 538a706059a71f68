"""Where a response is cut into segments: every n tokens, or at surprising ones.

Segments are given by `segment_ids`: on the tokens that count 0, 0, 1, 1, 1, 2, ... in the order of
the row, everywhere else -1. Tokens outside the mask are skipped as if they were not there, so a
segment may go on after one. `sentences` cuts by what the text says, `pooling` brings token scores
to segments and back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, DataError, NumericError, ShapeError

SegmentKind = Literal[
    "none",
    "ngram",
    "random-ngram",
    "sentence",
    "clause",
    "phrase",
    "spans",
    "entropy",
    "perplexity",
]

SHOWN_LATER: tuple[SegmentKind, ...] = (
    "sentence",
    "clause",
    "phrase",
    "spans",
    "entropy",
    "perplexity",
)
"""Kinds whose segments may end where a later token alone shows it, unless closed when shown."""


@dataclass(frozen=True)
class SegmentSettings:
    """How responses are cut into segments, and what segments are for."""

    kind: SegmentKind = field(default="none", metadata={"was": "segments"})
    """`ngram`: every `length` tokens; `random-ngram`: 1 to 10 tokens; `sentence`, `clause` and
    `phrase`: by the text; `spans`: those that `function` finds; `entropy`: before tokens where the
    entropy of the reference exceeds `entropy`; `perplexity`: where the reference is more surprised
    than before; `none`: no segments."""
    length: int = field(default=5, metadata={"was": "segment_length"})
    """For `ngram`: its tokens; for `phrase`: the most words."""
    entropy: float = field(default=2.0, metadata={"was": "segment_entropy"})
    """Entropy above which a token begins a segment, in nats."""
    use: Literal["pay-at-end", "macro-actions"] = field(
        default="pay-at-end", metadata={"was": "segment_use"}
    )
    """`pay-at-end` pays the sum of a segment's token scores at its last token; `macro-actions`
    leaves them and estimates one advantage per segment."""
    close: Literal["at-end", "when-shown"] = "at-end"
    """`at-end` ends a segment at its last token. That it is the last one may show only later, where
    the text, its `perplexity` or an end of sequence decides. `when-shown` ends it at the token that
    shows its end, so that no token is paid for what comes after it."""
    function: str | None = None
    """For `spans`: `module:function`, a Python function from the text of a response to a list of
    (start, end) in characters, in the order of the text."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length is {self.length}; expected segments of at least 1 token")
        if self.use == "macro-actions" and self.kind == "none":
            raise ConfigError("use is 'macro-actions' and kind 'none'; expected a kind of segments")
        if (self.kind == "spans") != (self.function is not None):
            expected = "module:function for it" if self.function is None else "kind 'spans' with it"
            raise ConfigError(
                f"kind is {self.kind!r} and function {self.function!r}; expected {expected}"
            )


def ngram_segments(
    response_mask: Bool[Tensor, "batch time"], *, n: int
) -> Int[Tensor, "batch time"]:
    """Segments of n tokens each, the last one of what is left.

    Args:
        response_mask: True on response tokens.
        n: tokens per segment; 1 makes every token a segment of its own.

    Returns:
        Segment ids, -1 outside the mask.

    Raises:
        ConfigError: `n` is not positive.

    Source: Chai et al. 2024, arXiv 2410.02743, fixed n-gram termination, n = 5 in its script. Its
    code always makes the last token a segment of its own, lest its mean over a segment divide the
    reward, and leaves an empty segment of value 0 before it where n divides the rest, so that
    n = 1 is not quite PPO; here neither is so.

    >>> ngram_segments(torch.tensor([[True, True, True, False]]), n=2)
    tensor([[ 0,  0,  1, -1]])
    """
    if n < 1:
        raise ConfigError(f"n is {n}; expected at least one token per segment")
    return (_places(response_mask) // n).masked_fill(~response_mask, -1)


def random_ngram_segments(
    response_mask: Bool[Tensor, "batch time"],
    *,
    lengths: Sequence[int] = (1, 2, 3, 5, 10),
    repeats: int = 1,
    generator: torch.Generator,
) -> Int[Tensor, "batch time"]:
    """Segments whose lengths are drawn without replacement, what is left being one more segment.

    Each row shuffles `repeats` copies of `lengths` and uses them up in that order. What it draws
    does not depend on its padding.

    Args:
        response_mask: True on response tokens.
        lengths: tokens per segment to draw from.
        repeats: how often each length may be drawn.
        generator: of the random numbers.

    Returns:
        Segment ids, -1 outside the mask.

    Raises:
        ConfigError: there is no length, or one of them or `repeats` is not positive.

    Source: Chai et al. 2024, arXiv 2410.02743, randomised n-gram termination. Drawn as in its code:
    one shuffle of `repeats` times {1, 2, 3, 5, 10} per response, walked once, the rest one long
    segment; `repeats` has no default there.

    >>> mask = torch.ones(1, 6, dtype=torch.bool)
    >>> random_ngram_segments(mask, lengths=[2], generator=torch.Generator().manual_seed(0))
    tensor([[0, 0, 1, 1, 1, 1]])
    """
    if not lengths or min(*lengths, repeats) < 1:
        raise ConfigError(
            f"lengths are {tuple(lengths)} and repeats {repeats}; expected positive numbers"
        )
    pool = torch.tensor(lengths, device=generator.device).repeat(repeats)
    keys = torch.rand(len(response_mask), len(pool), generator=generator, device=generator.device)
    ends = pool[keys.argsort(-1)].cumsum(-1).to(response_mask.device)
    ids = torch.searchsorted(ends, _places(response_mask), right=True)
    return ids.masked_fill(~response_mask, -1)


def perplexity_segments(
    ref_logprobs: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """Runs of tokens that surprise the reference model no more than the one before.

        a segment begins at t where ppl_t > ppl_{t−1},   ppl_t = 1 / π_ref(y_t)

    Args:
        ref_logprobs: log-probs of the response tokens under the reference, in nats.
        response_mask: True on response tokens.

    Returns:
        Segment ids, -1 outside the mask.

    Raises:
        ShapeError: log-probs and mask differ in shape.
        NumericError: a log-prob inside the mask is NaN.

    Where a segment ends is known from the token after it; see `closed_when_shown`.

    Source: Chai et al. 2024, arXiv 2410.02743, perplexity-based termination. Its code begins the
    segment one token earlier, at the token before the surprising one, and makes the last token a
    segment of its own; here it begins where the perplexity has risen, as the method is described.

    >>> ref_logprobs = torch.tensor([[-3.0, -1.0, -1.0, -2.0, -0.5]])
    >>> perplexity_segments(ref_logprobs, torch.ones(1, 5, dtype=torch.bool))
    tensor([[0, 0, 0, 1, 1]])
    """
    _require_numbers("ref_logprobs", ref_logprobs, response_mask)
    columns = torch.arange(response_mask.shape[-1], device=response_mask.device)
    last = torch.where(response_mask, columns, 0).cummax(-1).values
    before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=-1)
    return _numbered(ref_logprobs < ref_logprobs.gather(-1, before), response_mask)


def entropy_segments(
    entropies: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    threshold: float,
    is_eos: Bool[Tensor, "batch time"] | None = None,
) -> Int[Tensor, "batch time"]:
    """Segments that begin where the reference model was unsure how to go on.

        a segment begins at t > 1 where H(π_ref(· | x, y_{<t})) > c

    Said of the token before it, as the paper does: a segment ends at token t - 1 if the entropy
    after that token exceeds c.

    Args:
        entropies: of the reference model's distribution that response token t was drawn from
            (`token_entropies` of the logits that predict it), in nats.
        response_mask: True on response tokens.
        threshold: c; 0 makes every token a segment, infinity the whole response one.
        is_eos: True on tokens that end the sequence: they begin no segment but belong to that of
            the token before. None if there are none. With it a segment may end where the next token
            alone shows it: one before the end of sequence goes on, one before a word does not.

    Returns:
        Segment ids, -1 outside the mask.

    Raises:
        ShapeError: entropies, mask and `is_eos` differ in shape.
        NumericError: an entropy inside the mask is NaN.

    Source: Yin et al. 2025, arXiv 2501.02790, entropy-based segmentation, c = 1.75 for Phi-3-mini
    and 2.0 for Llama-3 8B. Its code ends the last segment at the token before the last one,
    whether that is an end of sequence or not, and pays the last token nothing; for that, leave
    it out of the mask.

    >>> entropies = torch.tensor([[9.0, 0.1, 2.5, 0.3, 3.0]])
    >>> is_eos = torch.tensor([[False, False, False, False, True]])
    >>> mask = torch.ones(1, 5, dtype=torch.bool)
    >>> entropy_segments(entropies, mask, threshold=2.0, is_eos=is_eos)
    tensor([[0, 0, 1, 1, 1]])
    """
    _require_numbers("entropies", entropies, response_mask)
    starts = entropies > threshold
    if is_eos is not None:
        _require_shape("is_eos", is_eos, response_mask)
        starts = starts & ~is_eos
    return _numbered(starts, response_mask)


def closed_when_shown(segment_ids: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Segments with the first token of the next one, which shows that they have ended.

    For segments that begin where their own first token says so, as those of `perplexity_segments`:
    whoever pays a segment at its end then pays nothing for what comes after it, and whether a token
    begins a macro action depends on the tokens before it alone. A segment that would begin with the
    last token of a row is none.

    Args:
        segment_ids: as the other functions here make them.

    Returns:
        Segment ids, -1 outside the segments.

    >>> closed_when_shown(torch.tensor([[0, 0, 1, 1, 2, -1]]))
    tensor([[ 0,  0,  0,  1,  1, -1]])
    """
    inside = segment_ids >= 0
    reached = segment_ids.cummax(-1).values
    before = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], dim=-1)
    return before.clamp(min=0).masked_fill(~inside, -1)


def segment_ends(segment_ids: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
    """True on the last token of each segment.

    >>> segment_ends(torch.tensor([[0, 0, -1, 1]]))
    tensor([[False,  True, False,  True]])
    """
    inside = segment_ids >= 0
    none_left = torch.iinfo(segment_ids.dtype).max
    ids = torch.where(inside, segment_ids, none_left)
    from_here_on = ids.flip(-1).cummin(-1).values.flip(-1)
    later = torch.cat([from_here_on[:, 1:], torch.full_like(ids[:, :1], none_left)], dim=-1)
    return inside & (later != segment_ids)


def segment_lengths(segment_ids: Int[Tensor, "batch time"]) -> Int[Tensor, "batch segments"]:
    """Number of tokens of each segment, 0 after the last segment of a row.

    There are as many columns as the row with the most segments has, and at least one.

    >>> segment_lengths(torch.tensor([[0, 0, 1], [0, -1, -1]]))
    tensor([[2, 1],
            [1, 0]])
    """
    inside = segment_ids >= 0
    width = max(1, int(segment_ids.max()) + 1) if segment_ids.numel() else 1
    lengths = torch.zeros(len(segment_ids), width, dtype=torch.long, device=segment_ids.device)
    return lengths.scatter_add(-1, segment_ids.long().clamp(min=0), inside.long())


def require_tiling(
    segment_ids: Int[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> None:
    """Raise unless the segments cut each response into runs that are numbered from 0.

    Raises:
        ShapeError: ids and mask differ in shape.
        DataError: a response token has no segment, another token has one, or the ids of a row are
            not 0, ..., 0, 1, ..., 1, 2, ... on its response tokens.

    >>> require_tiling(torch.tensor([[0, 1, -1]]), torch.tensor([[True, True, False]]))
    """
    _require_shape("segment_ids", segment_ids, response_mask)
    astray = ((segment_ids >= 0) != response_mask).any(-1)
    if bool(astray.any()):
        raise DataError(
            f"segment_ids of row {int(astray.long().argmax())} and response_mask differ in which "
            "tokens count; expected an id of 0 or more on every response token and -1 elsewhere"
        )
    reached = segment_ids.clamp(min=-1).cummax(-1).values
    before = torch.cat([torch.full_like(reached[:, :1], -1), reached[:, :-1]], dim=-1)
    steps = segment_ids - before
    allowed = (steps == 1) | ((steps == 0) & (before >= 0))
    broken = (response_mask & ~allowed).any(-1)
    if bool(broken.any()):
        row = int(broken.long().argmax())
        raise DataError(
            f"segment_ids of row {row} are {segment_ids[row][response_mask[row]].tolist()} on its "
            "response tokens; expected 0 first and then each id equal to the one before or one more"
        )


def _places(mask: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Which of the row's tokens that count each one is, from 0."""
    return mask.cumsum(-1) - 1


def _numbered(
    starts: Bool[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """Ids of the segments that begin at `starts` and at the first token that counts."""
    begins = mask & (starts | (_places(mask) == 0))
    return _places(begins).masked_fill(~mask, -1)


def _require_shape(name: str, tensor: Tensor, mask: Tensor) -> None:
    if tensor.shape != mask.shape:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)} and response_mask {tuple(mask.shape)}; "
            "expected one entry per response token"
        )


def _require_numbers(name: str, values: Tensor, mask: Tensor) -> None:
    _require_shape(name, values, mask)
    if bool((values.isnan() & mask).any()):
        raise NumericError(f"{name} holds NaN inside response_mask; expected numbers")
