"""Groups of settings of `tokencredit train-policy` for several objectives, constraints, judges."""

import math
from dataclasses import dataclass

from tokencredit.errors import ConfigError
from tokencredit.names import named
from tokencredit.policy.bounds import require_probability
from tokencredit.policy.constraints import CONSTRAINTS, starting_point
from tokencredit.policy.objectives import OBJECTIVE_MIXES
from tokencredit.ranges import require_at_least, require_positive, require_share
from tokencredit.scorers.functions import names_function

NONE = "none"


@dataclass(frozen=True)
class ObjectiveSettings:
    """Several rewards as objectives, each with its own credit and its own advantages."""

    mix: str = NONE
    """How advantages of the `rewards` become one: `pama`, `normalise-then-sum`,
    `sum-then-normalise`, `max-min` or `max-min-per-prompt`; `none` combines scores before credit,
    as `combine` says. Needs an algorithm without a critic."""

    def __post_init__(self) -> None:
        if self.mix != NONE:
            named("objectives.mix", self.mix, OBJECTIVE_MIXES)


@dataclass(frozen=True)
class ConstraintSettings:
    """Thresholds that mean scores of single rewards have to keep."""

    method: str = NONE
    """`lagrangian` keeps costs below their thresholds, `pessimistic` an upper bound of them;
    `at-least` brings rewards up to their thresholds, and `equal` holds them there."""
    thresholds: dict[str, float] | None = None
    """A threshold for each constrained reward, by its name; in nats as its model gives scores, per
    response."""
    start: float | None = None
    """Multiplier at the start; None takes 0 for `lagrangian` and `equal`, 1 for `pessimistic`, 0.5
    for `at-least`."""
    rate: float | None = None
    """Learning rate of the parameter behind a multiplier; None takes 0.1, and 0.01 for
    `pessimistic`."""
    momentum: float = 0.0
    """Momentum of the updates of that parameter."""
    failure_probability: float = 0.05
    """For `pessimistic`: failure probability of the later safety test."""
    test_prompts: int = 1000
    """For `pessimistic`: number of held-out prompts of that test."""
    training_weight: float = 1.0
    """For `pessimistic`: weight of the width of the bound from the step's own responses."""
    test_weight: float = 1.0
    """For `pessimistic`: weight of the width that the test will add."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "test_prompts", room="constraints.")
        require_at_least(self, 0, "training_weight", "test_weight", room="constraints.")
        require_probability(self.failure_probability)
        require_share(self, "momentum", room="constraints.")
        if self.rate is not None and not 0 <= self.rate < math.inf:
            raise ConfigError(f"constraints.rate is {self.rate}; expected a number, 0 or more")
        if self.method != NONE:
            named("constraints.method", self.method, CONSTRAINTS)
            starting_point(self.method, self.start)
        if (self.method == NONE) != (not self.thresholds):
            raise ConfigError(
                f"constraints.method is {self.method!r} with constraints.thresholds "
                f"{self.thresholds}; expected both a method and thresholds of rewards, or neither"
            )
        for name, threshold in (self.thresholds or {}).items():
            if not math.isfinite(threshold):
                raise ConfigError(
                    f"the threshold of {name!r} is {threshold}; expected a finite number"
                )

    @property
    def is_linear(self) -> bool:
        """Whether costs are taken off rewards before advantages are made."""
        return self.method != NONE and not CONSTRAINTS[self.method].streams

    @property
    def has_streams(self) -> bool:
        """Whether multipliers mix advantages."""
        return self.method != NONE and CONSTRAINTS[self.method].streams


@dataclass(frozen=True)
class JudgesSettings:
    """Judges that pass a response or not; one that does not pass earns nothing (CGPO)."""

    functions: tuple[str, ...] = ()
    """`module:function` of each judge: from prompts and responses to True or False for each
    response. All of them must say yes."""
    max_kl: float | None = None
    """Log-ratio of a response to the reference, in nats, from which on it earns nothing; below that
    it earns less and less. `crraft` and `codpo` use it as one more judge. None for no limit."""
    dpo_beta: float = 0.1
    """For `algorithm.name: codpo`: beta of its loss."""
    likelihood_coef: float = 1.0
    """For `codpo`: weight of the likelihood per token of chosen responses."""

    def __post_init__(self) -> None:
        require_positive(self, "max_kl", "dpo_beta", room="judges.")
        require_at_least(self, 0, "likelihood_coef", room="judges.")
        for name in self.functions:
            if not names_function(name):
                raise ConfigError(
                    f"judges.functions has {name!r}; expected `module:function` of each judge"
                )

    @property
    def gate(self) -> bool:
        """Whether anything decides what a response may earn."""
        return bool(self.functions) or self.max_kl is not None


@dataclass(frozen=True)
class PreferenceSettings:
    """A weight for each reward that the prompt names, so that one policy serves all (DPA)."""

    names: tuple[str, ...] = ()
    """Names of the `rewards`, the main one first; empty puts no weights into prompts. Each prompt
    of a step gets a vector of length 1, by which its responses earn the rewards."""
    degrees: float = 45.0
    """Largest angle between the vector and the main reward's direction, in degrees."""
    text: str = "Your response should maximize weighted rating = {vector}."
    """Text before the prompt; `{vector}` becomes `helpfulness*87 + verbosity*50`, for example."""

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180:
            raise ConfigError(
                f"preference.degrees is {self.degrees}; expected an angle above 0, at most 180"
            )
        if "{vector}" not in self.text:
            raise ConfigError(
                f"preference.text is {self.text!r}; expected {{vector}} in it, where the weights go"
            )
