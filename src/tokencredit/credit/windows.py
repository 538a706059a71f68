"""What runs of neighbouring tokens say on their own.

Like `tokencredit.credit.perturbation` it asks the scorer again and again, though about short texts
alone: `width` of them per token.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.credit.units import members_of_units, spread_evenly, tokens_of_units
from tokencredit.errors import ConfigError
from tokencredit.kept_tokens import ScoresOfKept, kept_scores


def window_credit(
    scores_of_kept: ScoresOfKept,
    response_mask: Bool[Tensor, "batch time"],
    *,
    width: int = 3,
    segment_ids: Int[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    r"""Mean score of the windows that hold the token, each read without the rest.

    .. math:: r_t = \frac{1}{|U_t|} \sum_{U \in U_t} \left( R(x, y_U) - R(x, \emptyset) \right)

    where :math:`U_t` are the runs of 1 to `width` neighbouring tokens that hold t.

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
