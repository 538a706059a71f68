"""Credit methods as functions of what was gathered and of the settings."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.credit.evidence import Evidence
from tokencredit.credit.implicit import log_ratio_credit
from tokencredit.credit.perturbation import shapley_credit
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import (
    attention_credit,
    quoted_credit,
    terminal_credit,
)
from tokencredit.credit.segments import (
    clipped_step_scores,
    delta_step_scores,
    segment_credit,
    step_score_credit,
    utterance_credit,
)
from tokencredit.credit.token_judges import likelihood_credit
from tokencredit.text.pooling import pooled_by_segment, segment_end_scores

if TYPE_CHECKING:  # its names are checked against the table, which these functions are in
    from tokencredit.credit.settings import CreditSettings


def by_differences(
    evidence: Evidence, prefix_scores: Float[Tensor, "batch time_plus_1"]
) -> Float[Tensor, "batch time"]:
    """Differences of prefix scores."""
    return prefix_difference_credit(prefix_scores, evidence.response_mask)


def by_attention(
    evidence: Evidence, weights: Float[Tensor, "batch time"], settings: "CreditSettings"
) -> Float[Tensor, "batch time"]:
    """The score spread by weights of attention."""
    return attention_credit(
        evidence.sequence_scores, weights, evidence.response_mask, credit_beta=settings.beta
    )


def by_quotes(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """What a judge says by criteria, on the words that it quotes for each."""
    return quoted_credit(
        evidence.sequence_scores,
        evidence.quoted_scores,
        evidence.response_mask,
        rest=settings.judge.unquoted,
    )


def by_log_ratio(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """Log-ratio of a policy and its reference."""
    return log_ratio_credit(
        evidence.policy_logprobs,
        evidence.ref_logprobs,
        evidence.response_mask,
        dpo_beta=evidence.dpo_beta,
        clip=settings.clip,
    )


def by_rto(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """The log-ratio, and the score on the last token."""
    scores = settings.score_weight * evidence.sequence_scores
    return by_log_ratio(evidence, settings) + terminal_credit(scores, evidence.response_mask)


def by_segment(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """What each segment adds to the score at its end."""
    scores = segment_credit(
        evidence.position_scores,
        evidence.segment_ids,
        evidence.response_mask,
        normaliser=evidence.location,
        spread=settings.judge.spread or "even",
    )
    clamp = settings.judge.clamp
    return scores if clamp is None else scores.clamp(-clamp, clamp)


def by_utterance(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """What each segment adds to the score of the text before it, as its advantage."""
    ends, is_segment = segment_end_scores(evidence.position_scores, evidence.segment_ids)
    before = torch.cat([evidence.position_scores[:, :1].float(), ends[:, :-1]], dim=-1)
    advantages = (ends - before[:, : ends.shape[1]]).masked_fill(~is_segment, 0.0)
    return utterance_credit(
        advantages,
        evidence.segment_ids,
        evidence.response_mask,
        spread=settings.judge.spread or "end",
    )


def by_steps(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """Probability of a good step at its last token, clipped or differenced if so set."""
    good = evidence.token_logits.float().softmax(-1)[..., -1]
    scores, is_step = pooled_by_segment(good, evidence.segment_ids, how="last")
    if settings.judge.transform in ("clip", "clip-delta"):
        scores = clipped_step_scores(scores, is_step, eta=settings.judge.threshold)
    if settings.judge.transform in ("delta", "clip-delta"):
        scores = delta_step_scores(scores, is_step)
    return step_score_credit(scores, evidence.segment_ids, evidence.response_mask)


def by_spans(evidence: Evidence, _settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """Log-odds of the better class at the end of every span."""
    logits = evidence.token_logits.float()
    odds, _ = pooled_by_segment(logits[..., -1] - logits[..., 0], evidence.segment_ids, how="last")
    return step_score_credit(odds, evidence.segment_ids, evidence.response_mask)


def by_likelihood(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """How likely a rewriter finds each token."""
    return likelihood_credit(
        evidence.rewriter_logprobs,
        evidence.likeliest_logprobs,
        evidence.response_mask,
        agreement_score=settings.judge.agreement,
        divergence_score=settings.judge.divergence,
        margin=settings.judge.margin,
    )


def by_shapley(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """Shapley values, exact ones of few segments."""
    return shapley_credit(
        evidence.kept,
        evidence.response_mask,
        samples=settings.probe.samples,
        generator=torch.Generator().manual_seed(settings.probe.seed),
        segment_ids=evidence.segment_ids,
    )
