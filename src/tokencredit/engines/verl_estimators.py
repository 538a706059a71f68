"""Estimators of advantages that keep dense credit, in verl's registry.

verl's own "grpo" and "rloo" sum the rewards of a response first, so that it does not matter on
which token they lie. Ours are registered as `tokencredit-` and the name: `algorithm.adv_estimator`
takes them once this file is imported, which the reward manager of this package does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.engines.versions import require_version
from tokencredit.errors import ConfigError, ShapeError
from tokencredit.policy.estimators import reinforce_advantages
from tokencredit.policy.methods import (
    ALGORITHMS,
    ESTIMATOR_NAMES,
    named_advantages,
    require_estimator,
)

require_version("verl", at_least="0.9.1", below="0.10", extra="verl")
from verl.trainer.ppo.core_algos import (  # noqa: E402
    ADV_ESTIMATOR_REGISTRY,
    register_adv_est,
)

ESTIMATOR_PREFIX = "tokencredit-"
Advantages = tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]


def verl_estimator(name: str) -> Callable[..., Advantages]:
    """The estimator of this name, as verl calls it.

    It takes `gamma` of verl's `algorithm`, and for "grpo" `norm_adv_by_std_in_grpo`; groups are
    verl's `uid`. With the advantages it returns rewards to go, which verl calls returns.

    Args:
        name: one of `ESTIMATOR_NAMES`.

    Raises:
        ConfigError: there is no such estimator; later, where it is called, it has no discount.
        ShapeError: where it is called: there is no `uid`, or not one for each response.
    """
    require_estimator(name)

    def estimated(
        token_level_rewards: Float[Tensor, "batch time"],
        response_mask: Tensor,
        index: Sequence[Any] | np.ndarray | None = None,
        config: Mapping[str, Any] | Any = None,
        **_: Any,
    ) -> Advantages:
        settings = config or {}
        gamma = float(settings.get("gamma", 1.0))
        by_deviation = settings.get("norm_adv_by_std_in_grpo", True)
        mask = response_mask.bool()
        with torch.no_grad():
            advantages = named_advantages(
                name,
                token_level_rewards,
                mask,
                _group_ids(name, index, mask),
                gamma=gamma,
                scale="group" if by_deviation else "none",
            )
            return advantages, reinforce_advantages(token_level_rewards, mask, gamma=gamma)

    estimated.__name__ = estimated.__qualname__ = f"{ESTIMATOR_PREFIX}{name}"
    return estimated


def _group_ids(
    name: str, index: Sequence[Any] | np.ndarray | None, mask: Tensor
) -> Int[Tensor, "batch"]:
    """A number for each of verl's `uid`, which are texts."""
    if index is None and ALGORITHMS[name].needs == "nothing":
        return torch.arange(len(mask), device=mask.device)
    count = None if index is None else len(index)
    if index is None or count != len(mask):
        raise ShapeError(
            f"{len(mask)} responses and {'no' if count is None else count} uid for estimator "
            f"{ESTIMATOR_PREFIX + name!r}; expected one uid per response, the same for the same "
            "prompt: verl's trainer writes them"
        )
    numbers: dict[Any, int] = {}
    ids = [numbers.setdefault(uid, len(numbers)) for uid in index]
    return torch.tensor(ids, device=mask.device)


def register_estimators() -> tuple[str, ...]:
    """Put every estimator into verl's registry, once; return their names there.

    Raises:
        ConfigError: another estimator has one of the names.
    """
    names = tuple(ESTIMATOR_PREFIX + name for name in ESTIMATOR_NAMES)
    for name, full_name in zip(ESTIMATOR_NAMES, names, strict=True):
        present = ADV_ESTIMATOR_REGISTRY.get(full_name)
        if present is None:
            register_adv_est(full_name)(verl_estimator(name))
        elif getattr(present, "__name__", None) != full_name:
            raise ConfigError(
                f"verl's registry has another estimator {full_name!r}; expected none: rename it"
            )
    return names


VERL_ESTIMATORS = register_estimators()
"""Names for `algorithm.adv_estimator`."""
