"""Losses of lists and of single responses, made of what is known of the answers to a prompt.

Each is a function of `Answers` and of the options that `loss_options` resolved, to one loss per
prompt: what a row of `PREFERENCE_LOSSES` calls.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.masking import masked_sum
from tokencredit.policy.losses.compared import Answers
from tokencredit.policy.losses.likelihood import likelihood_losses
from tokencredit.policy.losses.listwise import (
    best_answers,
    discriminative_losses,
    discriminative_weights,
    misordering_losses,
    ranking_losses,
    soft_list_losses,
)
from tokencredit.policy.losses.offline import leftover_lunch_losses

Losses = Float[Tensor, "rows"]


def ranked(answers: Answers, options: Any) -> Losses:
    """PRO: each response against all worse ones, and (n − 1)² times the best one's likelihood."""
    others = answers.present.sum(-1) - 1
    return _with_best(ranking_losses, answers, options.sft_coef * others.square().double())


def ordered(answers: Answers, options: Any) -> Losses:
    """RRHF: how much likelier worse responses are, and the best one's likelihood."""
    once = torch.ones(len(answers.present), dtype=torch.float64)
    return _with_best(misordering_losses, answers, options.sft_coef * once)


def _with_best(
    group: Callable[..., Tensor], answers: Answers, price: Float[Tensor, "rows"]
) -> Losses:
    """A loss of per-token scores, and the price of the likelihood of the best response."""
    found = group(answers.side_scores(length_normalised=True), answers.scores, answers.present)
    best = best_answers(answers.scores, answers.present)
    sums = answers.by_row(masked_sum(answers.logprobs, answers.response_mask))
    return found - price.to(found) * masked_sum(sums, best)


def soft_listed(answers: Answers, options: Any) -> Losses:
    """BRAIn: the divergence of shares by log-ratio from those by reward."""
    scores = answers.side_scores((1.0,))
    temperature = options.list_temperature
    return soft_list_losses(scores, answers.scores, answers.present, temperature=temperature)


def discriminated(answers: Answers, _options: Any) -> Losses:
    """DFT, by sums with a reference and by means without: the first response against the others."""
    scores = answers.side_scores(length_normalised=not answers.references)
    return discriminative_losses(
        scores[:, 0], scores[:, 1:], answers.negative_weights, answers.present[:, 1:]
    )


def negative_weights(
    answers: Answers, options: Any, log_averages: Float[Tensor, "rows"]
) -> tuple[Float[Tensor, "rows others"], Float[Tensor, "rows"]]:
    """Weights of all responses but the first under DFT, and the new averages.

    Args:
        answers: of a batch; with a reference the loss is `dft`, without `dft2`.
        options: that `loss_options` resolved.
        log_averages: of each row so far, minus infinity for none.
    """
    scores = answers.side_scores(length_normalised=not answers.references)
    start = None
    if answers.references:
        start = answers.by_row(masked_sum(answers.references[0], answers.response_mask))[:, 1:]
    return discriminative_weights(
        scores[:, 1:],
        start,
        answers.present[:, 1:],
        log_averages,
        temperature=options.list_temperature,
        average_rate=options.average_rate,
    )


def of_leftovers(answers: Answers, options: Any) -> Losses:
    """A-LoL: likelihoods by advantages, which stand in the place of scores."""
    return leftover_lunch_losses(
        answers.logprobs,
        answers.references[0] if answers.references else None,
        answers.scores[:, 0],
        answers.response_mask,
        ratio=options.ratio,
        clip_eps=options.ratio_clip,
        token_weights=answers.token_weights,
    )


def imitated(answers: Answers, _options: Any) -> Losses:
    """Negative log-likelihoods."""
    weights = answers.token_weights
    if weights is None:
        weights = answers.response_mask.float()
    return likelihood_losses(answers.logprobs, weights, answers.response_mask).sum(-1)


def imitated_near_reference(answers: Answers, options: Any) -> Losses:
    """SuperHF: negative log-likelihoods, and KL(reference || policy) along the responses.

    L = Σ_t ( −log π(y_t | s_t) + λ KL( π_ref(· | s_t) || π(· | s_t) ) )
    """
    divergences = answers.by_row(masked_sum(answers.divergences, answers.response_mask))[:, 0]
    return imitated(answers, options) + options.strength * divergences


def imitated_by_score(answers: Answers, options: Any) -> Losses:
    """Negative log-likelihoods times scores."""
    return answers.scores[:, 0] * imitated(answers, options)
