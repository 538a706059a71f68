"""Every algorithm by its name: from token rewards to advantages, and what that needs.

`ALGORITHMS` is the one list. `train-policy` and the adapters read it, gather what a row `needs`
into an `Outcome`, and call it. A new algorithm is its function, one row here, and what
CONTRIBUTING names besides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.masking import masked_sum
from tokencredit.names import named
from tokencredit.policy.advantages import ValuePooling, gae_advantages, macro_gae_advantages
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
    remax_advantages,
    rloo_advantages,
)
from tokencredit.policy.judged import (
    batch_centred_advantages,
    best_judged_weights,
    judged_pair_signs,
)

Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class AdvantageSettings:
    """Options of the functions in `ALGORITHMS`; each reads those that it has."""

    gamma: float = 1.0
    """Discount of rewards to go."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    scale: Scale = "group"
    """What `grpo` divides by: the deviation of the group, that of the batch, or nothing."""
    value_pooling: ValuePooling = "first"
    """How values of tokens become the value of their macro action."""


@dataclass(frozen=True)
class Outcome:
    """What is known of a batch of responses once its tokens are paid.

    Attributes:
        token_rewards: in nats.
        response_mask: True on tokens of the policy.
        values: V(s_t), before each response token, in nats; None without a critic.
        group_ids: responses with the same number answer the same prompt; None without groups.
        greedy_returns: sum of the rewards of the greedy response to each prompt, in nats; None
            where none was drawn.
        segment_ids: the macro actions, where advantages are those of segments; None for tokens.
        bootstrap_values: value of the state after a response that was cut off, zero for others;
            None where all have ended.
        paid: what each response earned, KL left out; None for the sum of its token rewards.
        passed: True for responses that all judges pass; None where there are no judges.
    """

    token_rewards: Float[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch time"]
    # `| Any`, since a row that runs has all that it needs and no None to think of.
    values: Float[Tensor, "batch time"] | Any = None
    group_ids: Int[Tensor, "batch"] | Any = None
    greedy_returns: Float[Tensor, "batch"] | Any = None
    segment_ids: Int[Tensor, "batch time"] | None = None
    bootstrap_values: Float[Tensor, "batch"] | None = None
    paid: Float[Tensor, "batch"] | None = None
    passed: Bool[Tensor, "batch"] | None = None

    @property
    def earned(self) -> Float[Tensor, "batch"]:
        """What each response earned, KL left out where that is known."""
        sums = masked_sum(self.token_rewards, self.response_mask)
        return sums if self.paid is None else self.paid


Advantages = tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"] | None]
"""Advantages, and the returns that a critic learns; None where there is no critic."""


@dataclass(frozen=True)
class Algorithm:
    """How advantages are made, and what has to be there for it.

    Attributes:
        advantages: from the outcome and the options to advantages and returns, zero outside the
            mask.
        words: what it is, in a line.
        needs: `critic` for values, `groups` for several responses to a prompt, `greedy` for the
            greedy response to each prompt, `nothing` for none of them.
        keeps_credit: whether advantages differ along a response as its rewards do; if not, token
            rewards are summed and their credit is lost.
        needs_causal_credit: whether rewards before a token are left out of its advantage, which
            biases the gradient where a reward depends on later tokens.
        discounts: whether it has a discount.
        whitens: whether advantages are whitened over the batch unless a setting says otherwise.
        loss: `clipped` for the surrogate of PPO, `likelihood` for the negative log-likelihood of
            the responses that are learnt from, weighted by advantages, `pairs` for a loss of pairs
            of responses, which advantages of 1 and -1 name, `path-consistency` for that of soft
            Q-learning.
        pays_kl_itself: whether its loss holds the price of the KL, which rewards then leave out.
    """

    advantages: Callable[[Outcome, AdvantageSettings], Advantages]
    words: str
    needs: Literal["nothing", "critic", "groups", "greedy"] = "nothing"
    keeps_credit: bool = True
    needs_causal_credit: bool = True
    discounts: bool = True
    whitens: bool = False
    loss: Literal["clipped", "likelihood", "pairs", "path-consistency"] = "clipped"
    pays_kl_itself: bool = False


def _gae(outcome: Outcome, settings: AdvantageSettings) -> Advantages:
    """Generalised advantage estimates of tokens, or of segments where there are some."""
    arguments = (outcome.token_rewards, outcome.values, outcome.response_mask)
    options: dict[str, Any] = {
        "gamma": settings.gamma,
        "gae_lambda": settings.gae_lambda,
        "bootstrap_values": outcome.bootstrap_values,
    }
    if outcome.segment_ids is None:
        return gae_advantages(*arguments, **options)
    return macro_gae_advantages(
        *arguments, outcome.segment_ids, value_pooling=settings.value_pooling, **options
    )


def _to_go(function: Callable[..., Tensor], *fields: str) -> Callable[..., Advantages]:
    """A row's function from one of rewards, mask and these fields, with a discount."""

    def advantages(outcome: Outcome, settings: AdvantageSettings) -> Advantages:
        more = [getattr(outcome, name) for name in fields]
        made = function(outcome.token_rewards, outcome.response_mask, *more, gamma=settings.gamma)
        return made, None

    return advantages


def _best_judged(outcome: Outcome, _: AdvantageSettings) -> Advantages:
    """The best response to each prompt, weighted by what it earned."""
    return _on_tokens(best_judged_weights(outcome.earned, outcome.group_ids), outcome), None


def _judged_pairs(outcome: Outcome, _: AdvantageSettings) -> Advantages:
    """1 for the chosen response to each prompt, -1 for the rejected one."""
    passed = torch.ones_like(outcome.group_ids).bool() if outcome.passed is None else outcome.passed
    return _on_tokens(judged_pair_signs(outcome.earned, passed, outcome.group_ids), outcome), None


def _on_tokens(values: Float[Tensor, "batch"], outcome: Outcome) -> Float[Tensor, "batch time"]:
    return values[:, None].float().masked_fill(~outcome.response_mask, 0.0)


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(
        _gae,
        "generalised advantage estimates with a critic",
        needs="critic",
        whitens=True,
    ),
    "reinforce": Algorithm(
        _to_go(reinforce_advantages),
        "rewards to go",
    ),
    "reinforce++": Algorithm(
        _to_go(reinforce_plus_plus_advantages),
        "rewards to go, whitened over the batch",
    ),
    "rloo": Algorithm(
        lambda o, _: (rloo_advantages(o.token_rewards, o.response_mask, o.group_ids), None),
        "the return less the mean return of the others to the prompt",
        needs="groups",
        keeps_credit=False,
        needs_causal_credit=False,
        discounts=False,
    ),
    "grpo": Algorithm(
        lambda o, s: (
            grpo_advantages(o.token_rewards, o.response_mask, o.group_ids, scale=s.scale),
            None,
        ),
        "the return less the mean of the group, divided by its deviation",
        needs="groups",
        keeps_credit=False,
        needs_causal_credit=False,
        discounts=False,
    ),
    "remax": Algorithm(
        _to_go(remax_advantages, "greedy_returns"),
        "rewards to go less the return of the greedy response",
        needs="greedy",
    ),
    "leave-one-out-to-go": Algorithm(
        _to_go(leave_one_out_to_go_advantages, "group_ids"),
        "rewards to go less the mean return of the others to the prompt",
        needs="groups",
    ),
    "group-mean-to-go": Algorithm(
        _to_go(group_mean_to_go_advantages, "group_ids"),
        "rewards to go less the mean return of the group",
        needs="groups",
    ),
    "index-baseline-to-go": Algorithm(
        _to_go(index_baseline_to_go_advantages, "group_ids"),
        "rewards to go less those of the others at the same index",
        needs="groups",
    ),
    "index-centred": Algorithm(
        _to_go(index_centred_advantages, "group_ids"),
        "rewards less those of the others at the same index, to go",
        needs="groups",
    ),
    "crpg": Algorithm(
        _to_go(batch_centred_advantages),
        "rewards to go less the mean return of the batch (CRPG)",
    ),
    "crraft": Algorithm(
        _best_judged,
        "what the best response to a prompt earned; 0 for the others (CRRAFT)",
        needs="groups",
        keeps_credit=False,
        needs_causal_credit=False,
        discounts=False,
        loss="likelihood",
    ),
    "codpo": Algorithm(
        _judged_pairs,
        "1 for the best response that passes, -1 for the worst that fails (CODPO)",
        needs="groups",
        keeps_credit=False,
        needs_causal_credit=False,
        discounts=False,
        loss="pairs",
    ),
    "likelihood": Algorithm(
        lambda o, _: (o.response_mask.float(), None),
        "no reward: 1 on every token of the responses that `selection.keep` leaves",
        keeps_credit=False,
        needs_causal_credit=False,
        discounts=False,
        loss="likelihood",
    ),
    "soft-q": Algorithm(
        lambda o, _: (reinforce_advantages(o.token_rewards, o.response_mask), None),
        "no advantage: rewards to go, which the path consistency of soft Q-learning is to match",
        discounts=False,
        loss="path-consistency",
        pays_kl_itself=True,
    ),
}
"""Rows by the names that settings and adapters take."""


