"""The update of a policy: epochs of minibatches over one rollout, gradients added up exactly."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tokencredit.masking import masked_whiten
from tokencredit.policy.judged import calibrated_pair_losses
from tokencredit.policy.losses.clipped import (
    clipped_policy_losses,
    clipped_tokens,
    clipped_value_losses,
)
from tokencredit.policy.losses.likelihood import likelihood_losses
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.recipes.policy.experience import Experience, needs_logits, rows_of
from tokencredit.recipes.policy.loss_terms import (
    chi_square_slope,
    divergence_terms,
    soft_q_losses,
    weighed,
)
from tokencredit.recipes.policy.metrics import require_finite
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.passes import passes_of
from tokencredit.recipes.policy.pretraining import PretrainingRows, learn_again, rows_of_update
from tokencredit.recipes.policy.processes import own_rows, rows_of_all
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import whole, without_step
from tokencredit.recipes.policy.views import begins_once, view_and_logits, view_of


def update_policy(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    model: Any,
    optimizer: Any,
    experience: Experience,
    step: int,
    rng: torch.Generator,
    pretraining: PretrainingRows = (),
) -> dict[str, float]:
    """Train on one rollout for several epochs of minibatches; returns mean losses per token.

    A minibatch without a token that counts, in any process, is no update.

    Args:
        config: the settings.
        accelerator: of the processes.
        models: of the run.
        model: what is trained, as Accelerate wraps or shards it.
        optimizer: likewise.
        experience: the rollout.
        step: its number.
        rng: draws the order of the responses.
        pretraining: texts that the policy shall not forget.
    """
    algorithm = config.algorithm
    if algorithm.whitens:
        experience = _with_white_advantages(experience, accelerator)
    if algorithm.advantage_clip is not None:
        bound = algorithm.advantage_clip
        experience = replace(experience, advantages=experience.advantages.clamp(-bound, bound))
    for group in optimizer.param_groups:
        left = 1 - step / config.steps if config.optimizer.lr_schedule == "linear" else 1.0
        group["lr"] = config.optimizer.rate * left
    share = len(experience.batch)
    minibatch = share
    if algorithm.minibatch_size is not None:
        minibatch = algorithm.minibatch_size // accelerator.num_processes
    micro_batch = min(algorithm.micro_batch_size or minibatch, minibatch)
    totals: dict[str, float] = {}
    updates = 0
    for _ in range(algorithm.epochs):
        order = _order(share, algorithm.name, rng)
        for rows in torch.split(order, minibatch):
            texts = rows_of_update(config, accelerator, pretraining, step, updates)
            sums = _step(
                config,
                accelerator,
                models,
                model,
                optimizer,
                rows_of(experience, rows),
                micro_batch,
                texts,
                critic_alone=step < config.optimizer.critic_warmup,
            )
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
            updates += bool(sums)
        experience = replace(experience, first_pass=None)
    reported = ["policy_loss", "clip_fraction", "gradient_norm"]
    if experience.returns is not None:
        reported.append("value_loss")
    if config.kl.forward_coef:
        reported.append("forward_kl")
    if pretraining:
        reported.append("pretraining_loss")
    return {name: totals.get(name, 0.0) / max(updates, 1) for name in reported}


def _step(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    model: Any,
    optimizer: Any,
    minibatch: Experience,
    micro_batch: int,
    texts: PretrainingRows,
    *,
    critic_alone: bool,
) -> dict[str, float]:
    """One optimiser step, its gradient accumulated over micro-batches to that of the whole."""
    tokens = accelerator.reduce(minibatch.loss_mask.sum(), reduction="sum")
    if not bool(tokens):  # Adam would go on with its moments, although there is no gradient
        return {}
    sums: dict[str, Tensor] = {}
    of_pairs = _tokens_per_pair(config, accelerator, minibatch, tokens)
    parts = _parts(config, model, minibatch, micro_batch)
    slope = None
    if config.kl.has_chi_square_loss and len(parts) > 1:
        with torch.no_grad():  # the root is one of the whole minibatch, which no part knows
            terms = [
                _losses(config, accelerator, models, model, rows_of(minibatch, rows))
                for rows in parts
            ]
        total = torch.stack([one["chi_square"] for one in terms]).sum()
        slope = chi_square_slope(accelerator, total, minibatch.loss_mask, config.kl)
    text_loss = learn_again(config, accelerator, model, texts, models.tokenizer.pad_token_id)
    for index, rows in enumerate(parts):
        last = index == len(parts) - 1
        with nullcontext() if last else without_step(accelerator, model):
            losses = _losses(config, accelerator, models, model, rows_of(minibatch, rows))
            losses["policy_loss"] = losses["policy_loss"] * of_pairs
            loss = losses["policy_loss"]
            if "value_loss" in losses:
                loss = loss + config.algorithm.value_coef * losses["value_loss"]
            loss = loss + weighed(losses, config.kl)
            if "chi_square" in losses:
                if slope is None:
                    total = losses["chi_square"].detach()
                    slope = chi_square_slope(accelerator, total, minibatch.loss_mask, config.kl)
                loss = loss + slope * tokens * losses["chi_square"]
            require_finite("the loss", loss)
            # DDP averages gradients over processes; the token count is already global.
            accelerator.backward(loss / tokens * accelerator.num_processes)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
    if critic_alone:
        for weight in models.actor_critic.policy.parameters():
            weight.grad = None
    clipped = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
    norm = whole(torch.as_tensor(clipped))
    require_finite("the gradient norm", norm)
    optimizer.step()
    optimizer.zero_grad()
    means = {name: float(accelerator.reduce(value) / tokens) for name, value in sums.items()}
    return {**means, "gradient_norm": float(norm), "pretraining_loss": text_loss}


def _losses(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    model: Any,
    part: Experience,
) -> dict[str, Tensor]:
    """Sums over the response tokens of a micro-batch."""
    view, logits = part.first_pass, None
    if view is None:
        asked = model, part.batch, part.support, config.sampling.temperature
        view, logits = view_and_logits(*asked) if needs_logits(config) else (view_of(*asked), None)
    mask, clip_eps = part.loss_mask, config.algorithm.clip_eps
    kind = ALGORITHMS[config.algorithm.name].loss
    if kind == "path-consistency":
        policy_losses = soft_q_losses(config, part, view, logits)
    elif kind == "likelihood":
        policy_losses = likelihood_losses(view.logprobs, part.advantages, mask)
    elif kind == "pairs":
        policy_losses = calibrated_pair_losses(
            view.logprobs,
            part.ref_logprobs,
            part.advantages.sum(-1).sign(),
            mask,
            dpo_beta=config.judges.dpo_beta,
            likelihood_coef=config.judges.likelihood_coef,
        )
    else:
        policy_losses = clipped_policy_losses(
            view.logprobs, part.old.logprobs, part.advantages, mask, clip_eps=clip_eps
        )
    losses = {"policy_loss": policy_losses.sum()}
    if part.returns is not None:
        value_losses = clipped_value_losses(
            view.values,
            part.old.values,
            part.returns,
            mask,
            value_clip_eps=config.algorithm.value_clip_eps,
        )
        losses["value_loss"] = value_losses.sum()
    return {
        **losses,
        **divergence_terms(config, accelerator, models, part, view, logits),
        "clip_fraction": clipped_tokens(
            view.logprobs.detach(), part.old.logprobs, mask, clip_eps=clip_eps
        ),
    }


def _parts(config: TrainPolicyConfig, model: Any, minibatch: Experience, size: int) -> list[Tensor]:
    """Numbers of the responses of each micro-batch: those of a pass, or pairs that are compared."""
    if size >= len(minibatch.batch) or ALGORITHMS[config.algorithm.name].loss == "pairs":
        return list(torch.split(torch.arange(len(minibatch.batch)), size))
    batch = minibatch.batch
    once = begins_once(model, batch)
    return [one.rows for one in passes_of(batch, None, size=size, beginnings_once=once)]


def _order(share: int, algorithm: str, rng: torch.Generator) -> Tensor:
    """Numbers of the responses in a new order; those of a pair stay together."""
    if ALGORITHMS[algorithm].loss != "pairs":
        return torch.randperm(share, generator=rng)
    pairs = torch.randperm(share // 2, generator=rng)
    return torch.stack([2 * pairs, 2 * pairs + 1], dim=-1).flatten()


def _tokens_per_pair(
    config: TrainPolicyConfig, accelerator: Accelerator, minibatch: Experience, tokens: Tensor
) -> Tensor | float:
    """What makes a mean over tokens, which the loss is, one over pairs where these are learnt."""
    if ALGORITHMS[config.algorithm.name].loss != "pairs":
        return 1.0
    there = minibatch.loss_mask.any(-1)
    chosen = (minibatch.advantages.sum(-1) > 0)[0::2] & there[0::2] & there[1::2]
    return tokens / accelerator.reduce(chosen.sum(), reduction="sum").clamp(min=1)


def _with_white_advantages(experience: Experience, accelerator: Accelerator) -> Experience:
    """Advantages of mean 0 and variance 1 over all processes."""
    everywhere = rows_of_all(accelerator, experience.advantages)
    white = masked_whiten(everywhere, rows_of_all(accelerator, experience.loss_mask))
    return replace(experience, advantages=own_rows(accelerator, white, experience.advantages))
