"""Options of the losses of preferences, and the ranges in which they lie."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.policy.losses.distillation import Adaptive, Anchor, Scaling, require_in_order
from tokencredit.policy.losses.offline import Ratio


@dataclass(frozen=True)
class PreferenceLossSettings:
    """Options of losses; None takes the default of the loss, which `tokencredit methods` lists."""

    dpo_beta: float | None = None
    """Price of a log-ratio, or of a log-probability where there is no reference; the eta of
    INPO."""
    margin: float | None = None
    """What the chosen side shall be ahead, in nats after the price: gamma of SimPO, delta of
    SLiC."""
    label_smoothing: float | None = None
    """Probability that a label is flipped, of `cdpo` and `robust`."""
    bias: float | None = None
    """What the score of the other side is multiplied by, of `cpl` and `cpl-kl`: lambda."""
    tau: float | None = None
    """Temperature of the mix of `discopop`."""
    reference_share: float | None = None
    """Share of the reference in the anchor of `inpo`, tau / eta; the rest is the start's."""
    own_weight: float | None = None
    """Weight of the preference that is learnt, of `modpo`; the scores of the data have the rest."""
    strength: float | None = None
    """Alpha: of the divergences of `tdpo1`, `tdpo2` and `superhf`, of the likelihoods of
    `vpo-online` and `vpo-offline`; of what the teachers say of `dckd`, and of `adpa`, gamma
    there."""
    calibration: Literal["chosen", "rejected", "both"] | None = None
    """Responses that stand for the calibration policy of `vpo-online` and `vpo-offline`."""
    list_temperature: float | None = None
    """Temperature of the rewards of `brain`, of the scores of `dft` and `dft2`."""
    average_rate: float | None = None
    """Rate of the running averages of `dft` and `dft2`; 1 keeps nothing."""
    sft_coef: float | None = None
    """Price of the likelihood of the best response, of `pro` and `rrhf`, and of the chosen one of
    `dckd` and `adpa`."""
    ratio: Ratio | None = None
    """Ratio to the reference of `a-lol`: of the `sequence`, of each `token`, or `none`."""
    ratio_clip: float | None = None
    """How far that ratio may be from 1."""
    prompt_value: Literal["head", "none"] | None = None
    """What `a-lol` takes off a reward: a `head` on the frozen model's state at the end of the
    prompt, or `none`. What is left below 0 is not learnt from."""
    extrapolation: float | None = None
    """How far the target of `aligndistil` goes beyond the teacher: a factor on what `adaptive`
    names. Published with 10 on given answers, 15 on those that the policy draws."""
    adaptive: Adaptive | None = None
    """What that follows at each token, of `aligndistil`: the `distance` of the two teachers, the
    size of `credit`, or `none` for the same everywhere."""
    anchor: Anchor | None = None
    """Where the target of `aligndistil` starts: the `teacher`, or its `reference`."""
    scaling: Scaling | None = None
    """What a token of `aligndistil` weighs: `inverse` to how far its target goes, as published, or
    `even`."""
    top_k: int | None = None
    """Tokens that are kept of a teacher's distribution, the others as one; 0 keeps all. With a
    number what the teachers say is computed once, before training."""
    advantage_clip: list[float] | Literal["none"] | None = None
    """Least and largest advantage of a token, of `adpa`, or `none` for any; the published code has
    [0, 1]."""


_POSITIVE = ("dpo_beta", "tau", "own_weight", "list_temperature", "average_rate", "extrapolation")
_SHARES = ("bias", "reference_share", "own_weight", "average_rate")
_NOT_NEGATIVE = ("margin", "strength", "sft_coef", "ratio_clip", "label_smoothing", "top_k")


def require_in_range(
    settings: PreferenceLossSettings, names: Iterable[str], *, zero_temperature: bool
) -> None:
    """Raise ConfigError if an option lies outside its range.

    Args:
        settings: with a value for each name.
        names: of the options of a loss.
        zero_temperature: whether the loss knows a temperature of 0.
    """
    for key in names:
        value = getattr(settings, key)
        if key == "advantage_clip":
            require_in_order(None if value == "none" else value)
        allowed = key == "list_temperature" and zero_temperature and value == 0
        low = (key in _POSITIVE and value <= 0 and not allowed) or (
            key in (*_NOT_NEGATIVE, *_SHARES) and value < 0
        )
        high = (key in _SHARES and value > 1) or (key == "label_smoothing" and value >= 0.5)
        if low or high:
            raise ConfigError(f"{key} is {value}; expected {_range(key)}")


def _range(key: str) -> str:
    """What an option may be, in words."""
    if key == "label_smoothing":
        return "a probability from 0 to below 0.5"
    if key in _SHARES:
        return f"a share {'above' if key in _POSITIVE else 'from'} 0 and up to 1"
    return "a positive number" if key in _POSITIVE else "at least 0"
