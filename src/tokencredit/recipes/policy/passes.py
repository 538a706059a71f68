"""Which responses go through a model together: those of like length, or to one prompt.

A response gets the same numbers in any company, up to the last digits. With one of another length
it is padded, and padding costs as much as any other token. A prompt that several of them answer is
read once in a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tokencredit.batch import ResponseBatch, rows_of_like_length
from tokencredit.models.hf_shared_beginnings import (
    LEAST,
    distinct_rows,
    saved_by_reading_once,
    shared_beginning,
)

# Shorter passes of rows of one length can take more time with gradients, and hardly less without
# (`benchmarks/passes.py --gradients`): this share of all tokens must be saved.
_WORTH_SHORTER_PASSES = 0.1


@dataclass(frozen=True)
class OnePass:
    """Some rows of a batch, without the columns that are padding in all of them.

    Attributes:
        rows: their numbers.
        batch: the rows.
        support: what could be drawn in their places; None for all.
    """

    rows: Int[Tensor, "rows"]
    batch: ResponseBatch
    support: Bool[Tensor, "*#rows vocab"] | None


def support_of_rows(
    support: Bool[Tensor, "*#batch vocab"] | None, rows: slice | Tensor
) -> Bool[Tensor, "*#rows vocab"] | None:
    """What could be drawn in some rows; without top-k and top-p it is the same in all."""
    return support[rows] if support is not None and support.ndim == 3 else support


def passes_of(
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    *,
    size: int | None = None,
    tokens: int | None = None,
    beginnings_once: bool = False,
) -> list[OnePass]:
    """The rows of a batch in passes of like length, or of whole groups that answer one prompt.

    Args:
        batch: the responses.
        support: as of `OnePass`, for the batch.
        size: rows of a pass at most; None sets no limit.
        tokens: of a pass at most, padding included, where that saves a tenth of all tokens. None
            sets no limit.
        beginnings_once: whether what rows of a pass begin with is read once.
    """
    lengths = batch.attention_mask.sum(-1)
    together = 0
    if beginnings_once and tokens is not None:
        together = shared_beginning(
            batch.input_ids, batch.attention_mask, kept=batch.response_ids.shape[1] + 1
        )
        together = together if together >= LEAST else 0
    own = lengths - together
    groups = rows_of_like_length(own, size)
    if tokens is not None:
        shorter = rows_of_like_length(own, size, tokens=tokens)
        most = (1 - _WORTH_SHORTER_PASSES) * _cost(own, groups, together)
        if _cost(own, shorter, together) <= most:
            groups = shorter
    if beginnings_once:
        by_prompt, cost = _rows_by_prompt(batch, size, tokens)
        if cost <= (1 - _WORTH_SHORTER_PASSES) * _cost(own, groups, together):
            groups = by_prompt
    if len(groups) == 1:
        groups = [groups[0].sort().values]  # in their own order
    return [_one_pass(batch, support, rows) for rows in groups]


def _cost(own: Tensor, groups: Sequence[Tensor], together: int) -> int:
    """Tokens of all passes, padding included."""
    return sum(len(rows) * int(own[rows].max()) + together for rows in groups)


def _rows_by_prompt(
    batch: ResponseBatch, size: int | None, tokens: int | None
) -> tuple[list[Int[Tensor, "rows"]], int]:
    """Passes of whole groups that answer one prompt, and the tokens that they read.

    A group with more tokens than a pass shall have is a pass of its own, one with more than `size`
    rows several.
    """
    owners = distinct_rows(batch.prompt_ids, batch.prompt_mask.long())
    members: list[list[int]] = [[] for _ in range(max(owners) + 1)]
    for row, owner in enumerate(owners):
        members[owner].append(row)
    prompts, responses = batch.prompt_mask.sum(-1).tolist(), batch.response_mask.sum(-1).tolist()

    def cost(rows: list[int]) -> int:
        # The last token of a prompt predicts the first of a response and is read in every row.
        width, rest = max(prompts[row] for row in rows) - 1, 1 + max(responses[row] for row in rows)
        mine, on_cpu = [owners[row] for row in rows], batch.prompt_ids.device.type == "cpu"
        saved = saved_by_reading_once(mine, width, rest, on_cpu=on_cpu)
        return len(rows) * (width + rest) - saved

    passes: list[list[int]] = []
    for group in sorted(members, key=lambda rows: prompts[rows[0]]):
        for first in range(0, len(group), size or len(group)):
            some = group[first : first + (size or len(group))]
            last = passes[-1] + some if passes else []
            few = 0 < len(last) <= (size or len(last))
            if few and (tokens is None or cost(last) <= tokens):
                passes[-1] = last
            else:
                passes.append(some)
    return [torch.tensor(rows) for rows in passes], sum(map(cost, passes))


def _one_pass(
    batch: ResponseBatch, support: Bool[Tensor, "*#batch vocab"] | None, rows: Int[Tensor, "rows"]
) -> OnePass:
    some = batch[rows]
    first = _places(some.prompt_mask)[:1] or [some.prompt_ids.shape[1] - 1]
    last = _places(some.response_mask)[-1:] or [0]
    time = last[0] + 1
    part = ResponseBatch(
        some.prompt_ids[:, first[0] :],
        some.prompt_mask[:, first[0] :],
        some.response_ids[:, :time],
        some.response_mask[:, :time],
    )
    allowed = support_of_rows(support, rows)
    if allowed is not None and allowed.ndim > 1 and allowed.shape[-2] > 1:
        allowed = allowed[..., :time, :]
    return OnePass(rows, part, allowed)


def _places(mask: Bool[Tensor, "rows columns"]) -> list[int]:
    """Columns that are not padding in all rows."""
    found: list[int] = mask.any(0).nonzero().flatten().tolist()
    return found


def put_together(
    found: Sequence[Tensor], passes: Sequence[OnePass], time: int
) -> Float[Tensor, "batch *columns"]:
    """What each pass gave, in the order of the batch, with zeros after shorter rows.

    Args:
        found: a number per row of each pass, or one per column.
        passes: where it was found.
        time: columns of the batch.
    """
    whole = [one if one.ndim == 1 else pad(one, (0, time - one.shape[1])) for one in found]
    if len(whole) == 1:
        return whole[0]
    order = torch.cat([one.rows for one in passes])
    return torch.cat(whole)[order.argsort()]
