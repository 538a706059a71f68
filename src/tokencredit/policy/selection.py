"""Which of several responses to a prompt a policy learns from.

A reward model is more reliable on what it finds very good or very bad than in between. Selection
keeps the responses that it can be trusted on, and learns from these alone. Advantages are made
before, with all responses.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.names import named


@dataclass(frozen=True)
class Selection:
    """One way to choose among the responses to a prompt.

    Attributes:
        kept: from the number of responses, how many of them are scored, how many the settings want
            and a generator to the places that stay, in the order from best to worst.
        weights: from the same numbers to the weight of each place, where responses are drawn again.
        samples: responses to a prompt that it needs at least.
        text: what stays, in a line.
    """

    kept: Callable[[int, int, int, torch.Generator], list[int]]
    weights: Callable[[int, int, int], list[float]]
    samples: int
    text: str


def _best_weights(size: int, scored: int, count: int) -> list[float]:
    return [float(place < min(count, max(scored, 1))) for place in range(size)]


def _best_worst_weights(size: int, scored: int, count: int) -> list[float]:  # noqa: ARG001
    return [float(place in (0, max(scored, 1) - 1)) for place in range(size)]


def _best_random_weights(size: int, scored: int, count: int) -> list[float]:  # noqa: ARG001
    return [0.4 if place == 0 else 0.1 * (place < scored) for place in range(size)]


SELECTIONS: dict[str, Selection] = {
    "all": Selection(
        lambda size, *_: list(range(size)),
        lambda size, *_: [1.0] * size,
        1,
        "every response",
    ),
    "best": Selection(
        lambda _size, _scored, count, _rng: list(range(count)),
        _best_weights,
        2,
        "the best, or as many as `selection.count` says (best of n)",
    ),
    "best-random": Selection(
        lambda _size, scored, _count, rng: [
            0,
            int(torch.randint(1, max(scored, 2), (1,), generator=rng)),
        ],
        _best_random_weights,
        2,
        "the best and one of the others (PF-PPO BR, arXiv 2409.06957)",
    ),
    "best-worst": Selection(
        lambda _size, scored, _count, _rng: [0, max(scored, 2) - 1],
        _best_worst_weights,
        2,
        "the best and the worst (PF-PPO BW, arXiv 2409.06957)",
    ),
}
"""Rows by the names that `selection.keep` takes."""


def kept_responses(
    scores: Float[Tensor, "batch"],
    group_ids: Int[Tensor, "batch"],
    *,
    keep: str,
    count: int = 1,
    rng: torch.Generator,
) -> Int[Tensor, "kept"]:
    """Numbers of the responses that stay, as many of every group.

    Of two with the same score the first counts as better. What could not be scored comes after
    everything that was, and stays only where there is nothing else.

    Args:
        scores: in nats; NaN for what could not be scored.
        group_ids: responses with the same number answer the same prompt.
        keep: a name in `SELECTIONS`.
        count: for "best": how many.
        rng: for "best-random".

    Returns:
        Numbers of rows, from the first to the last.

    Raises:
        ConfigError: there is no such selection, or a group has too few responses for it.
        ShapeError: scores and groups differ in number.

    Source: Shen and Zhang 2024, arXiv 2409.06957. Their published filter does not run as it is;
    this follows the paper.

    >>> scores, groups = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0]), torch.tensor([0, 0, 0, 1, 1])
    >>> kept_responses(scores, groups, keep="best-worst", rng=torch.Generator())
    tensor([0, 1, 3, 4])
    """
    selection = named("selection.keep", keep, SELECTIONS)
    chosen: list[int] = []
    for rows, scored in ranked_groups(scores, group_ids):
        if len(rows) < max(selection.samples, count):
            raise ConfigError(
                f"a prompt has {len(rows)} responses and selection {keep!r} with count {count}; "
                f"expected at least {max(selection.samples, count)}"
            )
        chosen += [rows[place] for place in selection.kept(len(rows), scored, count, rng)]
    return torch.tensor(sorted(chosen), device=scores.device, dtype=torch.long)


def resampled_responses(
    scores: Float[Tensor, "batch"],
    group_ids: Int[Tensor, "batch"],
    *,
    keep: str,
    count: int = 1,
    rng: torch.Generator,
) -> Int[Tensor, "batch"]:
    """Numbers of responses, drawn again with replacement by the weights of a selection.

    Best and worst have weight 1 each, or the best 0.4 and every other 0.1: as many responses are
    learnt from as there were.

    Args:
        scores: as in `kept_responses`.
        group_ids: likewise.
        keep: likewise.
        count: likewise.
        rng: of the draws.

    Returns:
        Numbers of rows, from the first to the last, some of them several times.

    Raises:
        ConfigError: there is no such selection.
        ShapeError: scores and groups differ in number.

    Source: the replay buffer in the code of Shen and Zhang 2024, arXiv 2409.06957.

    >>> scores, groups = torch.tensor([1.0, 3.0]), torch.tensor([0, 0])
    >>> resampled_responses(scores, groups, keep="best", rng=torch.Generator())
    tensor([1, 1])
    """
    selection = named("selection.keep", keep, SELECTIONS)
    weights = torch.zeros(len(scores), dtype=torch.float64)
    for rows, scored in ranked_groups(scores, group_ids):
        of_rows = selection.weights(len(rows), scored, count)
        weights[rows] = torch.tensor(of_rows, dtype=torch.float64)
    drawn = torch.multinomial(weights, len(scores), replacement=True, generator=rng)
    return drawn.sort().values.to(scores.device)


def score_reliability(
    scores: Float[Tensor, "batch"], judged: Float[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """How much of the variance of a better judge's scores the scores explain: R² of a line.

    The published choice among selections goes by it, on what each of them keeps.

    Args:
        scores: of the reward model that is trained by.
        judged: of the true reward or another judge, of the same responses.

    Returns:
        Between 0 and 1; 0 where either does not vary.

    Source: Shen and Zhang 2024, arXiv 2409.06957: the coefficient of determination.

    >>> score_reliability(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0]))
    tensor(1.)
    """
    x, y = (one.double() - one.double().mean() for one in (scores, judged))
    spread = x.square().sum() * y.square().sum()
    found = (x * y).sum().square() / spread.clamp(min=1e-300)
    return torch.where(spread > 0, found, 0.0).float()


def ranked_groups(
    scores: Float[Tensor, "batch"], group_ids: Int[Tensor, "batch"]
) -> list[tuple[list[int], int]]:
    """Numbers of the rows of each group from best to worst, and how many of them are scored.

    Of two with the same score the first counts as better; those without a score come last.

    Args:
        scores: in nats; NaN for what could not be scored.
        group_ids: responses with the same number answer the same prompt.

    Raises:
        ShapeError: scores and groups differ in number.
    """
    if scores.shape != group_ids.shape:
        raise ShapeError(
            f"{len(scores)} scores and {len(group_ids)} numbers of groups; expected one for each"
        )
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(group_ids.tolist()):
        groups.setdefault(group, []).append(row)
    values = scores.tolist()
    ranked = []
    for rows in groups.values():
        known = [row for row in rows if values[row] == values[row]]
        best_first = sorted(known, key=lambda row: -values[row])
        ranked.append((best_first + [row for row in rows if row not in known], len(known)))
    return ranked
