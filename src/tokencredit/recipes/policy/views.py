"""What the policy and its reference say about responses, in micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.batch import ResponseBatch
from tokencredit.logprobs import (
    drawn_entropies,
    drawn_logprobs,
    predicting_positions,
    sampled_logits,
)
from tokencredit.masking import last_true_index
from tokencredit.models.hf_architecture import config_value
from tokencredit.models.hf_logprobs import response_entropies
from tokencredit.models.hf_passes import tokens_per_pass
from tokencredit.models.hf_shared_beginnings import pass_arguments, takes_beginnings
from tokencredit.models.hf_short_attention import short_attention
from tokencredit.policy.hf_models import ActorCritic, last_columns
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.passes import (
    OnePass,
    passes_of,
    put_together,
    support_of_rows,
)
from tokencredit.recipes.policy.setting_groups import SamplingSettings, sampling_of
from tokencredit.sampling import drawable_tokens, sampling_logits


@dataclass(frozen=True)
class PolicyView:
    """What a policy says about responses, zero outside the mask.

    Attributes:
        logprobs: of each response token, in nats.
        values: V(s_t), before each response token; None without a critic.
        last_values: value of the state after the last response token; likewise.
    """

    logprobs: Float[Tensor, "batch time"]
    # `| Any`, since who reads values knows that there is a critic.
    values: Float[Tensor, "batch time"] | Any = None
    last_values: Float[Tensor, "batch"] | Any = None

    def detached(self) -> "PolicyView":
        """This view without its graph."""
        if self.values is None:
            return PolicyView(self.logprobs.detach())
        return PolicyView(self.logprobs.detach(), self.values.detach(), self.last_values.detach())


@dataclass(frozen=True)
class SoftTargets:
    """What a policy is compared with in soft Q-learning, in nats at a price of 1; all constants.

    Attributes:
        log_ratios: of the target network to the reference, or its log-probabilities.
        values: of the target network, before each response token.
        rewards: of the tokens.
        ref_logprobs: of the reference; 0 where the price is one of entropy.
        ref_normalisers: logarithm of the sum of its exponentiated logits; likewise.
    """

    log_ratios: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    rewards: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]
    ref_normalisers: Float[Tensor, "batch time"]


def view_of(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
) -> PolicyView:
    """Log-probabilities and values of a batch under the model as it is now."""
    passes = passes_through(model, batch, support)
    views = [_seen(model, one.batch, one.support, temperature)[0] for one in passes]
    return _joined(views, passes, batch.response_ids.shape[1])


def view_and_logits(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
) -> tuple[PolicyView, Float[Tensor, "batch time vocab"]]:
    """A view of a batch, and the logits of the distribution that each token was drawn from."""
    view, own = _seen(model, batch, support, temperature)
    logits = predicting_positions(own, batch.response_ids.shape[1])
    return view, sampled_logits(logits, temperature=temperature, allowed=support)


def _seen(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
) -> tuple[PolicyView, Float[Tensor, "batch time_plus_1 vocab"]]:
    """A view of a batch, and the model's own logits."""
    time = batch.response_ids.shape[1]
    output = model(batch.input_ids, batch.attention_mask, time)
    off = ~batch.response_mask
    logprobs = drawn_logprobs(
        output.logits, batch.response_ids, temperature=temperature, allowed=support
    ).masked_fill(off, 0.0)
    if output.values is None:
        return PolicyView(logprobs), output.logits
    after_last = last_true_index(batch.response_mask)[:, None] + 1
    view = PolicyView(
        logprobs,
        values=output.values[:, :-1].masked_fill(off, 0.0),
        last_values=output.values.gather(-1, after_last).squeeze(-1),
    )
    return view, output.logits


def sampling_support(
    models: PolicyModels,
    model: Callable[..., Any],
    batch: ResponseBatch,
    settings: SamplingSettings,
    micro_batch_size: int | None,
) -> Bool[Tensor, "*#batch vocab"] | None:
    """Tokens that could be drawn at each position; None for all, or if log-probs ignore it."""
    if settings.logprobs_of == "unmasked":
        return None
    time = batch.response_ids.shape[1]
    sampling = sampling_of(settings, end_ids=models.reading.turn_ends, undrawable=models.undrawable)
    vocab = config_value(models.actor_critic.policy, "vocab_size")
    drawable = drawable_tokens(sampling, vocab, models.reading.turn_ends)[:time]
    drawable = drawable.to(batch.response_ids.device)
    if not sampling.truncates:
        return None if bool(drawable.all()) else drawable
    parts = []
    for part, _ in parts_of(batch, None, micro_batch_size):
        logits = model(part.input_ids, part.attention_mask, time).logits
        logits = predicting_positions(logits, time)
        parts.append(sampling_logits(logits, drawable, sampling) > -torch.inf)
    return torch.cat(parts).scatter(-1, batch.response_ids[..., None], True)


