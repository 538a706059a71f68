"""The prompts of `train-policy`, their order, and the seed of each step."""

from dataclasses import dataclass

import torch

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError
from tokencredit.preference.hf_datasets import load_prompts
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.preferences import require_room_for_preferences
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.run.left_out import encodable_prompts


@dataclass(frozen=True)
class PolicyPrompts:
    """Token ids of every prompt, and what was asked.

    Attributes:
        rows: as the policy reads them.
        asked: the prompts themselves, for models that read them in another way; None where only
            their first tokens are kept, so that they say more than was asked.
        left_out: rows of the data that hold no prompt, or one that leaves no room for an answer.
    """

    rows: list[list[int]]
    asked: list[Prompt] | None
    left_out: list[LeftOut]


def tokenized_prompts(config: TrainPolicyConfig, models: PolicyModels) -> PolicyPrompts:
    """The prompts of a run as the policy reads them.

    Raises:
        DataError: there are no prompts, or one is empty or too long where that is an error.
        ConfigError: what a chat template renders is to be cut to its first tokens.
    """
    left_out = config.dataset.collecting()
    prompts = load_prompts(
        config.prompts,
        split=config.data.split,
        column=config.data.column,
        limit=config.data.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    reading, bounds = models.reading, config.data.tokens
    if bounds is not None and reading.template == "chat":
        raise ConfigError(
            f"data.tokens is {bounds} and the policy reads prompts by its chat "
            f"template ({reading.origin}); expected whole prompts: leave data.tokens out, or set "
            "policy_reading.template to 'plain'"
        )
    actor_critic = models.actor_critic
    encoded = encodable_prompts(
        prompts,
        reading,
        left_out,
        where=config.prompts,
        kept=None if bounds is None else bounds[1],
        new_tokens=config.sampling.max_new_tokens,
        readers=[one for one in (actor_critic.policy, actor_critic.critic) if one is not None],
    )
    asked = None if bounds is not None else [prompt for prompt, _ in encoded]
    require_room_for_preferences(config, models, asked or [])
    return PolicyPrompts([ids for _, ids in encoded], asked, left_out or [])


def prompts_of_step(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which prompts a step uses: each once per pass over the data, in a new order every pass.

    >>> [prompts_of_step(4, 2, seed=0, step=s) for s in range(2)]
    [[0, 1], [3, 2]]
    """
    chosen: list[int] = []
    first = step * batch_size
    orders: dict[int, list[int]] = {}
    for position in range(first, first + batch_size):
        epoch, index = divmod(position, count)
        if epoch not in orders:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(count, generator=rng).tolist()
        chosen.append(orders[epoch][index])
    return chosen


def seeded(seed: int, step: int, process: int) -> torch.Generator:
    """Seed torch for one step of one process; the returned generator is for orders and lengths."""
    mixed = (seed * 1_000_003 + step) * 4_099 + process
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)
