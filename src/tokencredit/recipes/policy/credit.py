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
from tokencredit.scorers.policy_tokens import ScoreTransform
from tokencredit.scorers.served import ServedRewardModel, served_scores
from tokencredit.scorers.token_scores import credited, required_prefix_scores
from tokencredit.shaping import blended_scores
from tokencredit.text.hf_decoding import response_text_segments
from tokencredit.text.pooling import scores_at_segment_ends
from tokencredit.text.segments import (
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
)


def policy_token_scores(
    models: Any,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    *,
    segment_ids: Int[Tensor, "batch time"] | None,
    conversations: list[Prompt] | None,
    score_transform: ScoreTransform,
) -> Float[Tensor, "batch time"]:
    """Token scores by the credit of these settings, segments and the share of the end included.

    Args:
        models: the `PolicyModels` of the run.
        batch: responses of the policy.
        config: the settings.
        segment_ids: of the responses; None where no setting needs them.
        conversations: what was asked, for a reward model that renders it itself.
        score_transform: of sequence scores and then prefix scores, before they are spread.
    """
    attends = config.credit == "attention"
    if isinstance(models.reward_model, ServedRewardModel):
        scores = served_scores(
            models.reward_model,
            batch,
            attention=attends,
            conversations=conversations,
            score_transform=score_transform,
        )
    else:
        scores = policy_scores(
            models.reward_model,
            models.reward_tokenizer,
            models.tokenizer,
            batch,
            attention_layer=config.attention_layer if attends else None,
            micro_batch_size=config.micro_batch_size,
            conversations=conversations,
            score_transform=score_transform,
        )
    token_scores = _credited(models, batch, config, scores, segment_ids)
    if segment_ids is not None and config.segment_use == "pay-at-end":
        token_scores = scores_at_segment_ends(token_scores, segment_ids)
    if config.terminal_share:
        at_the_end = terminal_credit(scores.sequence_scores, batch.response_mask)
        token_scores = blended_scores(token_scores, at_the_end, share=1 - config.terminal_share)
    return token_scores


def _credited(
    models: Any,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    scores: ResponseScores,
    segment_ids: Int[Tensor, "batch time"] | None,
) -> Float[Tensor, "batch time"]:
    mask, own = batch.response_mask, models.credit
    match config.credit:
        case "generator-attention" | "last-generator-attention":
            return attention_credit(
                scores.sequence_scores,
                models.actor_critic.policy_alone(
                    lambda policy: generator_attention(
                        policy,
                        batch,
                        layer=config.attention_layer,
                        kind="mean" if config.credit == "generator-attention" else "last",
                    )
                ),
                mask,
                credit_beta=config.credit_beta,
            )
        case "smoothed-prefix-difference":
            prefixes = required_prefix_scores(config.credit, scores)
            smoothed = smoothed_prefix_scores(prefixes, mask, decay=config.credit_decay)
            return prefix_difference_credit(smoothed, mask)
        case "segment":
            assert segment_ids is not None
            prefixes = required_prefix_scores(config.credit, scores)
            return segment_credit(prefixes, segment_ids, mask)
        case "discriminator":
            return discriminator_credit(token_classifier_logits(own.model, batch), mask)
        case "log-ratio" | "shaped-log-ratio":
            ratio = {"dpo_beta": own.dpo_beta, "clip": config.credit_clip}
            chosen, reference = (
                response_logprobs(model, batch, micro_batch_size=config.micro_batch_size)
                for model in (own.model, own.reference)
            )
            if config.credit == "log-ratio":
                ratios = log_ratio_credit(chosen, reference, mask, **ratio)
                return ratios + terminal_credit(scores.sequence_scores, mask)
            return shaped_log_ratio_credit(scores.sequence_scores, chosen, reference, mask, **ratio)
    return credited(config.credit, scores, mask, credit_beta=config.credit_beta)


def policy_segments(
    config: TrainPolicyConfig,
    tokenizer: Any,
    batch: ResponseBatch,
    ref_logprobs: Float[Tensor, "batch time"],
    ref_entropies: Callable[[], Float[Tensor, "batch time"]],
) -> Int[Tensor, "batch time"] | None:
    """Segments of the responses by the settings; None where there are none.

    Args:
        config: the settings.
        tokenizer: of the policy.
        batch: its responses.
        ref_logprobs: of the response tokens under the reference.
        ref_entropies: of the reference where each response token is drawn, asked for if needed.
    """
    mask = batch.response_mask
    match config.segments:
        case "none":
            return None
        case "ngram":
            return ngram_segments(mask, n=config.segment_length)
        case "random-ngram":
            return random_ngram_segments(mask, generator=torch.default_generator)
        case "perplexity":
            return perplexity_segments(ref_logprobs, mask)
        case "entropy":
            is_eos = batch.response_ids == (
                -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
            )
            return entropy_segments(
                ref_entropies(), mask, threshold=config.segment_entropy, is_eos=is_eos
            )
        case "sentence" | "clause":
            return response_text_segments(tokenizer, batch, kind=config.segments)
