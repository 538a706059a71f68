"""Prompts that name a weight for each reward (DPA)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import Prompt
from tokencredit.models.hf_architecture import require_room
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.objective_groups import PreferenceSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig


def preference_vector(
    objectives: int, degrees: float, rng: torch.Generator
) -> Float[Tensor, "objectives"]:
    """A vector of length 1 near the first axis.

        v = cos θ e_1 + sin θ u,   θ even from 0 to the largest angle, u ⊥ e_1 of length 1

    Args:
        objectives: its numbers, at least 2.
        degrees: the largest angle.
        rng: of the draw.

    Source: DPA, Wang et al. 2024, arXiv 2402.18571, for two objectives, whose angles are even on
    both sides.

    >>> vector = preference_vector(2, 45.0, torch.Generator().manual_seed(0))
    >>> round(float(vector.norm()), 5), bool(vector[0] >= 0.707)
    (1.0, True)
    """
    angle = math.radians(degrees) * float(torch.rand((), generator=rng))
    others = torch.randn(objectives - 1, generator=rng)
    return torch.cat(
        [torch.tensor([math.cos(angle)]), math.sin(angle) * others / others.norm().clamp(min=1e-9)]
    )


def told(prompt: Prompt, vector: Sequence[float], settings: PreferenceSettings) -> Prompt:
    """A prompt with the weights before it, those of a chat before the first words of the user.

    Args:
        prompt: as it was asked.
        vector: the weights, which are shown in hundredths.
        settings: the names of the rewards, and the words.
    """
    weights = " + ".join(
        f"{name}*{round(100 * weight)}" for name, weight in zip(settings.names, vector, strict=True)
    )
    text = settings.text.replace("{vector}", weights)
    if isinstance(prompt, str):
        return f"{text}\n\n{prompt}"
    messages: list[Any] = [dict(one) for one in prompt]
    first = next((one for one in messages if one.get("role") == "user"), messages[0])
    first["content"] = f"{text}\n\n{first['content']}"
    return messages


def told_rows(
    config: TrainPolicyConfig,
    models: PolicyModels,
    asked: Sequence[Prompt],
    *,
    step: int,
    first: int,
) -> tuple[list[list[int]], Float[Tensor, "prompts objectives"]]:
    """Ids of prompts with the weights before them, and the weights.

    They depend on the seed, the step and the place of a prompt in it alone, so that a resumed run
    and one on more processes have the same.

    Args:
        config: the settings.
        models: of the run.
        asked: the prompts of this process.
        step: its number.
        first: place of the first of them among all prompts of the step.
    """
    settings = config.preference
    vectors = []
    for place in range(first, first + len(asked)):
        mixed = (config.seed * 1_000_003 + step) * 65_537 + place
        rng = torch.Generator().manual_seed(mixed)
        vectors.append(preference_vector(len(settings.names), settings.degrees, rng))
    prompts = [
        told(one, vector.tolist(), settings) for one, vector in zip(asked, vectors, strict=True)
    ]
    rows = models.reading.prompt_rows(prompts, where=config.prompts)
    return rows, torch.stack(vectors)


def require_room_for_preferences(
    config: TrainPolicyConfig, models: PolicyModels, asked: Sequence[Prompt]
) -> None:
    """Raise DataError where a prompt with the longest weights before it leaves no room.

    Args:
        config: the settings.
        models: of the run.
        asked: all prompts.
    """
    settings = config.preference
    if not settings.names:
        return
    longest = [-1.0] * len(settings.names)
    rows = models.reading.prompt_rows(
        [told(one, longest, settings) for one in asked], where=config.prompts
    )
    longest_row = max(map(len, rows)) + config.sampling.max_new_tokens
    for model in (models.actor_critic.policy, models.actor_critic.critic):
        if model is not None:
            require_room(model, longest_row)
