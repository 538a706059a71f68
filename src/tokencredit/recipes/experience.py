"""One rollout of PPO: prompts, responses, scores, token rewards, advantages."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.batch import ResponseBatch, TokenScorer
from tokencredit.credit.terminal import terminal_credit
from tokencredit.errors import NumericError
from tokencredit.hf_logprobs import response_entropies
from tokencredit.logprobs import (
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
)
from tokencredit.masking import last_true_index, masked_sum
from tokencredit.policy.advantages import gae_advantages
from tokencredit.policy.hf_models import ActorCritic, Result, positions_of
from tokencredit.policy.hf_rollout import Sampling, drawable_tokens, sampling_logits
from tokencredit.policy.macro_actions import macro_gae_advantages
from tokencredit.preference.pairs import Prompt
from tokencredit.recipes.policy_config import TrainPolicyConfig
from tokencredit.recipes.policy_credit import CreditModels, policy_segments, policy_token_scores
from tokencredit.recipes.sharding import on_device
from tokencredit.recipes.token_scorer import score_for_policy
from tokencredit.recipes.vllm_rollout import VLLMServer
from tokencredit.shaping import (
    RunningMoments,
    kl_estimates,
    kl_penalised_rewards,
    normalised_scores,
)


@dataclass(frozen=True)
class PolicyModels:
    """Everything that speaks during a rollout.

    Attributes:
        reference: None for a PEFT policy, which is its own with the adapters off.
        server: draws responses in the policy's place; None where it draws them itself.
        visits: the device to which frozen models come from the CPU to be called; None where they
            are on it.
    """

    actor_critic: ActorCritic
    tokenizer: Any
    reference: Any | None
    reward_model: Any
    reward_tokenizer: Any
    held_out_reward_model: Any | None
    held_out_tokenizer: Any | None
    credit: CreditModels = field(default_factory=CreditModels)
    visits: torch.device | None = None
    server: VLLMServer | None = None

    def of_reference(self, call: Callable[[Any], Result]) -> Result:
        """What `call` returns for the reference."""
        if self.reference is None:
            return self.actor_critic.adapters_off(call)
        with on_device(self.visits, self.reference):
            return call(self.reference)


@dataclass(frozen=True)
class PolicyView:
    """What a policy says about responses, zero outside the mask.

    Attributes:
        logprobs: of each response token, in nats.
        values: V(s_t), before each response token.
        last_values: value of the state after the last response token.
    """

    logprobs: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    last_values: Float[Tensor, "batch"]


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


def sampling_of(config: TrainPolicyConfig, eos_token_id: int | None) -> Sampling:
    """How responses are drawn under these settings."""
    without_end = config.response_lengths == "uniform" and eos_token_id is not None
    return Sampling(
        min_new_tokens=config.min_new_tokens,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        suppress_tokens=(eos_token_id,) if without_end and eos_token_id is not None else (),
        force_eos=config.force_eos,
    )


def view_of(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
) -> PolicyView:
    """Log-probabilities and values of a batch under the model as it is now."""
    return _viewed(model, batch, support, temperature)[0]


def _viewed(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
) -> tuple[PolicyView, Float[Tensor, "batch time vocab"]]:
    time = batch.response_ids.shape[1]
    output = model(batch.input_ids, batch.attention_mask, time)
    logits = sampled_logits(
        predicting_positions(output.logits, time), temperature=temperature, allowed=support
    )
    off = ~batch.response_mask
    after_last = last_true_index(batch.response_mask)[:, None] + 1
    view = PolicyView(
        logprobs=token_logprobs(logits, batch.response_ids).masked_fill(off, 0.0),
        values=output.values[:, :-1].masked_fill(off, 0.0),
        last_values=output.values.gather(-1, after_last).squeeze(-1),
    )
    return view, logits


def sampling_support(
    models: PolicyModels, model: Callable[..., Any], batch: ResponseBatch, config: TrainPolicyConfig
) -> Bool[Tensor, "*#batch vocab"] | None:
    """Tokens that could be drawn at each position; None for all, or if log-probs ignore it."""
    if config.logprobs_of == "unmasked":
        return None
    time = batch.response_ids.shape[1]
    sampling = sampling_of(config, models.tokenizer.eos_token_id)
    vocab = models.actor_critic.policy.config.vocab_size
    drawable = drawable_tokens(sampling, vocab, models.tokenizer.eos_token_id)[:time]
    drawable = drawable.to(batch.response_ids.device)
    if not sampling.truncates:
        return None if bool(drawable.all()) else drawable
    parts = []
    for part, _ in _parts(batch, None, config.micro_batch_size):
        logits = model(part.input_ids, part.attention_mask, time).logits
        logits = predicting_positions(logits, time)
        parts.append(sampling_logits(logits, drawable, sampling) > -torch.inf)
    return torch.cat(parts).scatter(-1, batch.response_ids[..., None], True)


def _parts(
    batch: ResponseBatch, support: Bool[Tensor, "*#batch vocab"] | None, size: int | None
) -> Iterator[tuple[ResponseBatch, Bool[Tensor, "*#rows vocab"] | None]]:
    """So many rows at a time, and what could be drawn there; None for all at once."""
    for first in range(0, len(batch), size or len(batch)):
        rows = slice(first, first + (size or len(batch)))
        yield batch[rows], _support_of(support, rows)


def _support_of(
    support: Bool[Tensor, "*#batch vocab"] | None, rows: slice | Tensor
) -> Bool[Tensor, "*#rows vocab"] | None:
    """Of some rows; without top-k and top-p it is the same in all."""
    return support[rows] if support is not None and support.ndim == 3 else support


def _old_view(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    config: TrainPolicyConfig,
) -> tuple[PolicyView, Float[Tensor, "batch time"]]:
    """What the policy that drew the responses says about them, and its entropies."""
    views, entropies = [], []
    for part, allowed in _parts(batch, support, config.micro_batch_size):
        view, logits = _viewed(model, part, allowed, config.temperature)
        views.append(view)
        entropies.append(token_entropies(logits).masked_fill(~part.response_mask, 0.0))
    joined = {
        name: torch.cat([getattr(view, name) for view in views])
        for name in ("logprobs", "values", "last_values")
    }
    return PolicyView(**joined), torch.cat(entropies)


@torch.no_grad()
def reference_logprobs(
    models: PolicyModels,
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    config: TrainPolicyConfig,
) -> Float[Tensor, "batch time"]:
    """Log-probabilities under the frozen reference, of the same distribution as the policy's."""
    time = batch.response_ids.shape[1]

    def logprobs(model: Any) -> Float[Tensor, "batch time"]:
        found = []
        for part, allowed in _parts(batch, support, config.micro_batch_size):
            logits = model(
                input_ids=part.input_ids,
                attention_mask=part.attention_mask,
                position_ids=positions_of(part.attention_mask),
                logits_to_keep=time + 1,
                use_cache=False,
            ).logits[:, -(time + 1) :]
            logits = sampled_logits(
                predicting_positions(logits, time), temperature=config.temperature, allowed=allowed
            )
            found.append(token_logprobs(logits, part.response_ids))
        return torch.cat(found)

    return models.of_reference(logprobs).masked_fill(~batch.response_mask, 0.0)


def reference_entropies(
    models: PolicyModels, batch: ResponseBatch, size: int | None
) -> Float[Tensor, "batch time"]:
    """Entropies of the frozen reference where each response token is drawn."""
    return models.of_reference(
        lambda model: response_entropies(model, batch, micro_batch_size=size)
    )


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
    old, entropies = _old_view(model, batch, support, config)
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
    return Experience(**parts, support=_support_of(experience.support, rows))
