"""The responses of a rollout that the policy learns from."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.masking import masked_sum
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.policy.selection import kept_responses, resampled_responses
from tokencredit.recipes.policy.experience import Experience, with_truncation
from tokencredit.recipes.policy.rollout import Rollout
from tokencredit.recipes.policy.settings import TrainPolicyConfig


def kept_rows(
    config: TrainPolicyConfig, experience: Experience, rollout: Rollout, rng: torch.Generator
) -> Int[Tensor, "kept"] | None:
    """Numbers of the responses that are learnt from, as many on every process; None for all.

    Their advantages stay those that were made with all responses.

    Args:
        config: the settings.
        experience: of a rollout.
        rollout: the same, with its groups.
        rng: draws where a selection draws.
    """
    settings = config.selection
    if ALGORITHMS[config.algorithm.name].loss == "pairs":
        return _pairs(experience.advantages.sum(-1), config.algorithm.samples_per_prompt)
    if settings.keep == "all" or rollout.group_ids is None:
        return None
    choose = resampled_responses if settings.how == "resample" else kept_responses
    return choose(
        _ranked_by(config, experience),
        rollout.group_ids,
        keep=settings.keep,
        count=settings.count,
        rng=rng,
    )


def _pairs(signs: Float[Tensor, "batch"], samples: int) -> Int[Tensor, "kept"]:
    """Two rows per prompt: the chosen response, then the rejected one; any two where none is."""
    groups = signs.view(-1, samples)
    chosen = torch.stack([groups.argmax(-1), groups.argmin(-1)], dim=-1)
    starts = samples * torch.arange(len(groups), device=signs.device)
    return (starts[:, None] + chosen).flatten()


def _ranked_by(config: TrainPolicyConfig, experience: Experience) -> Float[Tensor, "batch"]:
    """What the tokens of each response are paid together, without KL; NaN without a score."""
    batch = experience.batch
    paid = with_truncation(experience.token_scores, batch, experience.truncated, config.sampling)
    sums = masked_sum(paid, batch.response_mask)
    return sums.masked_fill(experience.unscored, torch.nan)
