"""Distillation at the token: what teachers say of every next token, as losses of a policy.

A teacher speaks about *events*: every token of the vocabulary, or its likeliest tokens alone and,
as one last event, all the others together (`kept_logprobs`). The others keep what is left, so that
a divergence over events is one of true distributions, and is the full one where all tokens are
kept.

The functions over logits take a few columns at a time; no more than one chunk of the vocabulary
stands in float32, in the backward pass too. Those over events are what they are made of.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.policy.losses.divergences import by_chunks, in_float32

Adaptive = Literal["distance", "credit", "none"]
Anchor = Literal["teacher", "reference"]
Scaling = Literal["inverse", "even"]

LEAST_EXTRAPOLATION = 1e-3
"""Added to an adaptive extrapolation, by which the loss is divided."""


def distilled_alignment_losses(
    policy_logits: Float[Tensor, "batch time vocab"],
    teacher_logits: Float[Tensor, "batch time vocab"],
    ref_logits: Float[Tensor, "batch time vocab"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    dpo_beta: float = 0.1,
    extrapolation: float = 10.0,
    adaptive: Adaptive = "distance",
    magnitudes: Float[Tensor, "batch time"] | None = None,
    anchor: Anchor = "teacher",
    scaling: Scaling = "inverse",
    top_k: int = 0,
    chunk_size: int = 512,
) -> Float[Tensor, "batch time"]:
    """KL of the policy from what two teachers together call for, at each token (AlignDistil).

        p*_t ∝ p_teacher (p_teacher / p_ref)^{w_t},   w_t = λ Σ_a |p_teacher(a) − p_ref(a)| + 0.001
        L_t = (β / w_t) KL(π(· | s_t) || p*_t)

    Where the teachers differ the target goes further, and the loss weighs less.

    Args:
        policy_logits: of the policy in training, in any precision.
        teacher_logits: of the aligned teacher, for example one that DPO trained; constants.
        ref_logits: of what the teacher is held against: one that DPO trained on pairs turned
            around, or its own start; constants.
        response_mask: True on response tokens; anything may stand outside.
        dpo_beta: β, of the training of the teacher.
        extrapolation: λ, how far the target goes; without adaptation w_t itself.
        adaptive: what w_t follows: the "distance" of the teachers; "credit", whose size stands in
            the place of the distance; or "none" for the same w everywhere.
        magnitudes: with "credit", for example `magnitude_weights` of any credit, mean one.
        anchor: what is multiplied by the ratio: the "teacher", or the "reference", for which w = 1
            is the teacher.
        scaling: "inverse" for β / w_t, "even" for 1.
        top_k: tokens kept of the teacher's distribution, the rest as one; 0 keeps all.
        chunk_size: tokens of which the vocabulary stands in float32 at the same time.

    Returns:
        Float32, zero outside the mask, never negative but for rounding.

    Raises:
        ConfigError: `top_k` does not fit the vocabulary, a number is out of its range, or
            magnitudes are missing, or there without use.

    Source: Zhang et al. 2025, arXiv 2503.02832, as their code has it (f80ca4e): the adaptive form
    with λ 15 on responses drawn from the policy, 10 on chosen ones, and the mean over tokens. Its
    `theorem1` is `anchor="reference", adaptive="none"` with w = β / β₂. A note on the paper has the
    other direction of both the weight and the divergence. There no tokens are left out, and the
    first token of a response is not learnt.

    >>> policy, teacher = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]])
    >>> mask = torch.ones(1, 1, dtype=torch.bool)
    >>> distilled_alignment_losses(policy, teacher, policy, mask, adaptive="none", scaling="even",
    ...     extrapolation=1.0)
    tensor([[0.4338]])
    """
    _require_positive(dpo_beta=dpo_beta, extrapolation=extrapolation)
    if (adaptive == "credit") != (magnitudes is not None):
        raise ConfigError(
            f"adaptive is {adaptive!r} and magnitudes are "
            f"{'not given' if magnitudes is None else 'given'}; expected both for 'credit', or "
            "neither"
        )
    kept = require_kept(top_k, policy_logits.shape[-1])

    def losses(policy: Tensor, teacher: Tensor, ref: Tensor, *credit: Tensor) -> Tensor:
        token_ids = likeliest_tokens(teacher, kept)
        return aligned_losses(
            *(kept_logprobs(one, token_ids) for one in (policy, teacher, ref)),
            dpo_beta=dpo_beta,
            extrapolation=extrapolation,
            adaptive=adaptive,
            magnitudes=credit[0] if credit else None,
            anchor=anchor,
            scaling=scaling,
        )

    further = [] if magnitudes is None else [magnitudes.detach()]
    parts = [policy_logits, teacher_logits.detach(), ref_logits.detach(), *further]
    return _inside(losses, parts, response_mask, chunk_size)


def teacher_divergences(
    policy_logits: Float[Tensor, "batch time vocab"],
    teacher_logits: Float[Tensor, "batch time vocab"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    top_k: int = 0,
    chunk_size: int = 512,
) -> Float[Tensor, "batch time"]:
    """KL of a teacher from the policy at each token: the policy learns to say what it would (DCKD).

        k_t = Σ_a p_teacher(a | s_t) (log p_teacher(a | s_t) − log π(a | s_t))

    Args:
        policy_logits: of the policy in training, in any precision.
        teacher_logits: constants.
        response_mask: True on response tokens; anything may stand outside.
        top_k: tokens kept of the teacher's distribution, the rest as one; 0 keeps all.
        chunk_size: tokens of which the vocabulary stands in float32 at the same time.

    Returns:
        Float32, in nats, zero outside the mask, never negative but for rounding.

    Raises:
        ConfigError: `top_k` does not fit the vocabulary.

    Source: Gao et al. 2025, arXiv 2502.17927, the divergence of DCKD on chosen and on rejected
    responses; a copy of their trainer keeps 50 tokens and the rest as one.

    >>> policy, teacher = torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.0, -100.0]]])
    >>> teacher_divergences(policy, teacher, torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.4055]])
    """
    kept = require_kept(top_k, policy_logits.shape[-1])

    def divergences(policy: Tensor, teacher: Tensor) -> Tensor:
        token_ids = likeliest_tokens(teacher, kept)
        return forward_kls(*(kept_logprobs(one, token_ids) for one in (policy, teacher)))

    return _inside(divergences, [policy_logits, teacher_logits.detach()], response_mask, chunk_size)


def expected_teacher_advantages(
    policy_logits: Float[Tensor, "batch time vocab"],
    teacher_logits: Float[Tensor, "batch time vocab"],
    ref_logits: Float[Tensor, "batch time vocab"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    advantage_clip: tuple[float, float] | None = None,
    top_k: int = 0,
    chunk_size: int = 512,
) -> Float[Tensor, "batch time"]:
    """What the policy may expect of its next token by the log-ratio of a teacher (ADPA).

        e_t = Σ_a π(a | s_t) A(s_t, a)
        A(s_t, a) = clip( log p_teacher(a | s_t) − log p_ref(a | s_t) )

    The credit by log-ratio of every token that could stand there. To be raised: its negative is the
    loss. A policy that puts everything on few tokens gets the most, so something has to hold it.

    Args:
        policy_logits: of the policy in training, in any precision.
        teacher_logits: of a teacher that DPO trained; constants.
        ref_logits: of the model that the teacher started from; constants.
        response_mask: True on response tokens; anything may stand outside.
        advantage_clip: the least and the largest A, in nats; None for any. The published code has
            (0, 1), by which bad tokens are not pushed down.
        top_k: tokens kept, the likeliest of the teacher; all others have A = 0. 0 keeps all.
        chunk_size: tokens of which the vocabulary stands in float32 at the same time.

    Returns:
        Float32, in nats, zero outside the mask.

    Raises:
        ConfigError: `top_k` does not fit the vocabulary, or the ends of `advantage_clip` are not
            in order.

    Source: Gao et al. 2025, arXiv 2502.17927, with a copy of their trainer: no β, 50 tokens. There
    a token that the reference's list lacks takes the least probability of the teacher's list; here
    it has its own.

    >>> policy, teacher = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 3.0]]])
    >>> mask = torch.ones(1, 1, dtype=torch.bool)
    >>> expected_teacher_advantages(policy, teacher, policy, mask)
    tensor([[-0.8554]])
    >>> expected_teacher_advantages(policy, teacher, policy, mask, advantage_clip=(0.0, 1.0))
    tensor([[0.3223]])
    """
    require_in_order(advantage_clip)
    kept = require_kept(top_k, policy_logits.shape[-1])

    def advantages(policy: Tensor, teacher: Tensor, ref: Tensor) -> Tensor:
        token_ids = likeliest_tokens(teacher, kept)
        events = (kept_logprobs(one, token_ids) for one in (policy, teacher, ref))
        return expected_advantages(*events, kept=kept, advantage_clip=advantage_clip)

    parts = [policy_logits, teacher_logits.detach(), ref_logits.detach()]
    return _inside(advantages, parts, response_mask, chunk_size)


def likeliest_tokens(
    logits: Float[Tensor, "*batch vocab"], kept: int
) -> Int[Tensor, "*batch kept"] | None:
    """Ids of the likeliest tokens, the likeliest first; None where all are kept."""
    return None if kept == logits.shape[-1] else logits.topk(kept).indices


def kept_logprobs(
    logits: Float[Tensor, "*batch vocab"], token_ids: Int[Tensor, "*batch kept"] | None
) -> Float[Tensor, "*batch events"]:
    """Log-probabilities of some tokens and, as the last event, of all others together.

    Args:
        logits: in any precision.
        token_ids: of the tokens, each once; None for all, in order.

    Returns:
        Float32; one entry for each token, and one more for the others if there are any.

    >>> kept_logprobs(torch.zeros(4), torch.tensor([2])).exp()
    tensor([0.2500, 0.7500])
    """
    logprobs = in_float32(logits).log_softmax(-1)
    if token_ids is None:
        return logprobs
    kept = logprobs.gather(-1, token_ids)
    if token_ids.shape[-1] == logits.shape[-1]:
        return kept
    others = logprobs.scatter(-1, token_ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([kept, others], dim=-1)


def aligned_losses(
    policy_logprobs: Float[Tensor, "*batch events"],
    teacher_logprobs: Float[Tensor, "*batch events"],
    ref_logprobs: Float[Tensor, "*batch events"],
    *,
    dpo_beta: float,
    extrapolation: float,
    adaptive: Adaptive,
    magnitudes: Float[Tensor, "*batch"] | None,
    anchor: Anchor,
    scaling: Scaling,
) -> Float[Tensor, "*batch"]:
    """`distilled_alignment_losses` of log-probabilities of events."""
    if adaptive == "none":
        further = torch.full_like(teacher_logprobs[..., 0], extrapolation)
    elif magnitudes is None:
        distances = (teacher_logprobs.exp() - ref_logprobs.exp()).abs().sum(-1)
        further = extrapolation * distances + LEAST_EXTRAPOLATION
    else:
        further = extrapolation * magnitudes.to(teacher_logprobs) + LEAST_EXTRAPOLATION
    start = teacher_logprobs if anchor == "teacher" else ref_logprobs
    ratios = _log_ratios(teacher_logprobs, ref_logprobs)
    target = (start + further[..., None] * ratios).log_softmax(-1)
    divergences = reverse_kls(policy_logprobs, target)
    return divergences * (dpo_beta / further) if scaling == "inverse" else divergences


def reverse_kls(
    policy_logprobs: Float[Tensor, "*batch events"], target_logprobs: Float[Tensor, "*batch events"]
) -> Float[Tensor, "*batch"]:
    """KL(policy || target) over events, in nats."""
    return (policy_logprobs.exp() * _log_ratios(policy_logprobs, target_logprobs)).sum(-1)


def forward_kls(
    policy_logprobs: Float[Tensor, "*batch events"], target_logprobs: Float[Tensor, "*batch events"]
) -> Float[Tensor, "*batch"]:
    """KL(target || policy) over events, in nats."""
    return (target_logprobs.exp() * _log_ratios(target_logprobs, policy_logprobs)).sum(-1)


def expected_advantages(
    policy_logprobs: Float[Tensor, "*batch events"],
    teacher_logprobs: Float[Tensor, "*batch events"],
    ref_logprobs: Float[Tensor, "*batch events"],
    *,
    kept: int,
    advantage_clip: Sequence[float] | None,
) -> Float[Tensor, "*batch"]:
    """`expected_teacher_advantages` of log-probabilities of events; the first `kept` ones pay."""
    advantages = _log_ratios(teacher_logprobs, ref_logprobs)[..., :kept]
    if advantage_clip is not None:
        advantages = advantages.clamp(*advantage_clip)
    return (policy_logprobs[..., :kept].exp() * advantages).sum(-1)


def require_kept(top_k: int, vocabulary: int) -> int:
    """How many tokens are kept: `top_k` of them, or all.

    Raises:
        ConfigError: there are not as many.
    """
    if not 0 <= top_k <= vocabulary:
        raise ConfigError(
            f"top_k is {top_k} with a vocabulary of {vocabulary} tokens; expected a number from 1 "
            f"to {vocabulary}, or 0 to keep all"
        )
    return top_k or vocabulary


def require_in_order(advantage_clip: Sequence[float] | None) -> None:
    """Raise ConfigError unless the ends are two numbers in order, or none are given."""
    if advantage_clip is None:
        return
    if len(advantage_clip) != 2 or not advantage_clip[0] < advantage_clip[1]:
        raise ConfigError(
            f"advantage_clip is {list(advantage_clip)}; expected the least and the largest "
            "advantage, such as [0, 1], or none"
        )


def _require_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if value <= 0:
            raise ConfigError(f"{name} is {value}; expected a positive number")


def _log_ratios(
    one: Float[Tensor, "*batch events"], other: Float[Tensor, "*batch events"]
) -> Float[Tensor, "*batch events"]:
    """Log-ratios; 0 where the first has no probability, which weighs nothing there."""
    return (one - other).masked_fill(one == -torch.inf, 0.0)


def _inside(
    function: Callable[..., Tensor],
    parts: list[Tensor],
    response_mask: Bool[Tensor, "batch time"],
    chunk_size: int,
) -> Float[Tensor, "batch time"]:
    """A function of chunks of logits inside the mask; NaN outside has no gradient either."""

    def of_chunk(mask: Tensor, *some: Any) -> Tensor:
        off = ~mask
        here = [one.masked_fill(off[..., None] if one.ndim == 3 else off, 0) for one in some[:-1]]
        return function(*here).masked_fill(off, 0.0)

    return by_chunks(of_chunk, [response_mask, *parts], None, chunk_size)
