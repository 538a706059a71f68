"""Rules of decoding methods that judge segments: which are accepted, and which beginnings go on.

Nothing here draws a token or runs a model: `hf_segment_search` and `hf_cascade` do, by these rules.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, NumericError


def segment_thresholds(
    lengths: Int[Tensor, "batch"],
    prompt_scores: Float[Tensor, "batch"],
    *,
    target_reward: float,
    max_new_tokens: int,
    threshold_start: float = 0.5,
) -> Float[Tensor, "batch"]:
    """The score that a response of so many tokens should have (CARDS).

        τ(n) = min(r*, r₀ + n (r* − r₀) / T),   r₀ = (1 − a) r(x) + a r*

    Args:
        lengths: response tokens, those of the proposed segment among them.
        prompt_scores: of the prompt alone, in the unit of the reward model.
        target_reward: what the whole response should score; minus infinity asks for nothing.
        max_new_tokens: the length at which it should.
        threshold_start: where the first threshold stands, from 0, the score of the prompt, to 1,
            the target.

    Returns:
        Thresholds in the unit of the scores, float32, never above the target.

    Raises:
        ConfigError: the target is NaN or plus infinity, or another setting out of its range.
        NumericError: the score of a prompt is NaN or infinite.

    Source: Li et al. 2024, arXiv 2406.16306; the schedule as their published code has it.

    >>> lengths, prompts = torch.tensor([0, 5, 20]), torch.tensor([0.0, 0.0, 0.0])
    >>> segment_thresholds(lengths, prompts, target_reward=8.0, max_new_tokens=10)
    tensor([4., 6., 8.])
    """
    require_threshold_settings(target_reward, threshold_start)
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected at least 1 token")
    require_finite_scores(prompt_scores, "prompts")
    if target_reward == -math.inf:
        return torch.full_like(prompt_scores, -math.inf, dtype=torch.float32)
    start = (1 - threshold_start) * prompt_scores.float() + threshold_start * target_reward
    risen = start + lengths * (target_reward - start) / max_new_tokens
    return risen.clamp(max=target_reward)


def require_threshold_settings(target_reward: float, threshold_start: float) -> None:
    """Reject settings that no threshold of `segment_thresholds` can have.

    Raises:
        ConfigError: the target is NaN or plus infinity, or the start no share from 0 to 1.
    """
    if math.isnan(target_reward) or target_reward == math.inf:
        raise ConfigError(
            f"target_reward is {target_reward}; expected a score that the reward model can give, "
            "or minus infinity to accept everything"
        )
    if not 0.0 <= threshold_start <= 1.0:
        raise ConfigError(f"threshold_start is {threshold_start}; expected a share from 0 to 1")


def acceptance_probabilities(
    scores: Float[Tensor, "batch"],
    thresholds: Float[Tensor, "batch"],
    *,
    acceptance_beta: float = 0.7,
) -> Float[Tensor, "batch"]:
    """How probably a proposed segment is kept (CARDS).

        min(1, exp((r − τ) / β))

    Args:
        scores: of the texts that end with the proposed segments.
        thresholds: as of `segment_thresholds`.
        acceptance_beta: how far below the threshold a score may lie, in its unit; towards 0 every
            score below is rejected.

    Returns:
        Float32, from 0 to 1; 1 at the threshold and above.

    Raises:
        ConfigError: `acceptance_beta` is not positive and finite.
        NumericError: a score is NaN or infinite.

    Source: Li et al. 2024, arXiv 2406.16306. Their code takes the same number as the temperature
    of sampling; here the two are apart.

    >>> scores, thresholds = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])
    >>> acceptance_probabilities(scores, thresholds, acceptance_beta=1.0)
    tensor([1.0000, 0.3679])
    """
    if not 0.0 < acceptance_beta < math.inf:
        raise ConfigError(f"acceptance_beta is {acceptance_beta}; expected a positive number")
    require_finite_scores(scores, "segments")
    return ((scores.float() - thresholds.float()) / acceptance_beta).clamp(max=0.0).exp()


def ends_segment(
    entropies: Float[Tensor, "batch"],
    lengths: Int[Tensor, "batch"],
    *,
    entropy_threshold: float = 3.0,
    min_segment_tokens: int = 4,
    max_segment_tokens: int = 64,
) -> Bool[Tensor, "batch"]:
    """Whether a segment is at its end: what comes next is uncertain, or it is long enough (CARDS).

    Args:
        entropies: of the distribution of the next token, in nats.
        lengths: tokens of the segment so far.
        entropy_threshold: from here on a next token counts as uncertain; infinity cuts all segments
            at their full length.
        min_segment_tokens: no end by uncertainty before this many tokens.
        max_segment_tokens: an end in any case.

    Raises:
        ConfigError: the entropy threshold is NaN, or the numbers of tokens are not 1 <= min <= max.

    Source: Li et al. 2024, arXiv 2406.16306, with the numbers of their published code.

    >>> ends_segment(torch.tensor([5.0, 5.0, 1.0]), torch.tensor([3, 4, 4]))
    tensor([False,  True, False])
    """
    if math.isnan(entropy_threshold) or not 1 <= min_segment_tokens <= max_segment_tokens:
        raise ConfigError(
            f"entropy_threshold is {entropy_threshold}, min_segment_tokens {min_segment_tokens} "
            f"and max_segment_tokens {max_segment_tokens}; expected nats, and 1 <= min <= max"
        )
    uncertain = (entropies >= entropy_threshold) & (lengths >= min_segment_tokens)
    return uncertain | (lengths >= max_segment_tokens)


def best_candidates(
    scores: Float[Tensor, "batch candidates"], *, keep: int
) -> Int[Tensor, "batch {keep}"]:
    """The candidates that go on, best first; of equal ones the earlier.

    With one kept of K drawn this is blockwise controlled decoding; with more, beam search over
    chunks; with all of a response drawn at once, best-of-n.

    Args:
        scores: of each candidate text; minus infinity takes one out.
        keep: this many of each row.

    Returns:
        Columns of `scores`.

    Raises:
        ConfigError: `keep` is less than 1 or more than there are candidates.
        NumericError: a score is NaN or plus infinity, or a row is left with too few.

    Source: Mudgal et al. 2024, arXiv 2310.17022, blockwise controlled decoding, for one kept. The
    paper could not be read in full here: that more than one may be kept is ours.

    >>> best_candidates(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), keep=2)
    tensor([[1, 2]])
    """
    if not 1 <= keep <= scores.shape[1]:
        raise ConfigError(
            f"{keep} of {scores.shape[1]} candidates are to be kept; expected from 1 to all"
        )
    counts = scores > -torch.inf
    require_finite_scores(scores.masked_fill(scores == -torch.inf, 0.0), "candidates")
    if bool((counts.sum(-1) < keep).any()):
        raise NumericError(
            f"rows {(counts.sum(-1) < keep).nonzero().flatten().tolist()} have fewer than {keep} "
            "candidates with a finite score; expected at least as many as are kept"
        )
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :keep]


def surviving_candidates(
    scores: Float[Tensor, "batch candidates"],
    running: Bool[Tensor, "batch candidates"],
    *,
    rejection_share: float,
) -> Bool[Tensor, "batch candidates"]:
    """The candidates that are left when the worst share of them is rejected.

        max(1, round((1 − α) n))   of n are left

    Args:
        scores: of the beginnings; anything where `running` is False.
        running: candidates that have not been rejected before.
        rejection_share: alpha, from 0 (none is rejected) to less than 1.

    Returns:
        True on the best, at least one where any was running; of equal ones the earlier.

    Raises:
        ConfigError: the share is not in [0, 1).
        NumericError: the score of a running candidate is NaN or infinite.

    Source: Sun et al. 2024, arXiv 2410.20290. Their paper has a quantile as the cut; how many are
    left is rounded, half to even, as in their published code, which may leave none where this
    leaves one.

    >>> scores = torch.tensor([[4.0, 1.0, 3.0, 9.0]])
    >>> running = torch.tensor([[True, True, True, False]])
    >>> surviving_candidates(scores, running, rejection_share=0.5)
    tensor([[ True, False,  True, False]])
    """
    left = survivor_counts(running, rejection_share=rejection_share)
    scores = scores.masked_fill(~running, -torch.inf)
    require_finite_scores(scores.masked_fill(~running, 0.0), "beginnings")
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return (order.argsort(-1) < left[:, None]) & running


def survivor_counts(
    running: Bool[Tensor, "batch candidates"], *, rejection_share: float
) -> Int[Tensor, "batch"]:
    """How many candidates `surviving_candidates` leaves of each row, whatever they score.

    Raises:
        ConfigError: the share is not in [0, 1).

    >>> survivor_counts(torch.tensor([[True] * 6, [True] + [False] * 5]), rejection_share=0.5)
    tensor([3, 1])
    """
    if not 0.0 <= rejection_share < 1.0:
        raise ConfigError(
            f"rejection_share is {rejection_share}; expected from 0 (none is rejected) to less "
            "than 1"
        )
    counts = running.sum(-1)
    left = ((1.0 - rejection_share) * counts.double()).round().long()
    return torch.minimum(left.clamp(min=1), counts)


def require_finite_scores(scores: Float[Tensor, "batch *rest"], what: str) -> None:
    """Name the rows whose scores cannot be compared.

    Raises:
        NumericError: a score is NaN or infinite.
    """
    wrong = ~scores.isfinite()
    wrong = wrong.flatten(1).any(-1) if wrong.ndim > 1 else wrong
    if bool(wrong.any()):
        raise NumericError(
            f"the scores of {what} are NaN or infinite in rows {wrong.nonzero().flatten().tolist()}"
            "; expected finite ones: look for NaN weights of the reward model, or load it in "
            "float32 or bfloat16 rather than float16"
        )
