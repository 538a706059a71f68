"""A preference pair as many: one pair of beginnings for each length, as PARGS trains on.

Nothing is copied until a pair of beginnings is asked for, so a data set expands into numbers and
not into texts: `prefix_lengths` says which lengths there are, `beginning` cuts one out.
"""

from collections.abc import Iterator, Sequence

from tokencredit.errors import ConfigError


def prefix_pairs(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    filler: int | None = None,
    start: int = 1,
    step: int = 1,
) -> Iterator[tuple[list[int], list[int]]]:
    """Beginnings of equal length of both answers, from short to whole.

    Args:
        chosen_ids: tokens of the preferred answer.
        rejected_ids: tokens of the other one.
        filler: the token that stands behind the end of the shorter answer, up to the length of the
            longer one; None lets it stay as it is, whole.
        start: length of the shortest beginnings, in tokens.
        step: tokens from one length to the next. Whole answers are always among the pairs.

    Yields:
        Two lists of tokens that differ. Equal beginnings are left out: they cost log 2 whatever the
        model says and have no gradient.

    Raises:
        ConfigError: `start` or `step` is below 1.

    Source: Rashid et al. 2024, arXiv 2406.07780, and its code: `filler` is the end of sequence;
    `start` is 1 on HH, 2 on TL;DR; `step` is 1. They keep equal beginnings, which changes the
    loss by a constant and a factor, and decode the tokens to text that is tokenized anew; here
    they stay the tokens that they are.

    >>> list(prefix_pairs([5, 6, 7], [5, 8], filler=0))
    [([5, 6], [5, 8]), ([5, 6, 7], [5, 8, 0])]
    """
    for length in prefix_lengths(chosen_ids, rejected_ids, filler=filler, start=start, step=step):
        yield (
            beginning(chosen_ids, length, filler=filler),
            beginning(rejected_ids, length, filler=filler),
        )


def prefix_lengths(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    filler: int | None = None,
    start: int = 1,
    step: int = 1,
) -> list[int]:
    """The lengths at which two answers have begun differently, the longer one's own as the last.

    Args:
        chosen_ids: tokens of the preferred answer.
        rejected_ids: tokens of the other one.
        filler: as in `prefix_pairs`.
        start: the least length, in tokens.
        step: between lengths.

    Returns:
        Lengths in tokens, rising; none where the answers are equal.

    Raises:
        ConfigError: `start` or `step` is below 1.

    >>> prefix_lengths([5, 6, 7, 9, 9, 9], [5, 8], start=2, step=3)
    [2, 5, 6]
    """
    for name, value in (("start", start), ("step", step)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1 token")
    longest = max(len(chosen_ids), len(rejected_ids))
    same = _tokens_in_common(chosen_ids, rejected_ids, filler)
    return [length for length in (*range(start, longest, step), longest) if length > same]


def beginning(ids: Sequence[int], length: int, *, filler: int | None = None) -> list[int]:
    """The first tokens, and behind the end of what is shorter the filler, or nothing.

    >>> beginning([5, 6], 4, filler=0), beginning([5, 6], 4)
    ([5, 6, 0, 0], [5, 6])
    """
    missing = max(0, length - len(ids))
    return [*ids[:length], *([] if filler is None else [filler] * missing)]


def _tokens_in_common(first: Sequence[int], second: Sequence[int], filler: int | None) -> int:
    """The longest length at which both, filled up, have the same beginning."""
    longest = max(len(first), len(second))
    filled = (beginning(ids, longest, filler=filler) for ids in (first, second))
    same = 0
    for one, other in zip(*filled, strict=False):
        if one != other:
            break
        same += 1
    return same
