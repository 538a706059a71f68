"""Soft Q-learning: what the policy is compared with, by a target network that follows it.

    tokencredit train-policy --config run.yaml --algorithm.name soft-q --soft_q.data answers.jsonl

The algorithm is that of Guo et al. 2022 (arXiv 2106.07704). Departures: (1) every token may be
paid, (2) the price is one of KL to the reference unless `soft_q.regulariser` says otherwise, and
the policy then starts with all values at 0, (3) the term that teaches the level of the values is
on, (4) losses are means per token, (5) what the target network says is asked once a step, before
its updates, and it moves after them.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.logprobs import sampled_logits
from tokencredit.policy.losses.divergences import chunked_log_normalisers
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.recipes.policy.experience import Experience, rows_of
from tokencredit.recipes.policy.run_state import PolicyRun
from tokencredit.recipes.policy.target_network import in_place
from tokencredit.recipes.policy.views import (
    SoftTargets,
    parts_of,
    reference_logits,
    view_and_logits,
)


@torch.no_grad()
def with_soft_targets(run: PolicyRun, experience: Experience, *, kl_coef: float) -> Experience:
    """An experience with what soft Q-learning compares the policy with; as it is for all others.

    Args:
        run: with its target network.
        experience: whose token rewards leave the price of the KL out.
        kl_coef: that price.
    """
    config = run.config
    if ALGORITHMS[config.algorithm.name].loss != "path-consistency":
        return experience
    logprobs, values = _of_target(run, experience)
    ref_logprobs = torch.zeros_like(logprobs)
    ref_normalisers = torch.zeros_like(logprobs)
    if config.soft_q.regulariser == "kl":
        ref_logprobs, ref_normalisers = experience.ref_logprobs, _of_reference(run, experience)
    off = ~experience.batch.response_mask
    soft = SoftTargets(
        log_ratios=(logprobs - ref_logprobs).masked_fill(off, 0.0),
        values=(values - ref_normalisers).masked_fill(off, 0.0),
        rewards=experience.token_rewards / kl_coef,
        ref_logprobs=ref_logprobs,
        ref_normalisers=ref_normalisers,
    )
    return replace(experience, soft=soft)


def drawn_rows(run: PolicyRun, experience: Experience) -> Experience:
    """The part of an experience that the policy has drawn itself, which metrics are about."""
    if not run.demonstrations.responses:
        return experience
    count = run.config.batch_size // run.accelerator.num_processes
    return rows_of(experience, torch.arange(count, device=experience.kl.device))


def _of_target(
    run: PolicyRun, experience: Experience
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Log-probs of the target network, and the soft values of the states before each token."""
    config, model = run.config, run.models.actor_critic
    temperature, size = config.sampling.temperature, config.algorithm.micro_batch_size
    logprobs, values = [], []
    with in_place(run.target, model), run.accelerator.autocast():
        for part, allowed in parts_of(experience.batch, experience.support, size):
            view, logits = view_and_logits(model, part, allowed, temperature)
            logprobs.append(view.logprobs)
            values.append(chunked_log_normalisers(logits))
    return torch.cat(logprobs), torch.cat(values)


def _of_reference(run: PolicyRun, experience: Experience) -> Float[Tensor, "batch time"]:
    """What the reference's soft values would be if its logits were values."""
    config, models = run.config, run.models
    temperature, size = config.sampling.temperature, config.algorithm.micro_batch_size

    def normalisers(model: object) -> Float[Tensor, "batch time"]:
        return torch.cat(
            [
                chunked_log_normalisers(
                    sampled_logits(
                        reference_logits(models, model, part),
                        temperature=temperature,
                        allowed=allowed,
                    )
                )
                for part, allowed in parts_of(experience.batch, experience.support, size)
            ]
        )

    with run.accelerator.autocast():
        return models.of_reference(normalisers)
