"""What each token adds to the reward model's score of the text so far.

`prefix_difference_credit` takes the differences. The other functions make prefix scores fitter to
be differenced: smoothed, freed of length, held within segments. Each gives prefix scores again, so
the credit still telescopes. The last prefix that counts keeps its score (unless
`length_centred_prefix_scores` is told otherwise) and so does the prompt, hence the sum of the
credit stays where it was and what changes is the potential on the way: the best policy is the same
(Ng et al. 1999). The price is paid at the end: the last token gets, all at once, what the potential
before it had fallen short of.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.masking import left_packed, masked_row_mean
from tokencredit.text.segments import segment_ends


def prefix_difference_credit(
    prefix_scores: Float[Tensor, "batch time_plus_1"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Score of the prefix with a token minus the score of the prefix without it.

        r_t = R(x, y_{≤t}) − R(x, y_{<t})

    Conserves: up to the score of the prompt. Causal: yes. Bounded: no. Needs: prefix scores.

    It is the terminal reward plus a potential-based shaping with potential `R(prefix)`, zero after
    the end, so in place of the terminal reward it leaves the optimal policy where it was (Ng et
    al. 1999). The scores are only as good as the reward model is on prefixes: train it on
    them (`prefix_bradley_terry_loss`).

    Args:
        prefix_scores: in nats; column 0 is the prompt alone, column t + 1 ends with response token
            t. Columns that end outside the mask are ignored: a token that the policy did not
            choose leaves its change to the next one that it did.
        response_mask: True on response tokens.

    Returns:
        Token scores in nats; each row sums to score(response) - score(prompt).

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens.

    Source: Li et al. 2024, arXiv 2411.08302, reward redistribution (R3HF, later RED); with a
    reward model trained on prefixes as in Rashid et al. 2024, arXiv 2406.07780.

    >>> prefix_difference_credit(torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([[True, True]]))
    tensor([[ 1.5000, -1.0000]])
    """
    if prefix_scores.shape[1] != response_mask.shape[1] + 1:
        raise ShapeError(
            f"{prefix_scores.shape[1]} prefix scores for {response_mask.shape[1]} tokens; expected "
            "one more than tokens, the first of the prompt alone"
        )
    columns = torch.arange(1, prefix_scores.shape[1], device=prefix_scores.device)
    last_counted = torch.where(response_mask, columns, 0).cummax(-1).values
    before = torch.cat([torch.zeros_like(last_counted[:, :1]), last_counted[:, :-1]], dim=-1)
    scores = prefix_scores.float()
    differences = scores.gather(-1, last_counted) - scores.gather(-1, before)
    return differences.masked_fill(~response_mask, 0.0)


