"""Credit by segments: the reward of each segment, or the advantage of each utterance, on tokens."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.aggregation import Spreading, segment_end_scores, spread_over_segments
from tokencredit.credit.location import LocationNormaliser, location_normalised
from tokencredit.segments import require_tiling


def segment_credit(
    prefix_scores: Float[Tensor, "batch time_plus_1"],
    segment_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    normaliser: LocationNormaliser | None = None,
    spread: Spreading = "even",
) -> Float[Tensor, "batch time"]:
    r"""The reward of each segment, normalised by where it stands, spread over its tokens.

    .. math:: r_t = \frac{1}{|S_k|} \frac{e_k - \mu(k / K)}{\sigma(k / K)}, \qquad
        e_k = f(x, y_{\le \mathrm{end}(k)}), \quad t \in S_k

    Conserves: up to the segment count. Causal: no. Bounded: no. Needs: prefix scores and segments.

    The score of the response is the mean of its segments' and the row sums to their sum, so more
    segments can earn more: that is what the normaliser is against, which brings the mean of the
    rewards at every location to zero. A token is paid for the rest of its segment, and the
    normaliser knows how many segments will follow; without one and with spread "end" the credit is
    causal.

    Args:
        prefix_scores: of a reward model trained on segments, in nats; column 0 is the prompt alone
            and is not read, column t + 1 ends with response token t.
        segment_ids: as `segments` makes them.
        response_mask: True on response tokens.
        normaliser: fitted by `fitted_location_normaliser`; None takes rewards as they are.
        spread: "even" is the paper's interpolation; "end" pays the last token of the segment,
            "copy" pays every token the whole.

    Returns:
        Token scores in nats (without a unit if normalised). With "even" and "end" the tokens of a
        segment sum to its reward, a row to the sum over its segments.

    Raises:
        ConfigError: `spread` is none of the three.
        ShapeError: prefix scores, ids and mask do not fit each other.
        DataError: the segments do not tile the responses.

    Source: Yin et al. 2025, arXiv 2501.02790, segment-level reward, location-aware normalisers and
    within-segment interpolation. Their code clamps token rewards to [-10, 10] after the spread and
    can put a penalty in place of the rewards of unfinished or long responses; both are left to
    shaping here, and the deviation has a floor.

    >>> import torch
    >>> mask, ids = torch.tensor([[True, True, True]]), torch.tensor([[0, 0, 1]])
    >>> segment_credit(torch.tensor([[9.0, 1.0, 3.0, 5.0]]), ids, mask)
    tensor([[1.5000, 1.5000, 5.0000]])
    """
    require_tiling(segment_ids, response_mask)
    rewards, is_segment = segment_end_scores(prefix_scores, segment_ids)
    if normaliser is not None:
        rewards = location_normalised(rewards, is_segment, normaliser)
    return spread_over_segments(rewards, segment_ids, how=spread).float()


def utterance_credit(
    utterance_scores: Float[Tensor, "batch segments"],
    segment_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    spread: Spreading = "copy",
) -> Float[Tensor, "batch time"]:
    r"""The advantage of each utterance of a dialogue, on all of its tokens.

    .. math:: r_t = A(s_k, u_k) = Q(s_k, u_k) - V(s_k), \qquad t \in u_k

    Conserves: no. Causal: no. Bounded: by utterance scores. Needs: utterance scores and segments.

    These are advantages: weigh the policy gradient with them as they are. As rewards, to be summed
    from each token on, take spread "end": within an utterance that gives every token the same
    advantage, and what later utterances add has mean zero given the dialogue so far.

    Args:
        utterance_scores: of an utterance-level critic, in nats.
        segment_ids: one id for each utterance of the row that the policy spoke.
        response_mask: True on tokens that the policy spoke.
        spread: as in `spread_over_segments`.

    Returns:
        Token scores in nats. With "end" a row sums to the scores of its utterances.

    Raises:
        ConfigError: `spread` is none of the three.
        ShapeError: scores, ids and mask do not fit each other.
        DataError: the utterances do not tile the responses.

    Source: Zhou et al. 2024, arXiv 2402.19446, the token-level actor of ArCHer. In their code each
    utterance is a sample of its own and the smaller of two critics' values is taken, for Q and V
    alike; the critics are the caller's here.

    >>> import torch
    >>> mask, ids = torch.tensor([[True, True, False, True]]), torch.tensor([[0, 0, -1, 1]])
    >>> utterance_credit(torch.tensor([[2.0, -1.0]]), ids, mask)
    tensor([[ 2.,  2.,  0., -1.]])
    """
    require_tiling(segment_ids, response_mask)
    return spread_over_segments(utterance_scores, segment_ids, how=spread).float()
