"""From responses of a policy to their token scores, by the settings of `train-policy`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokencredit.aggregation import blended_scores, scores_at_segment_ends
from tokencredit.batch import ResponseBatch
from tokencredit.credit.discriminator import discriminator_credit
from tokencredit.credit.log_ratio import log_ratio_credit, shaped_log_ratio_credit
from tokencredit.credit.prefix_difference import prefix_difference_credit
from tokencredit.credit.prefix_potentials import smoothed_prefix_scores
from tokencredit.credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
)
from tokencredit.credit.segment import segment_credit
from tokencredit.credit.terminal import terminal_credit
from tokencredit.errors import ModelError
from tokencredit.hf_attention import recorded_attention
from tokencredit.hf_loading import load_model, load_tokenizer
from tokencredit.hf_logprobs import require_same_vocabulary, response_logprobs
from tokencredit.hf_segments import response_text_segments
from tokencredit.policy.hf_models import positions_of
from tokencredit.preference.pairs import Prompt
from tokencredit.recipes.implicit_scores import stored_reference
from tokencredit.recipes.policy_config import TrainPolicyConfig
from tokencredit.recipes.policy_tokens import ScoreTransform
from tokencredit.recipes.reward_server import ServedRewardModel, served_scores
from tokencredit.recipes.token_scorer import (
    credited,
    policy_scores,
    required_prefix_scores,
)
from tokencredit.reward_model.hf_backbone import ResponseScores
from tokencredit.reward_model.hf_token_classifier import (
    load_token_classifier,
    token_classifier_logits,
)
from tokencredit.segments import (
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
)


@dataclass(frozen=True)
class CreditModels:
    """What speaks besides the reward model.

    Attributes:
        model: a policy trained by DPO, or a token classifier; None where no credit needs one.
        reference: of the first.
        dpo_beta: price of its log-ratio.
    """

    model: Any | None = None
    reference: Any | None = None
    dpo_beta: float = 1.0


def credit_models(
    config: TrainPolicyConfig, policy_tokenizer: Any, frozen: dict[str, Any]
) -> CreditModels:
    """Load what the credit needs besides the reward model.

    Raises:
        ModelError: it is not there, has another vocabulary than the policy, or another head.
        ConfigError: no reference of the log-ratio is known.
    """
    if config.credit_model is None:
        return CreditModels()
    if config.credit == "discriminator":
        model, tokenizer = load_token_classifier(config.credit_model, **frozen)
        require_same_vocabulary(policy_tokenizer, tokenizer, argument="credit_model")
        if model.config.num_labels != 2:
            raise ModelError(
                f"credit_model {config.credit_model} has {model.config.num_labels} classes; "
                "expected two, worse and better: train it with `--labels edits`"
            )
        return CreditModels(model.requires_grad_(False))
    for name in filter(None, (config.credit_model, config.credit_reference)):
        tokenizer = load_tokenizer(name, trust_remote_code=config.trust_remote_code)
        require_same_vocabulary(policy_tokenizer, tokenizer, argument="credit_model")
    model = load_model(AutoModelForCausalLM, config.credit_model, **frozen)
    reference_name, dpo_beta = stored_reference(
        model.config, reference=config.credit_reference, dpo_beta=config.credit_dpo_beta
    )
    reference = load_model(AutoModelForCausalLM, reference_name, **frozen)
    return CreditModels(model.requires_grad_(False), reference.requires_grad_(False), dpo_beta)


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
                    lambda policy: generator_attention(policy, batch, config)
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


def generator_attention(
    policy: Any, batch: ResponseBatch, config: TrainPolicyConfig
) -> Float[Tensor, "batch time"]:
    """Credit weights from the policy's own attention (ABC-D, ABC-D2)."""
    start, time = batch.prompt_ids.shape[1], batch.response_ids.shape[1]
    rows = (start + torch.arange(time, device=batch.response_ids.device)).expand(len(batch), -1)
    mask = batch.attention_mask
    with recorded_attention(policy, rows, mask, layer=config.attention_layer) as record:
        policy(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=positions_of(mask),
            logits_to_keep=1,
            use_cache=False,
        )
    attention = record.rows[:, :, start:]
    if config.credit == "generator-attention":
        return mean_attention_received(attention, batch.response_mask)
    return last_attention_received(attention, batch.response_mask)
