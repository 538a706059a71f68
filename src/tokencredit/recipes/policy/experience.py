"""One rollout of PPO: prompts, responses, scores, token rewards, advantages."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.aggregation.transforms import RunningMoments
from tokencredit.batch import Prompt, ResponseBatch, TokenScorer
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import NumericError
from tokencredit.masking import masked_sum
from tokencredit.policy.advantages import gae_advantages, macro_gae_advantages
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
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.segmentation import response_segments
from tokencredit.scorers.sources import PaidResponses
from tokencredit.shaping import kl_estimates, kl_penalised_rewards


@dataclass(frozen=True)
class Experience:
    """A scored batch, ready for updates.

    `source_scores` are those of each source of reward, as it gave them; `sequence_scores` are the
    same, combined.
    """

    batch: ResponseBatch
    truncated: Bool[Tensor, "batch"]
    support: Bool[Tensor, "*#batch vocab"] | None
    old: PolicyView
    entropies: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]
    kl: Float[Tensor, "batch time"]
    sequence_scores: Float[Tensor, "batch"]
    source_scores: dict[str, Float[Tensor, "batch"]]
    held_out_scores: Float[Tensor, "batch"] | None
    token_scores: Float[Tensor, "batch time"]
    token_rewards: Float[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]


@torch.no_grad()
def scores_of(
    models: PolicyModels,
    responses: Responses,
    moments: Mapping[str, RunningMoments],
    *,
    token_scorer: TokenScorer | None,
) -> PaidResponses:
    """Scores of responses: as each source of reward gave them, combined, and on their tokens."""
    batch = responses.batch
    if token_scorer is not None:
        token_scores = token_scorer(batch)
        sums = masked_sum(token_scores, batch.response_mask)
        return PaidResponses({"reward": sums}, sums, token_scores)
    with on_device(models.visits, *models.rewards.modules):
        return models.rewards.paid(
            responses, moments=moments, ask_policy=models.actor_critic.policy_alone
        )


def with_truncation(
    token_scores: Float[Tensor, "batch time"],
    batch: ResponseBatch,
    truncated: Bool[Tensor, "batch"],
    *,
    penalty: float,
) -> Float[Tensor, "batch time"]:
    """Token scores with the penalty for responses that did not end, if there is one."""
    return token_scores - terminal_credit(truncated * penalty, batch.response_mask)


@torch.no_grad()
def experience_of(
    models: PolicyModels,
    model: Callable[..., Any],
    batch: ResponseBatch,
    truncated: Bool[Tensor, "batch"],
    config: TrainPolicyConfig,
    *,
    kl_coef: float,
    moments: Mapping[str, RunningMoments],
    autocast: Callable[[], AbstractContextManager[Any]],
    token_scorer: TokenScorer | None = None,
    conversations: list[Prompt] | None = None,
) -> Experience:
    """What the updates need of a batch: its scores, token rewards, advantages.

    Raises:
        NumericError: a reward is NaN or infinite.
    """
    temperature, size = config.sampling.temperature, config.algorithm.micro_batch_size
    support = sampling_support(models, model, batch, config.sampling, size)
    old, entropies = old_view(model, batch, support, temperature, size)
    with autocast():
        ref_logprobs = reference_logprobs(models, batch, support, temperature, size)
    segment_ids = response_segments(
        config.segments,
        models.tokenizer,
        batch,
        ref_logprobs=lambda: ref_logprobs,
        ref_entropies=lambda: reference_entropies(models, batch, size),
    )
    responses = Responses(batch, conversations, segment_ids=segment_ids)
    scores = scores_of(models, responses, moments, token_scorer=token_scorer)
    kl = kl_estimates(old.logprobs, ref_logprobs, estimator=config.kl.estimator)
    penalty = config.sampling.truncation_penalty
    token_rewards = kl_penalised_rewards(
        with_truncation(scores.token_scores, batch, truncated, penalty=penalty),
        kl,
        batch.response_mask,
        kl_coef=kl_coef,
    )
    if not bool(token_rewards.isfinite().all()):
        raise NumericError(
            "a token reward is NaN or infinite; expected finite scores and log-probabilities. "
            "The last checkpoint is whole; look at the reward model and at kl.coef"
        )
    advantages, returns = advantages_and_returns(
        token_rewards, old, batch.response_mask, segment_ids, truncated, config
    )
    masks_out = config.sampling.truncated == "mask"
    left_out = truncated if masks_out else torch.zeros_like(truncated)
    return Experience(
        batch=batch,
        truncated=truncated,
        support=support,
        old=old,
        entropies=entropies,
        ref_logprobs=ref_logprobs,
        kl=kl,
        sequence_scores=scores.sequence_scores,
        source_scores=scores.raw,
        held_out_scores=held_out_scores(models, batch, conversations),
        token_scores=scores.token_scores,
        token_rewards=token_rewards,
        loss_mask=batch.response_mask & ~left_out[:, None],
        advantages=advantages,
        returns=returns,
    )


def advantages_and_returns(
    token_rewards: Float[Tensor, "batch time"],
    old: PolicyView,
    response_mask: Bool[Tensor, "batch time"],
    segment_ids: Int[Tensor, "batch time"] | None,
    truncated: Bool[Tensor, "batch"],
    config: TrainPolicyConfig,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Advantages of tokens or of macro actions, and the returns that the critic learns."""
    bootstraps = config.sampling.truncated == "bootstrap"
    estimator = gae_advantages
    if segment_ids is not None and config.segments.use == "macro-actions":
        estimator = partial(macro_gae_advantages, segment_ids=segment_ids)
    return estimator(
        token_rewards,
        old.values,
        response_mask,
        gamma=config.algorithm.gamma,
        gae_lambda=config.algorithm.gae_lambda,
        bootstrap_values=old.last_values * truncated if bootstraps else None,
    )


def held_out_scores(
    models: PolicyModels, batch: ResponseBatch, conversations: list[Prompt] | None
) -> Float[Tensor, "batch"] | None:
    """Scores of the reward model that the policy never sees."""
    if models.held_out is None:
        return None
    with on_device(models.visits, models.held_out.model):
        return models.held_out(batch, conversations=conversations).sequence_scores


def rows_of(experience: Experience, rows: Tensor) -> Experience:
    """The experience of some responses."""

    def part(value: Any) -> Any:
        if isinstance(value, PolicyView):
            return PolicyView(**{k: part(v) for k, v in vars(value).items()})
        if isinstance(value, dict):
            return {k: part(v) for k, v in value.items()}
        return value[rows] if isinstance(value, Tensor | ResponseBatch) else value

    parts = {name: part(value) for name, value in vars(experience).items() if name != "support"}
    return Experience(**parts, support=support_of_rows(experience.support, rows))
