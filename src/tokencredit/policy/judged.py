"""What a policy learns from responses that judges have passed or not (CGPO).

A judge says of a whole response whether it keeps a rule. A response that breaks any rule earns
nothing, however high its score is.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokencredit.errors import ShapeError
from tokencredit.masking import masked_sum
from tokencredit.policy.estimators import reinforce_advantages


def judged_factors(
    passed: Bool[Tensor, "batch"],
    log_ratios: Float[Tensor, "batch"],
    *,
    max_kl: float | None = None,
    hard: bool = False,
) -> Float[Tensor, "batch"]:
    """What the reward of each response is multiplied by, from its judges and its distance.

        soft   1[J] · max(0, 1 − K / K_max)
        hard   1[J] · 1[K ≤ K_max]

    A response that is likelier under the reference than under the policy has K < 0 and a soft
    factor above 1, as in the code.

    Args:
        passed: True where all judges say yes.
        log_ratios: K, log π(y) − log π_ref(y) of each response, in nats.
        max_kl: K_max; None for any distance.
        hard: whether distance counts as one more judge.

    Source: CGPO, Xu et al. 2024, arXiv 2409.20370; read in the code of a pull request to TRL, not
    the authors'.

    >>> passed = torch.tensor([True, True, False])
    >>> judged_factors(passed, torch.tensor([0.0, 5.0, 0.0]), max_kl=10.0)
    tensor([1.0000, 0.5000, 0.0000])
    """
    if max_kl is None:
        factors = torch.ones_like(log_ratios)
    elif hard:
        factors = (log_ratios <= max_kl).to(log_ratios)
    else:
        factors = (1 - log_ratios / max_kl).clamp(min=0.0)
    return factors.masked_fill(~passed, 0.0)


def batch_centred_advantages(
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Rewards to go less the mean return of the batch.

        A_t = Σ_{u≥t} γ^{u−t} r_u − mean_y R(y)

    The update of CRPG, where rewards are those of `judged_factors`. Biased by 1 / batch, since a
    response is in its own baseline, and for credit that is not causal.

    Args:
        token_rewards: in nats.
        response_mask: True on tokens of the policy. A response without any has no return.
        gamma: discount, of returns too.

    Returns:
        Advantages, zero outside the mask.

    Source: CGPO, arXiv 2409.20370, where the reward is one of a whole response.

    >>> mask = torch.ones(2, 2, dtype=torch.bool)
    >>> batch_centred_advantages(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), mask)
    tensor([[ 0.5000,  0.5000],
            [-0.5000, -0.5000]])
    """
    to_go = reinforce_advantages(token_rewards, response_mask, gamma=gamma)
    first = response_mask.int().argmax(-1, keepdim=True)  # a row without any has 0 there
    mean = to_go.gather(-1, first).sum() / response_mask.any(-1).sum().clamp(min=1)
    return (to_go - mean).masked_fill(~response_mask, 0.0)


def best_judged_weights(
    scores: Float[Tensor, "batch"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """The score of the best response to each prompt, 0 for all others and for none above 0.

    The update of CRRAFT is the likelihood of the best, weighted by it; scores are calibrated
    rewards times hard factors of `judged_factors`. Where no response passes, the prompt teaches
    nothing.

    Args:
        scores: of each response, 0 where it did not pass.
        group_ids: responses with the same number answer the same prompt.

    Source: CGPO, arXiv 2409.20370, which falls back on the baseline's answer with weight 1/2 where
    none passes.

    >>> best_judged_weights(torch.tensor([0.2, 0.7, 0.0, 0.0]), torch.tensor([0, 0, 1, 1]))
    tensor([0.0000, 0.7000, 0.0000, 0.0000])
    """
    weights = torch.zeros_like(scores)
    for rows in _groups(group_ids):
        best = rows[int(scores[rows].argmax())]
        weights[best] = scores[best].clamp(min=0.0)
    return weights


def judged_pair_signs(
    scores: Float[Tensor, "batch"], passed: Bool[Tensor, "batch"], group_ids: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """1 for the best response that passes, −1 for the worst that fails, of each prompt.

    Where all pass, the worst of all is rejected. Where none passes, or there are no two, the
    prompt has no pair.

    Args:
        scores: of each response.
        passed: True where all judges say yes.
        group_ids: responses with the same number answer the same prompt.

    Source: CODPO of CGPO, arXiv 2409.20370. The code that was read multiplies scores by 0 or 1
    before it looks for the largest and the least, so that with negative scores it chooses a
    failing one; here that is as in the paper.

    >>> scores, groups = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 0])
    >>> judged_pair_signs(scores, torch.tensor([False, True, True]), groups)
    tensor([-1.,  0.,  1.])
    """
    signs = torch.zeros_like(scores)
    for rows in _groups(group_ids):
        passing, failing = rows[passed[rows]], rows[~passed[rows]]
        others = failing if len(failing) else passing
        if not len(passing) or len(rows) < 2:
            continue
        chosen = passing[int(scores[passing].argmax())]
        rejected = others[int(scores[others].argmin())]
        if chosen != rejected:
            signs[chosen], signs[rejected] = 1.0, -1.0
    return signs


def calibrated_pair_losses(
    policy_logprobs: Float[Tensor, "rows time"],
    ref_logprobs: Float[Tensor, "rows time"],
    signs: Float[Tensor, "rows"],
    response_mask: Bool[Tensor, "rows time"],
    *,
    dpo_beta: float,
    likelihood_coef: float,
) -> Float[Tensor, "pairs"]:
    """Loss of pairs of responses, the chosen one of each before the rejected one.

        −log σ( β (Δ_w − Δ_l) ) − λ / |y_w| · log π(y_w),   Δ = log π(y) − log π_ref(y)

    Args:
        policy_logprobs: of the policy now, in nats.
        ref_logprobs: of the reference.
        signs: 1 for a chosen response, −1 for a rejected one, in turns; 0 for both leaves a pair
            out, and so does a response without a token.
        response_mask: True on tokens of the policy.
        dpo_beta: β.
        likelihood_coef: λ.

    Returns:
        A loss in nats for each pair; 0 for one that is left out.

    Raises:
        ShapeError: the number of rows is odd.

    Source: CODPO of CGPO, arXiv 2409.20370, equation 14.

    >>> logprobs, mask = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    >>> signs = torch.tensor([1.0, -1.0])
    >>> calibrated_pair_losses(logprobs, logprobs, signs, mask, dpo_beta=0.1, likelihood_coef=0.0)
    tensor([0.6931])
    """
    if len(signs) % 2:
        raise ShapeError(f"there are {len(signs)} rows; expected pairs of them")
    log_ratios = masked_sum(policy_logprobs - ref_logprobs, response_mask)
    margins = log_ratios[0::2] - log_ratios[1::2]
    chosen, mask = masked_sum(policy_logprobs, response_mask)[0::2], response_mask[0::2]
    likelihoods = chosen / mask.sum(-1).clamp(min=1)
    losses = -logsigmoid(dpo_beta * margins) - likelihood_coef * likelihoods
    there = (signs[0::2] > 0) & mask.any(-1) & response_mask[1::2].any(-1)
    return losses.masked_fill(~there, 0.0)


def _groups(group_ids: Int[Tensor, "batch"]) -> list[Int[Tensor, "rows"]]:
    return [(group_ids == group).nonzero().flatten() for group in torch.unique(group_ids)]
