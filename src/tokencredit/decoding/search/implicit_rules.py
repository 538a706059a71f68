"""Rules of searches by the reward that a model trained by DPO implies.

    r(yₜ) = log π_DPO(yₜ | x, y_<t) − log π_ref(yₜ | x, y_<t)

The positive factor beta of DPO, which gives this its unit, ranks nothing differently and is left
out everywhere here.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.decoding.search.rules import best_candidates, require_finite_scores
from tokencredit.errors import ConfigError
from tokencredit.masking import masked_sum


def weighted_implicit_rewards(
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch"]:
    """What the beginning of a response promises, early tokens before late ones (TreeBoN).

        Σᵢ₌₁ⁿ 1/i · (log π_DPO(yᵢ | x, y_<i) − log π_ref(yᵢ | x, y_<i))

    Args:
        logprobs: of the response tokens by the model that DPO trained, in nats.
        ref_logprobs: by its reference.
        response_mask: True on response tokens that count; anything may stand elsewhere.

    Returns:
        Nats, float32; zero for an empty response.

    Raises:
        NumericError: a counted log-ratio is NaN or infinite.

    Source: Qiu et al. 2024, arXiv 2410.16033, the weighted implicit reward. The weights are known
    to us from a re-implementation by the authors of CARDS, which counts prompt tokens and reads the
    log-probability of a token after itself; here i counts response tokens from 1 and each token
    is predicted from those before it. Whether the paper counts from 0 could not be verified.

    >>> logprobs, mask = torch.tensor([[-1.0, -1.0]]), torch.tensor([[True, True]])
    >>> weighted_implicit_rewards(logprobs, torch.tensor([[-2.0, -4.0]]), mask)
    tensor([2.5000])
    """
    ratios = (logprobs.float() - ref_logprobs.float()).masked_fill(~response_mask, 0.0)
    require_finite_scores(ratios, "tokens")
    places = response_mask.cumsum(-1).clamp(min=1)
    return masked_sum(ratios / places, response_mask)


def layer_lengths(max_new_tokens: int, layers: int) -> list[int]:
    """How many tokens each layer of a tree writes: equal shares, the last takes what is left.

    Raises:
        ConfigError: there are fewer than 1 layer, or more than tokens.

    Source: Qiu et al. 2024, arXiv 2410.16033; that shares are equal could not be verified.

    >>> layer_lengths(10, 4)
    [2, 2, 2, 4]
    """
    if not 1 <= layers <= max_new_tokens:
        raise ConfigError(
            f"layers is {layers} and max_new_tokens {max_new_tokens}; expected from 1 layer to one "
            "per token"
        )
    share = max_new_tokens // layers
    return [share] * (layers - 1) + [max_new_tokens - share * (layers - 1)]


class ExtendedBeams(NamedTuple):
    """The beams after one more token.

    Attributes:
        parents: which beam of the row each continues.
        choices: which of that beam's candidates it takes; 0 for a beam that had ended.
        totals: sums of what its tokens brought, float32.
    """

    parents: Int[Tensor, "batch beams"]
    choices: Int[Tensor, "batch beams"]
    totals: Float[Tensor, "batch beams"]


def extended_beams(
    totals: Float[Tensor, "batch beams"],
    additions: Float[Tensor, "batch beams candidates"],
    ended: Bool[Tensor, "batch beams"],
) -> ExtendedBeams:
    """The best continuations of all beams together, each at most one token longer.

        the W largest of R_w + r(v)   for v in C_w

    A beam that has ended keeps its total and its place if that is large enough.

    Args:
        totals: of the beams; minus infinity for places that are not filled yet.
        additions: what each candidate adds, in nats; minus infinity takes one out. Of ended beams
            they may be anything.
        ended: True on beams that take no more tokens.

    Returns:
        As many beams as before, best first. Where too few candidates are left, the others have a
        total of minus infinity.

    Raises:
        NumericError: a total or an addition that counts is NaN or plus infinity.

    Source: Rafailov et al. 2024, arXiv 2404.12358. As far as could be read, its experiments search
    by the likelihood of the DPO model, which is the sum of these rewards and of the log-likelihood
    of the reference; give the log-probabilities as additions for that.

    >>> totals, ended = torch.tensor([[1.0, 0.5]]), torch.tensor([[False, True]])
    >>> beams = extended_beams(totals, torch.tensor([[[-2.0, 0.1], [9.0, 9.0]]]), ended)
    >>> beams.parents, beams.choices, beams.totals
    (tensor([[0, 1]]), tensor([[1, 0]]), tensor([[1.1000, 0.5000]]))
    """
    batch, beams, candidates = additions.shape
    stays = torch.full_like(additions, -torch.inf, dtype=torch.float32)
    stays[..., 0] = 0.0
    added = torch.where(ended[..., None], stays, additions.float())
    sums = (totals.float()[..., None] + added).view(batch, beams * candidates)
    require_finite_scores(sums.masked_fill(sums == -torch.inf, 0.0), "beams")
    # Places that cannot be filled get a number below all others, and lose it again.
    lowest = sums.masked_fill(sums == -torch.inf, torch.finfo(torch.float32).min)
    best = best_candidates(lowest, keep=beams)
    return ExtendedBeams(best // candidates, best % candidates, sums.gather(-1, best))