def smoothed_prefix_scores(
    prefix_scores: Float[Tensor, "batch time_plus_1"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    decay: float,
) -> Float[Tensor, "batch time_plus_1"]:
    """Prefix scores smoothed exponentially along the response, the last one left true.

        Φ_0 = R_0,   Φ_t = λ Φ_{t−1} + (1 − λ) R_t,   Φ_T = R_T

    The credit of a token is then paid in instalments: the difference that token k made,
    δ_k = R_k − R_{k−1}, reaches token t < T with the share (1 − λ) λ^{t−k}, never earlier than k,
    and the last token collects what is still owed, R_T − Φ_{T−1}. So noise that comes and goes
    cancels, true changes are paid late, and with a long memory (`decay` near 1) most of the reward
    is terminal again.

    Args:
        prefix_scores: in nats; column 0 is the prompt alone, column t + 1 ends with response token
            t. Columns that end outside the mask are ignored.
        response_mask: True on response tokens.
        decay: λ, the weight of what came before, from 0 (nothing changes) to 1 (the prompt's score
            until the end: terminal reward).

    Returns:
        Prefix scores in nats, float32; columns outside the mask repeat the one before. Column 0 and
        that of the last response token are true.

    Raises:
        ConfigError: `decay` lies outside [0, 1].
        ShapeError: there is not exactly one more prefix than there are tokens.

    Source: ours, a potential for Li et al. 2024, arXiv 2411.08302, whose prefix scores are noisy
    where the reward model was trained on whole responses; smoothing is that of Brown 1956.

    >>> scores, mask = torch.tensor([[0.0, 2.0, 0.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    >>> smoothed_prefix_scores(scores, mask, decay=0.5)
    tensor([[0.0000, 1.0000, 0.5000, 4.0000]])
    """
    if not 0.0 <= decay <= 1.0:
        raise ConfigError(f"decay is {decay}; expected a number from 0 to 1")
    _require_one_prefix_more(prefix_scores, response_mask)
    scores = _held(prefix_scores, response_mask)
    smoothed = [scores[:, 0]]
    for t in range(response_mask.shape[-1]):
        moved = torch.lerp(scores[:, t + 1], smoothed[-1], decay)
        smoothed.append(torch.where(response_mask[:, t], moved, smoothed[-1]))
    return torch.where(_from_the_end_on(response_mask), scores, torch.stack(smoothed, dim=-1))


def length_centred_prefix_scores(
    prefix_scores: Float[Tensor, "batch time_plus_1"],
    response_mask: Bool[Tensor, "batch time"],
    length_means: Float[Tensor, "lengths"],
    *,
    ending: Literal["true", "centred"] = "true",
) -> Float[Tensor, "batch time_plus_1"]:
    """Prefix scores without what is usual for their length, relative to the prompt alone.

        Φ_k = R_k − (m_k − m_0) for k < T

    Training on pairs of prefixes of equal length (`prefix_bradley_terry_loss`) sees only
    differences at the same k, so a constant of each length, R_k + c_k, costs nothing: it is
    arbitrary, and differencing along the response would pay it out as credit.

    Args:
        prefix_scores: in nats; column 0 is the prompt alone, column t + 1 ends with response token
            t. Columns that end outside the mask are ignored.
        response_mask: True on response tokens.
        length_means: mean score of prefixes of 0, 1, 2, ... response tokens, in nats, from
            `prefix_length_means`; longer prefixes take the last one.
        ending: `true` leaves the whole response its score, so that the sum of the credit is as it
            was and the last token gets m_T − m_0 back; `centred` takes the mean from it
            too, so that the response is compared with what is usual for its length: another
            objective.

    Returns:
        Prefix scores in nats, float32; columns outside the mask repeat the one before. Column 0 is
        true.

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens, or `length_means` is
            empty.
        ConfigError: `ending` is neither of the two.

    Source: ours, for Li et al. 2024, arXiv 2411.08302, with reward models trained as in Rashid et
    al. 2024, arXiv 2406.07780.

    >>> scores, mask = torch.tensor([[1.0, 3.0, 6.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> length_centred_prefix_scores(scores, mask, torch.tensor([0.0, 1.5, 3.0]))
    tensor([[1.0000, 1.5000, 6.0000]])
    """
    if ending not in ("true", "centred"):
        raise ConfigError(f"ending is {ending!r}; expected 'true' or 'centred'")
    if not len(length_means):
        raise ShapeError("length_means is empty; expected at least the mean of the prompt alone")
    _require_one_prefix_more(prefix_scores, response_mask)
    scores = _held(prefix_scores, response_mask)
    lengths = pad(response_mask.long().cumsum(-1), (1, 0))
    means = length_means.float()
    centred = scores - (means[lengths.clamp(max=len(means) - 1)] - means[0])
    if ending == "centred":
        return centred
    return torch.where(_from_the_end_on(response_mask), scores, centred)


def prefix_length_means(
    prefix_scores: Float[Tensor, "batch time_plus_1"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "lengths"]:
    """Mean score of the prefixes of each length, over responses that are at least so long.

        m_k = mean of R(x_i, y_i^{≤k}) over all i with T_i ≥ k

    Fit it once on ordinary responses of the policy, hundreds at least: at lengths that few reach
    it is the mean of those few. A row without response tokens is left out.

    Args:
        prefix_scores: in nats; column 0 is the prompt alone.
        response_mask: True on response tokens.

    Returns:
        Means in nats, float32, for 0 (the prompt alone) up to the most tokens of any response.

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens.

    >>> scores = torch.tensor([[1.0, 2.0, 4.0], [3.0, 6.0, 9.0]])
    >>> prefix_length_means(scores, torch.tensor([[True, True], [True, False]]))
    tensor([2., 4., 4.])
    """
    _require_one_prefix_more(prefix_scores, response_mask)
    packed, counts = left_packed(prefix_scores[:, 1:].float(), response_mask)
    packed = torch.cat([prefix_scores[:, :1].float(), packed], dim=-1)
    counts = torch.cat([response_mask.any(-1, keepdim=True), counts], dim=-1)
    return masked_row_mean(packed.mT, counts.mT)


def segment_held_prefix_scores(
    prefix_scores: Float[Tensor, "batch time_plus_1"], segment_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time_plus_1"]:
    """Prefix scores that change only where a segment ends.

        Φ_t = R_{e(t)},   e(t) = the last end of a segment up to t

    The credit of a segment then stands on its last token and is what the whole segment added.
    It is as causal as the segments are: an end that is known only from the next token makes the
    token before it look one ahead.

    Args:
        prefix_scores: in nats; column 0 is the prompt alone, column t + 1 ends with response token
            t. Columns that end outside the segments are ignored.
        segment_ids: the segment of each response token, -1 outside the response.

    Returns:
        Prefix scores in nats, float32; column 0 and that of the last response token are true.

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens.

    Source: ours, for Li et al. 2024, arXiv 2411.08302; reading a score at the ends of segments
    alone is Yin et al. 2025, arXiv 2501.02790.

    >>> scores, segments = torch.tensor([[0.0, 1.0, 3.0, 2.0]]), torch.tensor([[0, 0, 1]])
    >>> segment_held_prefix_scores(scores, segments)
    tensor([[0., 0., 3., 2.]])
    """
    _require_one_prefix_more(prefix_scores, segment_ids)
    return _held(prefix_scores, segment_ends(segment_ids))


def _held(scores: Tensor, counts: Tensor) -> Tensor:
    """Columns that do not count show the last one that did, or the prompt."""
    columns = torch.arange(1, scores.shape[1], device=scores.device)
    last_counted = torch.where(counts, columns, 0).cummax(-1).values
    last_counted = pad(last_counted, (1, 0))
    return scores.float().gather(-1, last_counted)


def _from_the_end_on(response_mask: Tensor) -> Tensor:
    """True on the prefix that ends with the last response token and on those after it."""
    seen = response_mask.long().cumsum(-1)
    return pad(seen == seen[:, -1:], (1, 0))


def _require_one_prefix_more(prefix_scores: Tensor, tokens: Tensor) -> None:
    if prefix_scores.shape[1] != tokens.shape[1] + 1:
        raise ShapeError(
            f"{prefix_scores.shape[1]} prefix scores for {tokens.shape[1]} tokens; expected one "
            "more than tokens, the first of the prompt alone"
        )
