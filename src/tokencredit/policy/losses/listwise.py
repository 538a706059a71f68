"""Losses of several responses to a prompt: ranked, weighed, or one good among bad ones.

Every row is a prompt with n responses. Rows with fewer are filled up, and a mask says which
responses are there. What is compared is one score of each response, as `side_scores` gives it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, DataError
from tokencredit.masking import masked_sum

Lists = Float[Tensor, "rows answers"]


def require_lists(present: Bool[Tensor, "rows answers"]) -> None:
    """Raise DataError if a row has fewer than two responses.

    Args:
        present: True on responses that are there.
    """
    short = present.sum(-1) < 2
    if bool(short.any()):
        raise DataError(
            f"{int(short.sum())} lists have fewer than two answers; expected at least two to "
            "compare: drop these rows"
        )


def ranking_losses(
    scores: Lists, rewards: Lists, present: Bool[Tensor, "rows answers"]
) -> Float[Tensor, "rows"]:
    """Each response against all that are worth less, sharper where more lies between them (PRO).

        L = Σ_k −log( e^{s_k τ_kk} / (e^{s_k τ_kk} + Σ_{j: r_j < r_k} e^{s_j τ_kj}) )
        τ_kj = r_k − r_j,   τ_kk = max_j τ_kj

    Args:
        scores: log-probabilities per token, of the policy, in nats.
        rewards: r, more for better responses; equal ones are not compared.
        present: True on responses that are there.

    Returns:
        One loss per row, without the likelihood of the best response, which is added apart. With
        two responses it is log(1 + exp(−(r_1 − r_2)(s_1 − s_2))).

    Raises:
        DataError: a row has fewer than two responses.

    Source: Song et al. 2023, arXiv 2306.17492 (PRO). Their code leaves the first token of each
    response out and counts one after the last; here every response token counts.

    >>> scores, rewards = torch.tensor([[-1.0, -2.0]]), torch.tensor([[2.0, 0.0]])
    >>> ranking_losses(scores, rewards, torch.ones(1, 2, dtype=torch.bool))
    tensor([0.1269])
    """
    require_lists(present)
    scores, rewards = _filled(scores, present), _filled(rewards, present)
    gaps = rewards[:, :, None] - rewards[:, None, :]
    beats = (gaps > 0) & present[:, :, None] & present[:, None, :]
    largest = gaps.masked_fill(~beats, 0.0).amax(-1)
    worse = (scores[:, None, :] * gaps).masked_fill(~beats, -torch.inf)
    own = scores * largest
    # Of a response that beats nothing the sum has one term, and its loss is 0.
    terms = torch.cat([own[..., None], worse], dim=-1).logsumexp(-1) - own
    return masked_sum(terms, beats.any(-1))


def misordering_losses(
    scores: Lists, rewards: Lists, present: Bool[Tensor, "rows answers"]
) -> Float[Tensor, "rows"]:
    """How much likelier worse responses are than better ones (RRHF): 0 in the right order.

        L = Σ_{i, j: r_i > r_j} max(0, s_j − s_i)

    Args:
        scores: log-probabilities per token, of the policy, in nats.
        rewards: more for better responses; equal ones are not compared.
        present: True on responses that are there.

    Returns:
        One loss per row, without the likelihood of the best response, which is added apart.

    Raises:
        DataError: a row has fewer than two responses.

    Source: Yuan et al. 2023, arXiv 2304.05302 (RRHF). Their code takes this 100 times beside the
    likelihood of the best response.

    >>> scores, rewards = torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    >>> misordering_losses(scores, rewards, torch.ones(1, 2, dtype=torch.bool))
    tensor([1.])
    """
    require_lists(present)
    scores, rewards = _filled(scores, present), _filled(rewards, present)
    better = rewards[:, :, None] > rewards[:, None, :]
    counts = better & present[:, :, None] & present[:, None, :]
    ahead = (scores[:, None, :] - scores[:, :, None]).relu()
    return masked_sum(ahead.flatten(1), counts.flatten(1))


def soft_list_losses(
    scores: Lists, rewards: Lists, present: Bool[Tensor, "rows answers"], *, temperature: float
) -> Float[Tensor, "rows"]:
    """KL divergence of the shares that responses have from those that they deserve (BRAIn).

        L = KL(α || β),   α = softmax(r / γ),   β = softmax(s)

    Its gradient is Σ_i (β_i − α_i) ∇s_i.

    Args:
        scores: log-ratios of the policy to the model that wrote the responses, in nats.
        rewards: more for better responses.
        present: True on responses that are there.
        temperature: γ; 0 gives all to the best responses, in equal parts.

    Returns:
        One loss per row, never negative but for rounding.

    Raises:
        ConfigError: the temperature is negative.
        DataError: a row has fewer than two responses.

    Source: Pandey et al. 2024, arXiv 2402.02479 (BRAIn), as summaries describe it. With two
    responses and temperature 0 it is DPO with price 1.

    >>> scores, rewards = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> soft_list_losses(scores, rewards, torch.ones(1, 2, dtype=torch.bool), temperature=0.0)
    tensor([0.3133])
    """
    if temperature < 0:
        raise ConfigError(f"temperature is {temperature}; expected at least 0")
    require_lists(present)
    rewards = rewards.masked_fill(~present, -torch.inf)
    if temperature == 0:
        best = rewards == rewards.amax(-1, keepdim=True)
        deserved = best.to(scores.dtype) / best.sum(-1, keepdim=True)
    else:
        deserved = (rewards / temperature).softmax(-1)
    own = _filled(scores, present).masked_fill(~present, -torch.inf).log_softmax(-1)
    # A share of 0 asks for nothing, whatever the other is.
    terms = deserved.xlogy(deserved) - deserved * own.masked_fill(deserved == 0, 0.0)
    return masked_sum(terms, present)


def discriminative_weights(
    negative_scores: Lists,
    start_scores: Lists | None,
    present: Bool[Tensor, "rows answers"],
    log_averages: Float[Tensor, "rows"],
    *,
    temperature: float,
    average_rate: float,
) -> tuple[Lists, Float[Tensor, "rows"]]:
    """Weights of bad responses against a good one, and the running averages they are made by (DFT).

        u ← log((1 − g) e^u + g mean_j e^{s_j / τ − log P_0(y_j)})
        w_j = e^{s_j / τ − log P_0(y_j) − u} / m

    Args:
        negative_scores: s, of the policy, in nats: sums over tokens, or means (DFT2).
        start_scores: log P_0, of the model that wrote the responses; None leaves it out (DFT2).
        present: True on responses that are there.
        log_averages: u of each row so far; minus infinity where it has none yet.
        temperature: τ, positive.
        average_rate: g, above 0 and up to 1; at 1, or without an average so far, only this visit
            counts.

    Returns:
        Constants: the weights, zero where no response is, and the new averages.

    Raises:
        ConfigError: a setting lies outside its range.

    Source: Guo et al. 2025, arXiv 2502.18679 (DFT). Theirs starts at u = 0; from minus infinity the
    first visit counts alone, which hangs on no unit of s.

    >>> one = torch.ones(1, 1, dtype=torch.bool)
    >>> weights, averages = discriminative_weights(
    ...     torch.tensor([[-2.0]]), None, one, torch.tensor([0.0]), temperature=1.0,
    ...     average_rate=1.0,
    ... )
    >>> weights, averages
    (tensor([[1.]]), tensor([-2.]))
    """
    if temperature <= 0 or not 0 < average_rate <= 1:
        raise ConfigError(
            f"temperature is {temperature} and average_rate {average_rate}; expected a positive "
            "temperature and a rate above 0 and up to 1"
        )
    exponents = _filled(negative_scores.detach(), present) / temperature
    if start_scores is not None:
        exponents = exponents - _filled(start_scores.detach(), present)
    exponents = exponents.masked_fill(~present, -torch.inf)
    counts = present.sum(-1).clamp(min=1)
    here = exponents.logsumexp(-1) - counts.log()
    fresh = torch.log(torch.tensor(average_rate, dtype=here.dtype))
    kept = torch.log1p(torch.tensor(-average_rate, dtype=here.dtype))
    mixed = torch.logaddexp(kept + log_averages.to(here.dtype), fresh + here)
    averages = torch.where(log_averages == -torch.inf, here, mixed)
    return (exponents - averages[:, None]).exp() / counts[:, None], averages


def discriminative_losses(
    positive_scores: Float[Tensor, "rows"],
    negative_scores: Lists,
    weights: Lists,
    present: Bool[Tensor, "rows answers"],
) -> Float[Tensor, "rows"]:
    """One good response against bad ones whose weights are constants (DFT).

        L = −s(y_+) + Σ_j w_j s(y_j)

    With weights of `average_rate` 1 its gradient is that of −s(y_+) + τ log mean_j e^{...}.

    Args:
        positive_scores: of the good responses, in nats.
        negative_scores: of the bad ones.
        weights: as of `discriminative_weights`.
        present: True on bad responses that are there.

    Returns:
        One loss per row, which may be negative.

    Source: as `discriminative_weights`.

    >>> one = torch.ones(1, 1, dtype=torch.bool)
    >>> discriminative_losses(torch.tensor([-1.0]), torch.tensor([[-2.0]]), one.float(), one)
    tensor([-1.])
    """
    pushed_down = weights.detach() * _filled(negative_scores, present)
    return masked_sum(pushed_down, present) - positive_scores


def best_answers(
    rewards: Lists, present: Bool[Tensor, "rows answers"]
) -> Bool[Tensor, "rows answers"]:
    """True on the first of the best responses of each row.

    Args:
        rewards: more for better ones.
        present: True on responses that are there.

    >>> best_answers(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([[True, True, True]]))
    tensor([[False,  True, False]])
    """
    best = rewards.masked_fill(~present, -torch.inf).argmax(-1)
    return (torch.arange(rewards.shape[1], device=rewards.device) == best[:, None]) & present


def _filled(values: Lists, present: Bool[Tensor, "rows answers"]) -> Lists:
    """Zeros where no response is: NaN there would come back in the gradient."""
    return values.masked_fill(~present, 0.0)
