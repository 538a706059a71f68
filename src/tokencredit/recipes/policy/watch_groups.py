"""Groups of settings of `tokencredit train-policy` that keep a policy from fooling its reward."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.names import named
from tokencredit.policy.selection import SELECTIONS
from tokencredit.ranges import require_at_least, require_positive


@dataclass(frozen=True)
class ReferenceSettings:
    """Responses of the reference to the prompts, with which scores are compared.

    None are drawn unless a `transform` or the `normalization` of a score asks for them.
    """

    per_prompt: int = 4
    """Responses of the reference to each prompt, drawn and scored in the first step that has the
    prompt; their scores stay in the run folder."""
    prompts: int = 64
    """For `score.normalization: reference`: how many prompts the reference answers before the first
    step; the mean and the deviation are those of these scores."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "per_prompt", "prompts", room="references.")


@dataclass(frozen=True)
class OpponentSettings:
    """The opponent to beat where `score.transform` is `nash` (Nash-MD)."""

    reference_share: float = 0.25
    """Exponent of the reference in the geometric mixture from which the opponent draws each token:
    0 is the policy itself, 1 the reference."""
    per_prompt: int = 1
    """Responses of the opponent to each prompt, drawn anew in every step."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "per_prompt", room="opponent.")
        if not 0 <= self.reference_share <= 1:
            raise ConfigError(
                f"opponent.reference_share is {self.reference_share}; expected a share from 0 to 1"
            )


@dataclass(frozen=True)
class SelectionSettings:
    """Which of the responses to a prompt the policy learns from."""

    keep: str = "all"
    """`all`, the `best`, `best-random` or `best-worst`, by the sum of the token rewards without KL;
    all but `all` need `algorithm.samples_per_prompt`."""
    how: Literal["filter", "resample"] = "filter"
    """`filter` learns once from what is kept; `resample` draws as many as there were, with
    replacement, by the weights of the published code."""
    count: int = 1
    """For `best`: how many are kept."""

    def __post_init__(self) -> None:
        named("selection.keep", self.keep, SELECTIONS)
        require_at_least(self, 1, "count", room="selection.")
        if self.keep != "best" and self.count != 1:
            raise ConfigError(
                f"selection.count is {self.count} with selection.keep {self.keep!r}; expected "
                "selection.keep 'best', or no count"
            )
        if self.keep == "all" and self.how == "resample":
            raise ConfigError(
                "selection.how is 'resample' with selection.keep 'all', which weighs all alike; "
                "expected 'filter', or another selection"
            )


@dataclass(frozen=True)
class PretrainingSettings:
    """Texts that the policy learns besides its reward (PPO-ptx)."""

    data: str | None = None
    """Dataset id, dataset folder or file of texts; None learns none."""
    column: str = "text"
    """Column of the texts."""
    split: str = "train"
    """Split of a dataset folder or id, or a slice of one."""
    coef: float = 1.0
    """Weight of their mean negative log-likelihood per token, beside the mean loss per token."""
    batch_size: int = 16
    """Texts per optimiser step, over all processes."""
    tokens: int = 128
    """Texts are cut to this many first tokens."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size", room="pretraining.")
        require_at_least(self, 2, "tokens", room="pretraining.")
        require_positive(self, "coef", room="pretraining.")


@dataclass(frozen=True)
class StopSettings:
    """When a run ends before its last step. Each number is a mean over the last steps."""

    held_out_falls: int | None = None
    """The run ends once the score of `held_out_reward_model` has been below its highest for this
    many steps; None for never."""
    kl_above: float | None = None
    """The run ends once the KL per response exceeds this, in nats; None for never."""
    window: int = 5
    """Steps that are averaged, here, for the best checkpoint and in the figure."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "held_out_falls", "window", room="stop_when.")
        require_positive(self, "kl_above", room="stop_when.")
