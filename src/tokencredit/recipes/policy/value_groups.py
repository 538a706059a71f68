"""Groups of settings of `tokencredit train-policy` for algorithms that learn values."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.policy.losses.path_consistency import Consistency
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.scorers.functions import names_function


@dataclass(frozen=True)
class SoftQSettings:
    """Soft Q-learning (`algorithm.name: soft-q`), where the policy's logits are values."""

    regulariser: Literal["kl", "entropy"] = "kl"
    """What `kl.coef` is the price of: a nat of KL to the reference (`kl`), or, as published, what a
    nat of entropy earns (`entropy`)."""
    consistency: Consistency = "both"
    """Span over which policy, values and rewards must agree: `single-step`, `multi-step` up to the
    end, or `both`, the mean of the two."""
    reversed_share: float = 0.5
    """Share of the term that teaches the level of the values; 0 as published, which reaches the
    optimum from responses of the policy alone."""
    target_rate: float = 0.1
    """How far the target network moves towards the policy after every step."""
    data: str | None = None
    """Dataset id, dataset folder or file of prompts with responses, which are scored like the
    policy's and also learnt from (off-policy); None for the policy's alone."""
    data_batch_size: int = 16
    """Responses of `data` per step, over all processes."""
    prompt: str = "prompt"
    """Column of the prompts."""
    response: str = "completion"
    """Column of the responses."""
    split: str = "train"
    """Split of a dataset folder or id, or a slice of one."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "data_batch_size", room="soft_q.")
        if not 0 <= self.reversed_share <= 1:
            raise ConfigError(
                f"soft_q.reversed_share is {self.reversed_share}; expected a share from 0 to 1"
            )
        if not 0 < self.target_rate <= 1:
            raise ConfigError(
                f"soft_q.target_rate is {self.target_rate}; expected more than 0, and 1 at most"
            )


@dataclass(frozen=True)
class DialogueSettings:
    """Dialogues of several turns with an environment, and the critic of utterances (ArCHer)."""

    environment: str | None = None
    """`module:function`, a Python function from dialogues, lists of messages of which the last is
    the policy's, to an answer, or None at the end, and a reward for each. It replaces the reward
    model. None for single responses."""
    turns: int = 4
    """Most utterances of the policy in a dialogue."""
    discount: float = 0.95
    """Discount per utterance."""
    critic_learning_rate: float = 1e-4
    """Learning rate of AdamW for the critic of utterances."""
    critic_updates: int = 8
    """Optimiser steps of the critic per step of the run."""
    critic_batch_size: int = 32
    """Utterances per optimiser step of the critic."""
    target_rate: float = 0.1
    """How far the slow copy of the critic moves towards it after each optimiser step."""
    buffer_size: int = 10_000
    """How many utterances the critic may learn from: the newest ones, those of earlier policies
    included."""

    def __post_init__(self) -> None:
        room = "dialogue."
        counts = ("turns", "critic_updates", "critic_batch_size", "buffer_size")
        require_at_least(self, 1, *counts, room=room)
        require_positive(self, "critic_learning_rate", room=room)
        if self.environment is not None and not names_function(self.environment):
            raise ConfigError(
                f"dialogue.environment is {self.environment!r}; expected module:function, a Python "
                "function"
            )
        if not 0 < self.discount <= 1 or not 0 < self.target_rate <= 1:
            raise ConfigError(
                f"dialogue.discount is {self.discount} and dialogue.target_rate "
                f"{self.target_rate}; expected more than 0, and 1 at most"
            )
