"""Which of several responses to a prompt are preferred to which, and how sure that is."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError
from tokencredit.names import named
from tokencredit.policy.selection import ranked_groups

Places = list[tuple[int, int]]
"""Places of a better and a worse response among those to a prompt, 0 for the best."""

PAIRINGS: dict[str, Callable[[int, torch.Generator], Places]] = {
    "best-worst": lambda size, _rng: [(0, size - 1)],
    "best-random": lambda size, rng: [(0, int(torch.randint(1, size, (1,), generator=rng)))],
    "best-second": lambda _size, _rng: [(0, 1)],
    "all-pairs": lambda size, _rng: [(a, b) for a in range(size) for b in range(a + 1, size)],
}
"""From the number of responses to a prompt, and a generator, to the pairs that are learnt from."""

Agreement = Literal["kendall", "spearman", "top-order"]


def preferred_pairs(
    scores: Float[Tensor, "batch"],
    group_ids: Int[Tensor, "batch"],
    *,
    pairing: str,
    least_gap: float = 0.0,
    rng: torch.Generator,
) -> Int[Tensor, "pairs 2"]:
    """Numbers of a better and a worse response to the same prompt, by their scores.

    Pairs with equal scores say nothing and are left out, and so are those whose scores are closer
    than `least_gap`.

    Args:
        scores: in nats; NaN for what could not be scored, which is in no pair.
        group_ids: responses with the same number answer the same prompt.
        pairing: a name in `PAIRINGS`.
        least_gap: in nats.
        rng: for "best-random".

    Returns:
        Rows of two numbers, the better one first; group by group.

    Raises:
        ConfigError: there is no such pairing.
        ShapeError: scores and groups differ in number.

    Source: best against worst, random or second is `choose_type` in the code of RLHF Workflow,
    Dong et al. 2024, arXiv 2405.07863.

    >>> scores, groups = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
    >>> preferred_pairs(scores, groups, pairing="best-worst", rng=torch.Generator())
    tensor([[1, 0]])
    """
    places = named("pairing", pairing, PAIRINGS)
    values, found = scores.tolist(), []
    for rows, scored in ranked_groups(scores, group_ids):
        for better, worse in places(scored, rng) if scored > 1 else ():
            gap = values[rows[better]] - values[rows[worse]]
            if gap > 0 and gap >= least_gap:
                found.append((rows[better], rows[worse]))
    return torch.tensor(found, dtype=torch.long, device=scores.device).view(-1, 2)


def win_rates(
    scores: Float[Tensor, "batch"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """How probably each response beats another one to the same prompt.

        r(y) = 1 / (n − 1) · Σ_{y' ≠ y} σ( R(y) − R(y') )

    Args:
        scores: R, in nats; NaN for what could not be scored, which has no rate.
        group_ids: responses with the same number answer the same prompt.

    Returns:
        Between 0 and 1, 1/2 on average over each prompt; 1/2 where there is nothing to beat.

    Raises:
        ShapeError: scores and groups differ in number.

    Source: the reward of DNO, Rosset et al. 2024, arXiv 2404.03715, with the policy's own samples
    for its expectation and the Bradley–Terry model for the preference.

    >>> win_rates(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0, 0, 1]))
    tensor([0.5000, 0.5000, 0.5000])
    """
    rates = torch.full_like(scores, torch.nan)
    for rows, scored in ranked_groups(scores, group_ids):
        known = torch.tensor(rows[:scored], device=scores.device, dtype=torch.long)
        own = scores[known]
        wins = torch.sigmoid(own[:, None] - own[None, :]).sum(-1) - 0.5  # less that over itself
        rates[known] = wins / (scored - 1) if scored > 1 else torch.full_like(own, 0.5)
    return rates


def ranking_consistencies(
    scores: Float[Tensor, "batch"],
    earlier_scores: Float[Tensor, "batch"],
    group_ids: Int[Tensor, "batch"],
    *,
    agreement: Agreement = "kendall",
) -> Float[Tensor, "groups"]:
    """How far two judges rank the responses to each prompt alike, from 0 to 1.

        kendall     (τ + 1) / 2
        spearman    (ρ + 1) / 2
        top-order   1 where both have the same best and the same worst response, else 0

    Of two with the same score the first counts as worse, for both judges.

    Args:
        scores: of the policy as it is; NaN for what could not be scored, which is left out.
        earlier_scores: of the policy before; likewise.
        group_ids: responses with the same number answer the same prompt.
        agreement: which of the three.

    Returns:
        One number for each prompt, in the order of their first responses; 1 for a prompt with
        fewer than two.

    Raises:
        ShapeError: scores and groups differ in number.

    Source: CREAM, Wang et al. 2025, arXiv 2410.12735, and its code, whose top order looks at the
    places of the first and the last response in the place of the best and the worst.

    >>> groups = torch.tensor([0, 0, 0])
    >>> now, before = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    >>> ranking_consistencies(now, before, groups)
    tensor([0.6667])
    """
    if not scores.shape == earlier_scores.shape == group_ids.shape:
        raise ShapeError(
            f"{len(scores)} scores, {len(earlier_scores)} earlier ones and {len(group_ids)} "
            "numbers of groups; expected one of each for every response"
        )
    known = ~(scores.isnan() | earlier_scores.isnan())
    found = []
    for group in dict.fromkeys(group_ids.tolist()):
        rows = (group_ids == group) & known
        found.append(_agreement(_ranks(scores[rows]), _ranks(earlier_scores[rows]), agreement))
    return torch.tensor(found, device=scores.device, dtype=torch.float32)


def _ranks(scores: Float[Tensor, "some"]) -> Float[Tensor, "some"]:
    return scores.argsort(stable=True).argsort().double()


def _agreement(
    ranks: Float[Tensor, "some"], others: Float[Tensor, "some"], agreement: Agreement
) -> float:
    count = len(ranks)
    if count < 2:
        return 1.0
    if agreement == "top-order":
        same = ranks.argmax() == others.argmax() and ranks.argmin() == others.argmin()
        return float(same)
    if agreement == "spearman":
        squares = float((ranks - others).square().sum())
        return 1 - 3 * squares / (count * (count**2 - 1))
    above, below = torch.triu_indices(count, count, offset=1)
    signs = (ranks[above] - ranks[below]).sign() * (others[above] - others[below]).sign()
    return (float(signs.mean()) + 1) / 2
