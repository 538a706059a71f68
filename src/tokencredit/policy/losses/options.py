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
    """Beta: price of a log-ratio, or of a log-probability where there is no reference; eta of
    INPO."""
    margin: float | None = None
    """How far the chosen side should be ahead, in nats after beta: gamma of SimPO, delta of
    SLiC."""
    label_smoothing: float | None = None
    """For `cdpo` and `robust`: probability that a label is flipped."""
    bias: float | None = None
    """For `cpl` and `cpl-kl`: lambda, which multiplies the score of the rejected side."""
    tau: float | None = None
    """For `discopop`: temperature of the mix."""
    reference_share: float | None = None
    """For `inpo`: share of the reference in the anchor, tau / eta; the start has the rest."""
    own_weight: float | None = None
    """For `modpo`: weight of the preference that is learnt; the scores of the data have the
    rest."""
    strength: float | None = None
    """Alpha, a weight: for `tdpo1`, `tdpo2` and `superhf` of the divergences; for `vpo-online` and
    `vpo-offline` of the likelihoods; for `dckd` and `adpa` of what the teachers say (gamma of
    ADPA)."""
    calibration: Literal["chosen", "rejected", "both"] | None = None
    """For `vpo-online` and `vpo-offline`: which responses stand for the calibration policy."""
    list_temperature: float | None = None
    """Temperature: for `brain` of the rewards, for `dft` and `dft2` of the scores."""
    average_rate: float | None = None
    """For `dft` and `dft2`: rate of the running averages; 1 keeps nothing of the past."""
    sft_coef: float | None = None
    """Weight of the likelihood: for `pro` and `rrhf` of the best response, for `dckd` and `adpa` of
    the chosen one."""
    ratio: Ratio | None = None
    """For `a-lol`: ratio to the reference, of the `sequence`, of each `token`, or `none`."""
    ratio_clip: float | None = None
    """For `a-lol`: how far that ratio may be from 1."""
    prompt_value: Literal["head", "none"] | None = None
    """For `a-lol`: what is subtracted from a reward, the value of the prompt by a `head` on the
    frozen model's state at its end, or `none`. Responses that are then below 0 are not learnt
    from."""
    extrapolation: float | None = None
    """For `aligndistil`: how far the target goes beyond the teacher, as a factor on what `adaptive`
    names. Published with 10 on given answers, 15 on those that the policy draws."""
    adaptive: Adaptive | None = None
    """For `aligndistil`: what that factor multiplies at each token: the `distance` of the two
    teachers, the size of the `credit`, or `none` for the same everywhere."""
    anchor: Anchor | None = None
    """For `aligndistil`: where the target starts, at the `teacher` or at its `reference`."""
    scaling: Scaling | None = None
    """For `aligndistil`: weight of a token, `inverse` to how far its target goes, as published, or
    `even`."""
    top_k: int | None = None
    """For losses with teachers: how many tokens of a teacher's distribution are kept, all others
    counting as one; 0 keeps all. With a number, what the teachers say is computed once, before
    training."""
    advantage_clip: list[float] | Literal["none"] | None = None
    """For `adpa`: lowest and highest advantage of a token, or `none` for any; the published code
    has [0, 1]."""


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