def algorithm(name: str) -> Algorithm:
    """The row of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    >>> algorithm("rloo").needs
    'groups'
    """
    return named("algorithm.name", name, ALGORITHMS)


def require_discount(name: str, gamma: float, *, setting: str = "estimator") -> None:
    """Raise ConfigError for a discount that is none, or that this algorithm does not have.

    Args:
        name: of the algorithm.
        gamma: the discount.
        setting: what names the algorithm, for the message.
    """
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma is {gamma}; expected a discount from 0 to 1")
    if gamma != 1.0 and not ALGORITHMS[name].discounts:
        raise ConfigError(
            f"gamma is {gamma} with {setting} {name!r}, which sums the rewards of a response; "
            "expected gamma 1, or one of rewards to go"
        )


def estimators() -> dict[str, Algorithm]:
    """The rows that need neither a critic nor greedy responses nor a loss of their own.

    These are what adapters can use.

    >>> "grpo" in estimators(), "ppo" in estimators()
    (True, False)
    """
    return {
        name: row
        for name, row in ALGORITHMS.items()
        if row.needs in ("nothing", "groups") and row.loss == "clipped"
    }


ESTIMATOR_NAMES: tuple[str, ...] = tuple(estimators())


def named_advantages(
    name: str,
    token_rewards: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    group_ids: Int[Tensor, "batch"],
    *,
    gamma: float = 1.0,
    scale: Scale = "group",
) -> Float[Tensor, "batch time"]:
    """Advantages by the estimator of this name, one of those that need no critic.

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
    outcome = Outcome(token_rewards, response_mask, group_ids=group_ids)
    return ALGORITHMS[name].advantages(outcome, AdvantageSettings(gamma=gamma, scale=scale))[0]


def require_estimator(name: str, *, gamma: float = 1.0) -> None:
    """Raise ConfigError if no estimator has this name, or this one has no discount."""
    named("estimator", name, estimators())
    require_discount(name, gamma)
