"""What the score loses without a token, or gains by one: the references for cheaper credit.

They ask the scorer again and again, so they are for evaluation, not for training: a response of T
tokens costs T scores for leaving one out, 2^T for the exact Shapley value, about T for every
permutation that is sampled, and `width` short texts per token for windows. No token is singled out
by its place: the score of a token depends on those before it and on those after it.

With `segment_ids`, the units that are left out are segments (words, sentences); what a segment
earns is spread evenly over its tokens.
"""

from collections.abc import Iterator
from math import comb

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.kept_tokens import ScoresOfKept, kept_scores
from tokencredit.masking import left_packed

EXACT_UNITS = 12
"""Most tokens or segments of a response whose subsets are all scored: 4096 of them."""


def leave_one_out_credit(
    scores_of_kept: ScoresOfKept,
    response_mask: Bool[Tensor, "batch time"],
    *,
    segment_ids: Int[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Score of the response minus its score without the token.

        r_t = R(x, y) − R(x, y_{∖t})

    Conserves: no. Causal: no. Bounded: no. Needs: subset scores.

    Two tokens of which either is enough get nothing; two that need each other are both paid in
    full. `shapley_credit` divides what they share.

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        response_mask: True on response tokens.
        segment_ids: leave out whole segments instead of tokens; -1 outside the mask.

    Returns:
        Token scores in nats; the sum of a row means nothing.

    Raises:
        ShapeError: segment ids do not fit the mask, or scores do not fit the subsets.
        NumericError: a score is NaN or infinite.

    Source: Li et al. 2016, arXiv 1612.08220, erasure of words. They divide the difference of
    log-likelihoods by the log-likelihood; here it stays a difference, since a score in nats has
    no zero to be relative to. How a token is erased is up to `scores_of_kept`.

    >>> values, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]])
    >>> leave_one_out_credit(lambda keep: (keep * values[:, None]).sum(-1) ** 2, mask)
    tensor([[5., 8.]])
    """
    members = members_of_units(response_mask, segment_ids)
    without = response_mask[:, None] & ~members
    scores = kept_scores(scores_of_kept, torch.cat([response_mask[:, None], without], dim=1))
    return spread_evenly(scores[:, :1] - scores[:, 1:], members)


def shapley_credit(
    scores_of_kept: ScoresOfKept,
    response_mask: Bool[Tensor, "batch time"],
    *,
    samples: int,
    generator: torch.Generator,
    segment_ids: Int[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """What a token adds to the score when tokens are added in random order, on average.

        r_t = 1/N · Σ_π (R(x, y_{P_π(t) ∪ t}) − R(x, y_{P_π(t)}))

    where P_π(t) are the tokens that order π adds before t; they stand in the text where they stood.

    Conserves: up to the score of the empty response. Causal: no. Bounded: no. Needs: subset scores.

    Half of the orders are the reverses of the other half, so what one puts early the other puts
    late: scores in which tokens interact at most in pairs come out exact from any one pair.
    Within a batch, all responses are given the same orders of their first, second, ... token, so
    that none depends on the others.

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        response_mask: True on response tokens.
        samples: orders per response; even. The error falls with the root of it.
        generator: of the orders.
        segment_ids: add whole segments instead of tokens; -1 outside the mask.

    Returns:
        Token scores in nats; each row sums to the score of the response less the score of the
        empty one, whatever the number of samples.

    Raises:
        ConfigError: `samples` is odd or not positive.
        ShapeError: segment ids do not fit the mask, or scores do not fit the subsets.
        NumericError: a score is NaN or infinite.

    Source: Castro et al. 2009, "Polynomial calculation of the Shapley value based on sampling",
    Computers and Operations Research 36; as credit of the parts of an input, Lundberg and Lee
    2017, arXiv 1705.07874, equation 8; reversed orders, Mitchell et al. 2022, arXiv 2104.12199.

    >>> values, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]])
    >>> def squared(keep):
    ...     return (keep * values[:, None]).sum(-1) ** 2
    >>> shapley_credit(squared, mask, samples=2, generator=torch.Generator().manual_seed(0))
    tensor([[3., 6.]])
    """
    if samples < 2 or samples % 2:
        raise ConfigError(
            f"samples is {samples}; expected an even number from 2: every order comes with its "
            "reverse"
        )
    members = members_of_units(response_mask, segment_ids)
    credit = torch.zeros(members.shape[:2], dtype=torch.float64, device=members.device)
    for places in _places_in_orders(members.shape[1], samples, generator):
        credit += _gains_in_orders(scores_of_kept, members, places.to(members.device)).sum(1)
    return spread_evenly(credit / samples, members)


def exact_shapley_credit(
    scores_of_kept: ScoresOfKept,
    response_mask: Bool[Tensor, "batch time"],
    *,
    segment_ids: Int[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """What a token adds to the score, averaged over all orders of adding tokens.

        r_t = Σ_{S ∌ t} |S|! (T − |S| − 1)! / T! · (R(x, y_{S ∪ t}) − R(x, y_S))

    Conserves: up to the score of the empty response. Causal: no. Bounded: no. Needs: subset scores.

    Every subset is scored once: 2 to the number of tokens.

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        response_mask: True on response tokens.
        segment_ids: add whole segments instead of tokens; -1 outside the mask.

    Returns:
        Token scores in nats; each row sums to the score of the response less the score of the
        empty one.

    Raises:
        ConfigError: a response has more than `EXACT_UNITS` tokens or segments.
        ShapeError: segment ids do not fit the mask, or scores do not fit the subsets.
        NumericError: a score is NaN or infinite.

    Source: Shapley 1953, "A value for n-person games"; as credit of the parts of an input,
    Lundberg and Lee 2017, arXiv 1705.07874, equation 8. Their code imagines absent parts from
    background data; here an absent token is not there.

    >>> values, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]])
    >>> exact_shapley_credit(lambda keep: (keep * values[:, None]).sum(-1) ** 2, mask)
    tensor([[3., 6.]])
    """
    members = members_of_units(response_mask, segment_ids)
    units = members.shape[1]
    if units > EXACT_UNITS:
        raise ConfigError(
            f"a response has {units} tokens or segments, hence 2 to the power of {units} subsets; "
            f"expected at most {EXACT_UNITS}: sample with `shapley_credit`, or give segment_ids"
        )
    numbers = torch.arange(2**units, device=members.device)
    subsets = (numbers[:, None] >> torch.arange(units, device=members.device)) % 2 == 1
    scores = kept_scores(scores_of_kept, tokens_of_units(subsets, members))
    # Units that only longer responses have are players that change nothing: no value moves.
    return spread_evenly(scores @ _shapley_weights(subsets), members)


def _places_in_orders(
    units: int, samples: int, generator: torch.Generator
) -> Iterator[Int[Tensor, "2 units"]]:
    """The place of each unit in a random order and in its reverse, `samples` orders in all."""
    # Every unit draws keys of its own: how many others there are changes no order among the first.
    device = generator.device
    keys = [
        torch.rand(samples // 2, generator=generator, device=device, dtype=torch.float64)
        for _ in range(units)
    ]
    drawn = torch.stack(keys, dim=-1) if keys else torch.zeros(samples // 2, 0, device=device)
    for places in drawn.argsort(-1).argsort(-1):
        yield torch.stack([places, units - 1 - places])


def _gains_in_orders(
    scores_of_kept: ScoresOfKept,
    members: Bool[Tensor, "batch units time"],
    places: Int[Tensor, "orders units"],
) -> Float[Tensor, "batch orders units"]:
    """What the score gains when each unit is added in its place."""
    orders, units = places.shape
    counts = torch.arange(units + 1, device=places.device)
    subsets = (places[:, None, :] < counts[:, None]).flatten(0, 1)
    # None and all of the units are asked for every time, so that each order sums to what it should
    # even where rounding differs from call to call.
    scores = kept_scores(scores_of_kept, tokens_of_units(subsets, members))
    gains = scores.view(len(members), orders, units + 1).diff(dim=-1)
    return gains.gather(-1, places.expand(len(members), -1, -1))


def _shapley_weights(
    subsets: Bool[Tensor, "subsets units"],
) -> Float[Tensor, "subsets units"]:
    """Weight of the score of each subset in the Shapley value of each unit."""
    units = subsets.shape[1]
    by_size = [1.0 / (units * comb(units - 1, size)) for size in range(units)]
    table = torch.tensor([*by_size, 0.0], dtype=torch.float64, device=subsets.device)
    size = subsets.sum(-1, keepdim=True)
    return torch.where(subsets, table[size - 1], -table[size])


def window_credit(
    scores_of_kept: ScoresOfKept,
    response_mask: Bool[Tensor, "batch time"],
    *,
    width: int = 3,
    segment_ids: Int[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Mean score of the windows that hold the token, each read without the rest.

        r_t = 1/|U_t| · Σ_{U ∈ U_t} (R(x, y_U) − R(x, ∅))

    where U_t are the runs of 1 to `width` neighbouring tokens that hold t.

    Conserves: no. Causal: no. Bounded: no. Needs: subset scores.

    People mark runs of words, so a word shares in what its neighbours mean together ("not bad");
    what only the whole response shows is missed. A reward model that was trained on phrases reads
    pieces best.

    Args:
        scores_of_kept: score of each response, in nats, when only the kept tokens stay.
        response_mask: True on response tokens.
        width: most tokens or segments of a window.
        segment_ids: windows of whole segments instead of tokens; -1 outside the mask. What a
            segment earns is spread evenly over its tokens.

    Returns:
        Token scores in nats; the sum of a row means nothing.

    Raises:
        ConfigError: `width` is not positive.
        ShapeError: segment ids do not fit the mask, or scores do not fit the subsets.
        NumericError: a score is NaN or infinite.

    Source: ours. C-Shapley (Chen et al. 2019, arXiv 1808.02610) asks about windows too, and weighs
    what the token changes in each; here each is taken at its word.

    >>> values, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, True]])
    >>> window_credit(lambda keep: (keep * values[:, None]).sum(-1), mask, width=2)
    tensor([[2.0000, 3.3333, 4.0000]])
    """
    if width < 1:
        raise ConfigError(f"width is {width}; expected a number of tokens or segments from 1")
    members = members_of_units(response_mask, segment_ids)
    places = torch.arange(members.shape[1], device=members.device)
    first = places.repeat(width)
    last = first + torch.arange(width, device=members.device).repeat_interleave(len(places))
    windows = (first[:, None] <= places) & (places <= last[:, None])
    inside = last < members.any(-1).sum(-1, keepdim=True)
    nothing = windows.new_zeros(1, len(places))
    subsets = tokens_of_units(torch.cat([nothing, windows]), members)
    scores = kept_scores(scores_of_kept, subsets)
    gains = (scores[:, 1:] - scores[:, :1]) * inside
    holding = inside.double() @ windows.double()
    return spread_evenly(gains @ windows.double() / holding.clamp(min=1), members)


