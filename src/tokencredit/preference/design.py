"""Which pairs to ask about, and which pairs answers make by themselves."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, DataError


def consensus_pairs(
    groups: Sequence[int], scores: Sequence[float], *, least_share: float = 0.5
) -> tuple[int, list[int]] | None:
    """The best answer that most agree with, and all answers that say something else (SPG).

    Args:
        groups: of each answer to one prompt the number of those that mean the same.
        scores: of each answer, in nats.
        least_share: of the answers in the largest group; below it nothing is learnt.

    Returns:
        Index of the highest-scored member of the largest group, and the indices of the answers in
        others; None where the largest group is too small, is all, or shares its size with another.

    Raises:
        ConfigError: the share is outside (0, 1].
        DataError: not as many scores as answers, or none.

    Source: Lang et al. 2024, arXiv 2403.19279 (RLP), where an entailment model in both directions
    says which answers mean the same; of ten answers, one of the others is taken at random.

    >>> consensus_pairs([0, 0, 1, 0], [0.5, 2.0, 9.0, 1.0])
    (1, [2])
    """
    if not 0 < least_share <= 1:
        raise ConfigError(f"least_share is {least_share}; expected a share above 0 and up to 1")
    if len(groups) != len(scores) or not groups:
        raise DataError(
            f"{len(groups)} answers and {len(scores)} scores; expected one of each answer"
        )
    sizes = {group: groups.count(group) for group in groups}
    most = max(sizes.values())
    largest = [group for group, size in sizes.items() if size == most]
    if len(largest) > 1 or len(sizes) == 1 or most < least_share * len(groups):
        return None
    members = [at for at, group in enumerate(groups) if group == largest[0]]
    others = [at for at, group in enumerate(groups) if group != largest[0]]
    return max(members, key=lambda at: scores[at]), others


def d_optimal_pairs(
    features: Float[Tensor, "pairs width"], count: int, *, ridge: float = 1.0
) -> tuple[Int[Tensor, "count"], Float[Tensor, "count"]]:
    """The pairs to ask people about: each adds most to what is known of a linear reward.

        argmax_i log(1 + b_i' V⁻¹ b_i),   V ← V + b_i b_i',   V_0 = λ I

    Args:
        features: b, of each pair the difference of its answers' features, the last hidden states
            for example.
        count: how many questions; a pair may be asked again where that says most.
        ridge: λ, above 0.

    Returns:
        Indices of pairs, in the order of the questions, and what each adds to log det V, in nats:
        above 0 and never rising for features that are not 0.

    Raises:
        ConfigError: the ridge is not above 0, or the count below 1.
        DataError: there are no pairs, or a feature is NaN or infinite.

    Source: Scheid et al. 2024, arXiv 2410.17055, who solve the continuous problem by the algorithm
    of Frank and Wolfe and ask each pair in proportion; here one pair after another is taken.

    >>> d_optimal_pairs(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 2)[0]
    tensor([0, 2])
    """
    if ridge <= 0 or count < 1:
        raise ConfigError(
            f"ridge is {ridge} and count {count}; expected a ridge above 0 and at least one pair"
        )
    if not len(features) or not bool(features.isfinite().all()):
        raise DataError(
            f"{len(features)} pairs with {int((~features.isfinite()).sum())} features that are NaN "
            "or infinite; expected at least one pair, and finite features"
        )
    rows = features.double()
    inverse = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device) / ridge
    uncertainty = torch.einsum("pi,ij,pj->p", rows, inverse, rows)
    chosen, gains = [], []
    for _ in range(count):
        best = int(uncertainty.argmax())
        chosen.append(best)
        gains.append(float(torch.log1p(uncertainty[best])))
        along = inverse @ rows[best]
        scale = 1 + uncertainty[best]
        inverse = inverse - along[:, None] * along[None] / scale
        uncertainty = (uncertainty - (rows @ along).square() / scale).clamp_min(0.0)
    return torch.tensor(chosen), torch.tensor(gains)


def contrast_instructions(
    similarities: Float[Tensor, "prompts prompts"], *, least: float = 0.75, most: float = 0.9
) -> Int[Tensor, "pairs 2"]:
    """Each prompt with the one that is most like it, but not the same.

        (i, argmax_j s_ij)   of the j ≠ i with least ≤ s_ij ≤ most

    To the first prompt its own response must score above that of the second, and its response must
    score above itself under the second prompt: how often it does is a reward model's consistency.

    Args:
        similarities: s, of prompts, cosines of their embeddings for example.
        least: below it another prompt asks for something else altogether.
        most: above it, for the same.

    Returns:
        Indices of both, by the first; none of a prompt that is like no other.

    Raises:
        ConfigError: the bounds are in the wrong order.
        DataError: a similarity of two prompts is NaN.

    Source: Shen et al. 2023, arXiv 2309.16155 (Contrast Instructions), with their bounds.

    >>> contrast_instructions(torch.tensor([[1.0, 0.8, 0.95], [0.8, 1.0, 0.2], [0.95, 0.2, 1.0]]))
    tensor([[0, 1],
            [1, 0]])
    """
    if not least <= most:
        raise ConfigError(f"least is {least} and most {most}; expected least <= most")
    itself = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    if bool((similarities.isnan() & ~itself).any()):
        raise DataError("a similarity of two prompts is NaN; expected a number for every two")
    near = (similarities >= least) & (similarities <= most) & ~itself
    rows = near.any(-1).nonzero().flatten()
    if not len(rows):
        return rows.new_zeros(0, 2)
    best = similarities.masked_fill(~near, -torch.inf).argmax(-1)
    return torch.stack([rows, best[rows]], dim=-1)
