"""What scores of two or more answers to the same prompt say: who wins, and how sure that is."""

from statistics import NormalDist

import torch
from jaxtyping import Float, Num
from torch import Tensor

from tokencredit.errors import ConfigError, DataError


def pair_outcomes(
    chosen_scores: Num[Tensor, "pairs"], rejected_scores: Num[Tensor, "pairs"]
) -> Float[Tensor, "pairs"]:
    """1 where the preferred answer scores higher, 0 where the other does, 0.5 for a tie.

    Args:
        chosen_scores: of the preferred answers, in any unit.
        rejected_scores: of the others, in the same unit.

    >>> pair_outcomes(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    lead = chosen_scores - rejected_scores
    return (lead > 0).float() + 0.5 * (lead == 0).float()


def best_of_n_outcome(
    chosen_scores: Num[Tensor, "chosen"], rejected_scores: Num[Tensor, "rejected"]
) -> float:
    """Probability that the answer picked from all of them is one of the better ones.

    The answer with the highest score is picked; among several with that score, any with the same
    probability. With one better answer this is the result of RewardBench 2 outside its subset of
    ties.

    Args:
        chosen_scores: of the better answers, in any unit.
        rejected_scores: of the others, in the same unit.

    Raises:
        DataError: a side has no answer.

    Source: Malik et al. 2025, arXiv 2506.01937 (best of four); their code gives a better answer
    that shares the first place with k - 1 others 1 / k.

    >>> best_of_n_outcome(torch.tensor([2.0]), torch.tensor([2.0, 1.0, 0.0]))
    0.5
    """
    if not len(chosen_scores) or not len(rejected_scores):
        raise DataError("a side has no answer; expected at least one better and one worse answer")
    highest = torch.maximum(chosen_scores.max(), rejected_scores.max())
    better = int((chosen_scores == highest).sum())
    return better / (better + int((rejected_scores == highest).sum()))


def reciprocal_rank(
    chosen_scores: Num[Tensor, "chosen"], rejected_scores: Num[Tensor, "rejected"]
) -> float:
    """One over the place of the best right answer among all wrong ones; a tie counts against it.

        1 / (1 + |{j : r_j ≥ max c}|)

    It is 1 where a right answer scores strictly above every wrong one: the mean of that over
    prompts is the accuracy of one right answer against many.

    Args:
        chosen_scores: c, of the right answers, in any unit.
        rejected_scores: r, of the wrong ones, in the same unit.

    Raises:
        DataError: a side has no answer.

    Source: Kim et al. 2024, arXiv 2410.01729 (RewardMATH), with one right answer and nine wrong
    ones. In `best_of_n_outcome` those with the highest score share it instead.

    >>> reciprocal_rank(torch.tensor([2.0]), torch.tensor([3.0, 2.0, 1.0]))
    0.3333333333333333
    """
    if not len(chosen_scores) or not len(rejected_scores):
        raise DataError("a side has no answer; expected at least one right and one wrong answer")
    return 1 / (1 + int((rejected_scores >= chosen_scores.max()).sum()))


def wilson_interval(
    right: float | int, count: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Where the true share lies, given how many of how many were right.

        (p + z² / (2 n) ± z · √(p (1 − p) / n + z² / (4 n²))) / (1 + z² / n)

    Args:
        right: how many were right; a tie may count half.
        count: how many there were.
        confidence: of the interval, between 0 and 1.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        DataError: there were none, or more were right than there were.
        ConfigError: the confidence is no share.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> [round(end, 4) for end in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; expected a share between 0 and 1")
    if not 0 <= right <= count or count < 1:
        raise DataError(
            f"{right} of {count} right; expected at least one, and no more right than that"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
