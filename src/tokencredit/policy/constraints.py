"""Constraints on mean rewards or costs, kept by multipliers that change from step to step.

What is constrained is one number per response, never the mean over tokens: a mean over tokens
weighs long responses more, and of dense rewards it is not the reward of the response.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Constraint:
    """How a threshold is kept.

    Attributes:
        multiplier: from the number that is learnt to the multiplier.
        slope: its derivative.
        inverse: from a multiplier to the number that is learnt.
        sense: 1 where the multiplier grows with what is above the threshold, −1 where it falls.
        start: the multiplier to begin with.
        rate: of its gradient, unless a setting says otherwise.
        text: what it does, in a line.
        streams: whether rewards have advantages of their own, which the multipliers mix; else costs
            are subtracted from rewards before advantages.
        pessimistic: whether an upper bound of the mean has to keep the threshold.
    """

    multiplier: Callable[[float], float]
    slope: Callable[[float], float]
    inverse: Callable[[float], float]
    sense: Literal[1, -1]
    start: float
    rate: float
    text: str
    streams: bool = False
    pessimistic: bool = False


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))


CONSTRAINTS: dict[str, Constraint] = {
    "lagrangian": Constraint(
        lambda raw: max(raw, 0.0),
        lambda _: 1.0,
        lambda multiplier: multiplier,
        sense=1,
        start=0.0,
        rate=0.1,
        text="costs have mean at most their threshold: reward less multiplier times cost",
    ),
    "pessimistic": Constraint(
        math.exp,
        math.exp,
        lambda multiplier: math.log(multiplier),
        sense=1,
        start=1.0,
        rate=0.01,
        text="the same of an upper bound of the mean (HC-RLHF)",
        pessimistic=True,
    ),
    "at-least": Constraint(
        _sigmoid,
        lambda raw: _sigmoid(raw) * _sigmoid(-raw),
        lambda multiplier: math.log(multiplier) - math.log1p(-multiplier),
        sense=-1,
        start=0.5,
        rate=0.1,
        text="rewards reach their threshold, then KL alone counts (mu-PPO)",
        streams=True,
    ),
    "equal": Constraint(
        math.tanh,
        lambda raw: 1 - math.tanh(raw) ** 2,
        math.atanh,
        sense=-1,
        start=0.0,
        rate=0.1,
        text="rewards stay at their threshold, from above and below (xi-PPO)",
        streams=True,
    ),
}
"""Rows by the names that `constraints.method` takes."""


def updated_multiplier(
    raw: float, velocity: float, excess: float, *, method: str, rate: float, momentum: float = 0.0
) -> tuple[float, float]:
    """The number behind a multiplier after one step of gradient descent on the dual.

        v ← m v + s'(l) e,   l ← l ± η v,   λ = s(l)

    Here e is what the mean is above the threshold. A multiplier of costs grows with it, one of
    rewards falls; at the threshold it stays. The "lagrangian" is cut off at 0.

    Args:
        raw: l.
        velocity: v.
        excess: e, in the units of the scores.
        method: a name in `CONSTRAINTS`, which has s.
        rate: η.
        momentum: m; 0 for plain descent.

    Returns:
        The new l and v.

    Source: Moskovitz et al. 2024, arXiv 2310.04373, and their code for "at-least" (sigmoid) and
    "equal" (tanh), without their clipping of the gradient, and with the mean of whole responses in
    the place of that of tokens; HC-RLHF, arXiv
    2506.08266, for "pessimistic" (exp); the method of multipliers for "lagrangian".

    >>> updated_multiplier(0.0, 0.0, 2.0, method="lagrangian", rate=0.1)
    (0.2, 2.0)
    >>> updated_multiplier(0.0, 0.0, 2.0, method="equal", rate=0.1)[0] < 0
    True
    """
    one = CONSTRAINTS[method]
    velocity = momentum * velocity + one.slope(raw) * excess
    moved = raw + one.sense * rate * velocity
    return (max(moved, 0.0) if method == "lagrangian" else moved), velocity


def starting_point(method: str, multiplier: float | None) -> float:
    """The number behind the multiplier that a run begins with.

    Args:
        method: a name in `CONSTRAINTS`.
        multiplier: to begin with; None takes that of the method.

    Raises:
        ConfigError: the method has no such multiplier.

    >>> starting_point("at-least", None), starting_point("pessimistic", 1.0)
    (0.0, 0.0)
    """
    one = CONSTRAINTS[method]
    start = one.start if multiplier is None else multiplier
    try:
        found = one.inverse(start)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or (method == "lagrangian" and start < 0):
        expected = {
            "lagrangian": "0 or more",
            "pessimistic": "more than 0",
            "at-least": "a number between 0 and 1",
            "equal": "a number between -1 and 1",
        }[method]
        raise ConfigError(
            f"constraints.start is {start} with constraints.method {method!r}; expected {expected}"
        )
    return found


def mixed_advantages(
    kl_advantages: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "rewards batch time"],
    multipliers: Float[Tensor, "rewards"],
) -> Float[Tensor, "batch time"]:
    """Advantages of rewards by their multipliers, and those of KL by what is left.

        A = (N − Σ_i μ_i) A_KL + Σ_i μ_i A_i

    With all multipliers at 0 it is N A_KL: back to the reference, and not plain PPO.

    Args:
        kl_advantages: of the reward −KL, on the scale of the others.
        advantages: of each of N rewards.
        multipliers: μ of each, from 0 to 1 for "at-least" and from −1 to 1 for "equal".

    Raises:
        ShapeError: there is not one multiplier for each reward.

    Source: Moskovitz et al. 2024, arXiv 2310.04373, and their code.

    >>> ones = torch.ones(1, 2)
    >>> mixed_advantages(-ones, torch.stack([2 * ones, 3 * ones]), torch.tensor([0.5, 1.0]))
    tensor([[3.5000, 3.5000]])
    """
    if len(multipliers) != len(advantages):
        raise ShapeError(
            f"{len(multipliers)} multipliers for {len(advantages)} rewards; expected one for each"
        )
    weights = multipliers.to(advantages)
    of_rewards = (weights[:, None, None] * advantages).sum(0)
    return (len(advantages) - weights.sum()) * kl_advantages + of_rewards


def pessimistic_cost_factors(
    costs: Float[Tensor, "batch"], *, mean: float, deviation: float, pessimism: float
) -> Float[Tensor, "batch"]:
    """What the cost of each response is multiplied by, to lower a bound and not only a mean.

        f = 1 + k (c − 2 c̄) / (2 s),   f c = c + k (c² − 2 c c̄) / (2 s)

    The expected gradient of f c is that of mean + k · deviation. As a factor it goes to every
    token, so that a dense cost stays dense and still sums to f c.

    Args:
        costs: c of each response.
        mean: c̄, of all responses.
        deviation: s, of all responses.
        pessimism: k, of `pessimism` in `policy/bounds.py`.

    Returns:
        Factors; 1 where costs do not vary, or k is 0.

    Source: HC-RLHF, arXiv 2506.08266, and its code, where costs are of whole responses; the factor
    on tokens is ours.

    >>> costs = torch.tensor([1.0, 3.0])
    >>> pessimistic_cost_factors(costs, mean=2.0, deviation=1.0, pessimism=0.5)
    tensor([0.2500, 0.7500])
    """
    if deviation <= 0 or pessimism == 0:
        return torch.ones_like(costs)
    return 1 + pessimism * (costs - 2 * mean) / (2 * deviation)
