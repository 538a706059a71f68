"""One rollout of PPO: prompts, responses, scores, token rewards, advantages."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.aggregation.transforms import RunningMoments, normalised_scores
from tokencredit.batch import Prompt, ResponseBatch, TokenScorer
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import NumericError
from tokencredit.masking import masked_sum
from tokencredit.policy.advantages import gae_advantages, macro_gae_advantages
from tokencredit.recipes.policy.credit import policy_segments, policy_token_scores
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import on_device
from tokencredit.recipes.policy.views import (
    PolicyView,
    old_view,
    reference_entropies,
    reference_logprobs,
    sampling_support,
    support_of_rows,
)
from tokencredit.scorers.token_scores import score_for_policy
from tokencredit.shaping import kl_estimates, kl_penalised_rewards


@dataclass(frozen=True)
class Experience:
    """A scored batch, ready for updates."""

    batch: ResponseBatch
    truncated: Bool[Tensor, "batch"]
    support: Bool[Tensor, "*#batch vocab"] | None
    old: PolicyView
    entropies: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]
    kl: Float[Tensor, "batch time"]
    sequence_scores: Float[Tensor, "batch"]
    held_out_scores: Float[Tensor, "batch"] | None
    token_scores: Float[Tensor, "batch time"]
    token_rewards: Float[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]


@torch.no_grad()
def scored(
    models: PolicyModels,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    moments: RunningMoments,
    token_scorer: TokenScorer | None,
    conversations: list[Prompt] | None,
    segment_ids: Int[Tensor, "batch time"] | None = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch"]]:
    """Token scores, and the sequence scores as the reward model gave them."""
    if token_scorer is not None:
        token_scores = token_scorer(batch)
        return token_scores, masked_sum(token_scores, batch.response_mask)
    raw: list[Tensor] = []

    def transform(scores: Tensor) -> Tensor:
        raw.append(scores)
        seen = RunningMoments()
        if config.score_normalization == "running":
            seen = moments.updated(raw[0])
        return normalised_scores(scores, mean=seen.mean, std=seen.std, clip=config.score_clip)

    with on_device(
        models.visits, models.reward_model, models.credit.model, models.credit.reference
    ):
        token_scores = policy_token_scores(
            models,
            batch,
            config,
            segment_ids=segment_ids,
            conversations=conversations,
            score_transform=transform,
        )
    return token_scores, raw[0]


def with_truncation(
    token_scores: Float[Tensor, "batch time"],
    batch: ResponseBatch,
    truncated: Bool[Tensor, "batch"],
    config: TrainPolicyConfig,
) -> Float[Tensor, "batch time"]:
    """Token scores with the penalty for responses that did not end, if there is one."""
    penalties = truncated * config.truncation_penalty
    return token_scores - terminal_credit(penalties, batch.response_mask)


@torch.no_grad()
def collected(
    models: PolicyModels,
    model: Callable[..., Any],
    batch: ResponseBatch,
    truncated: Bool[Tensor, "batch"],
    config: TrainPolicyConfig,
    *,
    kl_coef: float,
    moments: RunningMoments,
    autocast: Callable[[], AbstractContextManager[Any]],
    token_scorer: TokenScorer | None = None,
    conversations: list[Prompt] | None = None,
) -> Experience:
    """Score a batch and turn it into what the updates need.

    Raises:
        NumericError: a reward is NaN or infinite.
    """
    support = sampling_support(models, model, batch, config)
    old, entropies = old_view(model, batch, support, config)
    with autocast():
        ref_logprobs = reference_logprobs(models, batch, support, config)
    segment_ids = policy_segments(
        config,
        models.tokenizer,
        batch,
        ref_logprobs,
        lambda: reference_entropies(models, batch, config.micro_batch_size),
    )
    token_scores, sequence_scores = scored(
        models, batch, config, moments, token_scorer, conversations, segment_ids
    )
    kl = kl_estimates(old.logprobs, ref_logprobs, estimator=config.kl_estimator)
    token_rewards = kl_penalised_rewards(
        with_truncation(token_scores, batch, truncated, config),
        kl,
        batch.response_mask,
        kl_coef=kl_coef,
    )
    if not bool(token_rewards.isfinite().all()):
        raise NumericError(
            "a token reward is NaN or infinite; expected finite scores and log-probabilities. "
            "The last checkpoint is whole; look at the reward model and at kl_coef"
        )
    bootstraps = config.truncated == "bootstrap"
    estimator = gae_advantages
    if segment_ids is not None and config.segment_use == "macro-actions":
        estimator = partial(macro_gae_advantages, segment_ids=segment_ids)
    advantages, returns = estimator(
        token_rewards,
        old.values,
        batch.response_mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        bootstrap_values=old.last_values * truncated if bootstraps else None,
    )
    masks_out = truncated if config.truncated == "mask" else torch.zeros_like(truncated)
    return Experience(
        batch=batch,
        truncated=truncated,
        support=support,
        old=old,
        entropies=entropies,
        ref_logprobs=ref_logprobs,
        kl=kl,
        sequence_scores=sequence_scores,
        held_out_scores=held_out_scores(models, batch, conversations, config.micro_batch_size),
        token_scores=token_scores,
        token_rewards=token_rewards,
        loss_mask=batch.response_mask & ~masks_out[:, None],
        advantages=advantages,
        returns=returns,
    )


def held_out_scores(
    models: PolicyModels,
    batch: ResponseBatch,
    conversations: list[Prompt] | None,
    micro_batch_size: int | None,
) -> Float[Tensor, "batch"] | None:
    """Scores of the reward model that the policy never sees."""
    if models.held_out_reward_model is None:
        return None
    with on_device(models.visits, models.held_out_reward_model):
        _, scores = score_for_policy(
            models.held_out_reward_model,
            models.held_out_tokenizer,
            models.tokenizer,
            batch,
            credit="terminal",
            micro_batch_size=micro_batch_size,
            conversations=conversations,
        )
    return scores


def rows_of(experience: Experience, rows: Tensor) -> Experience:
    """The experience of some responses."""

    def part(value: Any) -> Any:
        if isinstance(value, PolicyView):
            return PolicyView(**{k: part(v) for k, v in vars(value).items()})
        return value[rows] if isinstance(value, Tensor | ResponseBatch) else value

    parts = {name: part(value) for name, value in vars(experience).items() if name != "support"}
    return Experience(**parts, support=support_of_rows(experience.support, rows))