def members_of_units(
    response_mask: Bool[Tensor, "batch time"], segment_ids: Int[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch units time"]:
    """Which tokens each unit holds, units in the order of their first tokens."""
    ids = segment_ids
    if ids is None:
        ids = torch.arange(response_mask.shape[1], device=response_mask.device)[None]
    elif ids.shape != response_mask.shape or bool((ids.lt(0) & response_mask).any()):
        raise ShapeError(
            f"segment_ids of shape {tuple(ids.shape)} do not fit a response_mask of shape "
            f"{tuple(response_mask.shape)}; expected an id from 0 for every token inside the mask"
        )
    together = (ids[:, :, None] == ids[:, None, :]) & response_mask[:, None, :]
    is_first = response_mask & ~together.tril(-1).any(-1)
    members, _ = left_packed(together, is_first)
    return members


def tokens_of_units(
    subsets: Bool[Tensor, "subsets units"], members: Bool[Tensor, "batch units time"]
) -> Bool[Tensor, "batch subsets time"]:
    """The tokens of all units of each subset."""
    return (subsets.float() @ members.float()) > 0


def spread_evenly(
    credit: Float[Tensor, "batch units"], members: Bool[Tensor, "batch units time"]
) -> Float[Tensor, "batch time"]:
    """The credit of each unit in equal parts on its tokens."""
    shares = members / members.sum(-1, keepdim=True).clamp(min=1)
    return (credit[:, :, None] * shares).sum(1).float()
