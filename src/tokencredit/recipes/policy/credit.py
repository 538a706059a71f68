"""From responses of a policy to their token scores, by the settings of `train-policy`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.credit.implicit import log_ratio_credit, shaped_log_ratio_credit
from tokencredit.credit.prefixes import prefix_difference_credit, smoothed_prefix_scores
from tokencredit.credit.redistribution import attention_credit, terminal_credit
from tokencredit.credit.segments import segment_credit
from tokencredit.credit.token_judges import discriminator_credit
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.reward_model.hf_token_classifier import token_classifier_logits
from tokencredit.scorers.evidence import generator_attention
from tokencredit.scorers.local import policy_scores
from tokencredit.scorers.served import ServedRewardModel, served_scores
from tokencredit.scorers.token_scores import credited, required_prefix_scores
from tokencredit.shaping import blended_scores
from tokencredit.text.hf_decoding import response_text_segments
from tokencredit.text.pooling import scores_at_segment_ends
from tokencredit.text.segments import (
    SegmentSettings,
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
)


def reward_scores(
    models: Any,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    *,
    conversations: list[Prompt] | None,
) -> ResponseScores:
    """What the reward model says of responses, as far as the credit of these settings needs it.

    Args:
        models: the `PolicyModels` of the run.
        batch: responses of the policy.
        config: the settings.
        conversations: what was asked, for a reward model that renders it itself.
    """
    attends = config.credit.method == "attention"
    if isinstance(models.reward_model, ServedRewardModel):
        return served_scores(
            models.reward_model, batch, attention=attends, conversations=conversations
        )
    return policy_scores(
        models.reward_model,
        models.reward_tokenizer,
        models.tokenizer,
        batch,
        attention_layer=config.credit.layer if attends else None,
        micro_batch_size=config.algorithm.micro_batch_size,
        conversations=conversations,
    )


def policy_token_scores(
    models: Any,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    scores: ResponseScores,
    *,
    segment_ids: Int[Tensor, "batch time"] | None,
) -> Float[Tensor, "batch time"]:
    """Token scores by the credit of these settings, segments and the share of the end included.

    Args:
        models: the `PolicyModels` of the run.
        batch: responses of the policy.
        config: the settings.
        scores: of the responses, normalised and clipped.
        segment_ids: of the responses; None where no setting needs them.
    """
    token_scores = _credited(models, batch, config, scores, segment_ids)
    if segment_ids is not None and config.segments.use == "pay-at-end":
        token_scores = scores_at_segment_ends(token_scores, segment_ids)
    if config.credit.terminal_share:
        at_the_end = terminal_credit(scores.sequence_scores, batch.response_mask)
        share = 1 - config.credit.terminal_share
        token_scores = blended_scores(token_scores, at_the_end, share=share)
    return token_scores


def _credited(
    models: Any,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    scores: ResponseScores,
    segment_ids: Int[Tensor, "batch time"] | None,
) -> Float[Tensor, "batch time"]:
    mask, own = batch.response_mask, models.credit
    match config.credit.method:
        case "generator-attention" | "last-generator-attention":
            return attention_credit(
                scores.sequence_scores,
                models.actor_critic.policy_alone(
                    lambda policy: generator_attention(
                        policy,
                        batch,
                        layer=config.credit.layer,
                        kind="mean" if config.credit.method == "generator-attention" else "last",
                    )
                ),
                mask,
                credit_beta=config.credit.beta,
            )
        case "smoothed-prefix-difference":
            prefixes = required_prefix_scores(config.credit.method, scores)
            smoothed = smoothed_prefix_scores(prefixes, mask, decay=config.credit.decay)
            return prefix_difference_credit(smoothed, mask)
        case "segment":
            assert segment_ids is not None
            prefixes = required_prefix_scores(config.credit.method, scores)
            return segment_credit(prefixes, segment_ids, mask)
        case "discriminator":
            return discriminator_credit(token_classifier_logits(own.model, batch), mask)
        case "log-ratio" | "shaped-log-ratio":
            ratio = {"dpo_beta": own.dpo_beta, "clip": config.credit.clip}
            chosen, reference = (
                response_logprobs(model, batch, micro_batch_size=config.algorithm.micro_batch_size)
                for model in (own.model, own.reference)
            )
            if config.credit.method == "log-ratio":
                ratios = log_ratio_credit(chosen, reference, mask, **ratio)
                return ratios + terminal_credit(scores.sequence_scores, mask)
            return shaped_log_ratio_credit(scores.sequence_scores, chosen, reference, mask, **ratio)
    return credited(config.credit.method, scores, mask, credit_beta=config.credit.beta)


def policy_segments(
    settings: SegmentSettings,
    tokenizer: Any,
    batch: ResponseBatch,
    ref_logprobs: Float[Tensor, "batch time"],
    ref_entropies: Callable[[], Float[Tensor, "batch time"]],
) -> Int[Tensor, "batch time"] | None:
    """Segments of the responses by the settings; None where there are none.

    Args:
        settings: how to cut.
        tokenizer: of the policy.
        batch: its responses.
        ref_logprobs: of the response tokens under the reference.
        ref_entropies: of the reference where each response token is drawn, asked for if needed.
    """
    mask = batch.response_mask
    match settings.kind:
        case "none":
            return None
        case "ngram":
            return ngram_segments(mask, n=settings.length)
        case "random-ngram":
            return random_ngram_segments(mask, generator=torch.default_generator)
        case "perplexity":
            return perplexity_segments(ref_logprobs, mask)
        case "entropy":
            is_eos = batch.response_ids == (
                -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
            )
            return entropy_segments(
                ref_entropies(), mask, threshold=settings.entropy, is_eos=is_eos
            )
        case "sentence" | "clause":
            return response_text_segments(tokenizer, batch, kind=settings.kind)