def parts_of(
    batch: ResponseBatch, support: Bool[Tensor, "*#batch vocab"] | None, size: int | None
) -> Iterator[tuple[ResponseBatch, Bool[Tensor, "*#rows vocab"] | None]]:
    """Rows of a batch, `size` at a time, and what could be drawn there; None for all at once."""
    for first in range(0, len(batch), size or len(batch)):
        rows = slice(first, first + (size or len(batch)))
        yield batch[rows], support_of_rows(support, rows)


def reads_alone(model: Any) -> bool:
    """Whether a policy with its critic may make other passes than its likes in other processes."""
    return isinstance(model, ActorCritic) and model.reads_beginnings_once


def begins_once(model: Any, batch: ResponseBatch) -> bool:
    """Whether a policy with its critic may read once what rows of a batch begin with."""
    return reads_alone(model) and takes_beginnings(model.policy, batch.input_ids.shape[1])


def passes_through(
    model: Any,
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    *,
    size: int | None = None,
) -> list[OnePass]:
    """The passes in which a policy with its critic reads a batch.

    What Accelerate wraps or shards reads as many rows in every process, and so no fewer than asked.

    Args:
        model: the policy with its critic, as it is wrapped or not.
        batch: the responses.
        support: what could be drawn in their places.
        size: rows of a pass at most.
    """
    return passes_of(
        batch,
        support,
        size=size,
        tokens=tokens_per_pass(model) if reads_alone(model) else None,
        beginnings_once=begins_once(model, batch),
    )


def _joined(views: Sequence[PolicyView], passes: Sequence[OnePass], time: int) -> PolicyView:
    """The views of all passes as one."""
    return PolicyView(
        **{
            name: put_together([getattr(view, name) for view in views], passes, time)
            for name, value in vars(views[0]).items()
            if value is not None
        }
    )


def old_view(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
    micro_batch_size: int | None,
) -> tuple[PolicyView, Float[Tensor, "batch time"]]:
    """What the policy that drew the responses says about them, and its entropies.

    The view has a graph where gradients are enabled.
    """
    views, entropies = [], []
    passes = passes_through(model, batch, support, size=micro_batch_size)
    for one in passes:
        view, logits = _seen(model, one.batch, one.support, temperature)
        views.append(view)
        mask = one.batch.response_mask
        found = drawn_entropies(logits, mask.shape[1], temperature=temperature, allowed=one.support)
        entropies.append(found.masked_fill(~mask, 0.0))
    time = batch.response_ids.shape[1]
    return _joined(views, passes, time), put_together(entropies, passes, time)


@torch.no_grad()
def reference_logits(
    models: PolicyModels, model: Any, batch: ResponseBatch
) -> Float[Tensor, "batch time vocab"]:
    """Logits of the frozen reference where each response token is predicted.

    Args:
        models: of the run.
        model: the reference, as `PolicyModels.of_reference` hands it out.
        batch: the responses.
    """
    return predicting_positions(_own_logits(models, model, batch), batch.response_ids.shape[1])


def _own_logits(
    models: PolicyModels, model: Any, batch: ResponseBatch
) -> Float[Tensor, "batch time_plus_1 vocab"]:
    """Logits of the frozen reference, one column more than there are response tokens."""
    time = batch.response_ids.shape[1]
    with short_attention(model, batch.input_ids.shape[1]):
        arguments = pass_arguments(
            model,
            batch.input_ids,
            batch.attention_mask,
            columns=time + 1,
            once=models.actor_critic.reads_beginnings_once,
        )
        logits: Tensor = model(**arguments, logits_to_keep=time + 1).logits
    return last_columns(logits, time + 1)


@torch.no_grad()
def reference_logprobs(
    models: PolicyModels,
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
    micro_batch_size: int | None,
) -> Float[Tensor, "batch time"]:
    """Log-probabilities under the frozen reference, of the same distribution as the policy's."""
    once = models.actor_critic.reads_beginnings_once

    def logprobs(model: Any) -> Float[Tensor, "batch time"]:
        passes = passes_of(
            batch,
            support,
            size=micro_batch_size,
            tokens=tokens_per_pass(model) if once else None,
            beginnings_once=once and takes_beginnings(model, batch.input_ids.shape[1]),
        )
        found = [
            drawn_logprobs(
                _own_logits(models, model, one.batch),
                one.batch.response_ids,
                temperature=temperature,
                allowed=one.support,
            )
            for one in passes
        ]
        return put_together(found, passes, batch.response_ids.shape[1])

    return models.of_reference(logprobs).masked_fill(~batch.response_mask, 0.0)


def reference_entropies(
    models: PolicyModels, batch: ResponseBatch, size: int | None
) -> Float[Tensor, "batch time"]:
    """Entropies of the frozen reference where each response token is drawn."""
    return models.of_reference(
        lambda model: response_entropies(model, batch, micro_batch_size=size)
    )
