"""Estimators of advantages by the names that adapters take."""

from typing import Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.names import require_named
from tokencredit.policy.dense_estimators import (
    group_mean_to_go_advantages,
    index_baseline_to_go_advantages,
    index_centred_advantages,
    leave_one_out_to_go_advantages,
)
from tokencredit.policy.estimators import (
    grpo_advantages,
    reinforce_advantages,
    reinforce_plus_plus_advantages,
    rloo_advantages,
)

EstimatorName = Literal[
    "leave-one-out-to-go",
    "group-mean-to-go",
    "index-baseline-to-go",
    "index-centred",
    "reinforce",
    "reinforce++",
    "rloo",
    "grpo",
]
ESTIMATOR_NAMES: tuple[str, ...] = get_args(EstimatorName)


def named_advantages(
    name: str,
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    gamma: float = 1.0,
    scale: Literal["group", "batch", "none"] = "group",
) -> Float[Tensor, "batch time"]:
    """Advantages by the estimator of this name; ReMax, which needs greedy responses, is not here.

    Args:
        name: one of `ESTIMATOR_NAMES`.
        token_rewards: in nats.
        response_mask: True on tokens of the policy.
        group_ids: responses with the same number answer the same prompt.
        gamma: discount of rewards to go.
        scale: what "grpo" divides by; others ignore it.

    Raises:
        ConfigError: there is no such estimator, or it has no discount.

    >>> import torch
    >>> rewards, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]])
    >>> named_advantages("reinforce", rewards, mask, torch.tensor([0]))
    tensor([[3., 2.]])
    """
    require_estimator(name, gamma=gamma)
    match name:
        case "reinforce":
            return reinforce_advantages(token_rewards, response_mask, gamma=gamma)
        case "reinforce++":
            return reinforce_plus_plus_advantages(token_rewards, response_mask, gamma=gamma)
        case "rloo":
            return rloo_advantages(token_rewards, response_mask, group_ids)
        case "grpo":
            return grpo_advantages(token_rewards, response_mask, group_ids, scale=scale)
    dense = {
        "leave-one-out-to-go": leave_one_out_to_go_advantages,
        "group-mean-to-go": group_mean_to_go_advantages,
        "index-baseline-to-go": index_baseline_to_go_advantages,
        "index-centred": index_centred_advantages,
    }
    return dense[name](token_rewards, response_mask, group_ids, gamma=gamma)


def require_estimator(name: str, *, gamma: float = 1.0) -> None:
    """Raise ConfigError if no estimator has this name, or this one has no discount."""
    require_named("estimator", name, ESTIMATOR_NAMES)
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma is {gamma}; expected a discount from 0 to 1")
    if gamma != 1.0 and name in ("rloo", "grpo"):
        raise ConfigError(
            f"gamma is {gamma} with estimator {name!r}, which sums the rewards of a response; "
            "expected gamma 1, or an estimator of rewards to go"
        )
