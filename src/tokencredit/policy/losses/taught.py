"""Losses of policies that learn from teachers, made of what these say of every next token.

`alignments`, `divergences` and `advantages` give a number per token, from the log-probabilities of
policy and teachers over the events there, the options, how many events are kept tokens, and the
size of credit. The others make a loss per prompt of these numbers: each response is the mean over
its tokens.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tokencredit.masking import masked_row_mean
from tokencredit.policy.losses.compared import Answers
from tokencredit.policy.losses.distillation import (
    aligned_losses,
    expected_advantages,
    forward_kls,
)

Losses = Float[Tensor, "rows"]
Numbers = Float[Tensor, "tokens"]


def alignments(
    events: Sequence[Tensor], options: Any, _kept: int, magnitudes: Tensor | None
) -> Numbers:
    """AlignDistil: the divergence from what the teachers call for."""
    return aligned_losses(
        *events,
        dpo_beta=options.dpo_beta,
        extrapolation=options.extrapolation,
        adaptive=options.adaptive,
        magnitudes=magnitudes,
        anchor=options.anchor,
        scaling=options.scaling,
    )


def divergences(events: Sequence[Tensor], *_: Any) -> Numbers:
    """DCKD: the divergence of the teacher."""
    return forward_kls(*events)


def advantages(events: Sequence[Tensor], options: Any, kept: int, _: Tensor | None) -> Numbers:
    """ADPA: the advantage that the policy may expect."""
    clip = None if options.advantage_clip == "none" else options.advantage_clip
    return expected_advantages(*events, kept=kept, advantage_clip=clip)


def distilled(answers: Answers, _options: Any) -> Losses:
    """AlignDistil: the mean over tokens of what the teachers make of them."""
    return _weighed_means(answers, answers.taught)[:, 0]


def distilled_pairs(answers: Answers, options: Any) -> Losses:
    """DCKD: the likelihood of the chosen answer, and the teacher's divergence on both."""
    divergences = _weighed_means(answers, answers.taught).sum(-1)
    return _chosen_likelihoods(answers, options) + options.strength * divergences


def advantaged_pairs(answers: Answers, options: Any) -> Losses:
    """ADPA: the likelihood of the chosen answer, less the expected advantage on the other."""
    advantages = _weighed_means(answers, answers.taught)[:, 1]
    return _chosen_likelihoods(answers, options) - options.strength * advantages


def _chosen_likelihoods(answers: Answers, options: Any) -> Losses:
    return -options.sft_coef * _weighed_means(answers, answers.logprobs)[:, 0]


def _weighed_means(
    answers: Answers, values: Float[Tensor, "answers time"]
) -> Float[Tensor, "rows width"]:
    """Means over the tokens of each answer, times their weights."""
    mask = answers.response_mask
    values = values.masked_fill(~mask, 0.0)
    if answers.token_weights is not None:
        values = values * answers.token_weights.detach()
    return answers.by_row(masked_row_mean(values, mask))
