"""What the policy and its reference say about responses, in micro-batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.batch import ResponseBatch
from tokencredit.logprobs import (
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
)
from tokencredit.masking import last_true_index
from tokencredit.models.hf_architecture import config_value
from tokencredit.models.hf_logprobs import response_entropies
from tokencredit.models.hf_shared_beginnings import pass_arguments
from tokencredit.models.hf_short_attention import short_attention
from tokencredit.recipes.policy.models import PolicyModels
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
    return view_and_logits(model, batch, support, temperature)[0]


def view_and_logits(
    model: Callable[..., Any],
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
) -> tuple[PolicyView, Float[Tensor, "batch time vocab"]]:
    """A view of a batch, and the logits of the distribution that each token was drawn from."""
    time = batch.response_ids.shape[1]
    output = model(batch.input_ids, batch.attention_mask, time)
    logits = sampled_logits(
        predicting_positions(output.logits, time), temperature=temperature, allowed=support
    )
    off = ~batch.response_mask
    logprobs = token_logprobs(logits, batch.response_ids).masked_fill(off, 0.0)
    if output.values is None:
        return PolicyView(logprobs), logits
    after_last = last_true_index(batch.response_mask)[:, None] + 1
    view = PolicyView(
        logprobs,
        values=output.values[:, :-1].masked_fill(off, 0.0),
        last_values=output.values.gather(-1, after_last).squeeze(-1),
    )
    return view, logits


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


def support_of_rows(
    support: Bool[Tensor, "*#batch vocab"] | None, rows: slice | Tensor
) -> Bool[Tensor, "*#rows vocab"] | None:
    """What could be drawn in some rows; without top-k and top-p it is the same in all."""
    return support[rows] if support is not None and support.ndim == 3 else support


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
    for part, allowed in parts_of(batch, support, micro_batch_size):
        view, logits = view_and_logits(model, part, allowed, temperature)
        views.append(view)
        found = token_entropies(logits.detach())
        entropies.append(found.masked_fill(~part.response_mask, 0.0))
    joined = {
        name: torch.cat([getattr(view, name) for view in views])
        for name, value in vars(views[0]).items()
        if value is not None
    }
    return PolicyView(**joined), torch.cat(entropies)


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
    time = batch.response_ids.shape[1]
    with short_attention(model, batch.input_ids.shape[1]):
        arguments = pass_arguments(
            model,
            batch.input_ids,
            batch.attention_mask,
            columns=time + 1,
            once=models.actor_critic.reads_beginnings_once,
        )
        logits = model(**arguments, logits_to_keep=time + 1).logits[:, -(time + 1) :]
    return predicting_positions(logits, time)


@torch.no_grad()
def reference_logprobs(
    models: PolicyModels,
    batch: ResponseBatch,
    support: Bool[Tensor, "*#batch vocab"] | None,
    temperature: float,
    micro_batch_size: int | None,
) -> Float[Tensor, "batch time"]:
    """Log-probabilities under the frozen reference, of the same distribution as the policy's."""

    def logprobs(model: Any) -> Float[Tensor, "batch time"]:
        found = []
        for part, allowed in parts_of(batch, support, micro_batch_size):
            logits = sampled_logits(
                reference_logits(models, model, part), temperature=temperature, allowed=allowed
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
