"""The settings of heads of reward models, and of what is learnt or kept beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.reward_model.losses.regularisers import Form


@dataclass(frozen=True)
class EnsembleSettings:
    """Several heads on one trunk, which learn from the same pairs."""

    heads: int = 1
    """How many. Each begins with weights of its own; the loss is the mean of theirs."""
    bootstrap: bool = False
    """Let every pair count for each head as often as a Poisson number with mean 1 says, drawn once
    for the run, as if each had data of its own."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "heads")
        if self.bootstrap and self.heads == 1:
            raise ConfigError(
                "ensemble.bootstrap is true with one head; expected false, or ensemble.heads of 2 "
                "or more, which are to differ"
            )


@dataclass(frozen=True)
class RegulariserSettings:
    """What keeps the hidden states of a reward model those of a language model (GRM)."""

    form: Form | None = None
    """What the head of the language model that training starts from is asked by: `sft`, the log
    sigmoid of `scale` times the log-probability of the preferred answer; `likelihood`, that
    log-probability itself; `dpo`, both answers compared. None for no regulariser."""
    weight: float = 0.01
    """Share of the regulariser in the loss; the loss of preferences has the rest."""
    scale: float = 0.1
    """Beta: multiplies log-probabilities of `sft` and `dpo`."""
    reference: Literal["start", "none"] = "start"
    """What `dpo` compares with: `start`, the language model that training starts from, asked once
    before it; `none`, log-probabilities are compared as they are."""

    def __post_init__(self) -> None:
        require_positive(self, "scale", room="regulariser.")
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"regulariser.weight is {self.weight}; expected a share from 0 to 1")


@dataclass(frozen=True)
class ContrastiveSettings:
    """Features of answers that are told apart by contrast (SimCSE in Secrets II)."""

    weight: float = 0.0
    """Of the contrastive loss, which is added to that of preferences; 0 for none, 1 as published.
    Every batch is then read twice."""
    temperature: float = 0.05
    """Of the cosines of features; the paper does not say it, and SimCSE has this one."""
    of: Literal["answers", "differences"] = "answers"
    """What is told apart: the features of all `answers` of a batch, or the `differences` between
    those of a pair, in both directions."""
    dropout: float = 0.05
    """Dropout of the model in training, by which the two readings differ."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "weight", room="contrastive.")
        require_positive(self, "temperature", room="contrastive.")
        if not 0 < self.dropout < 1:
            raise ConfigError(
                f"contrastive.dropout is {self.dropout}; expected a share above 0 and below 1: "
                "without dropout both readings are the same"
            )


@dataclass(frozen=True)
class GroupSettings:
    """A head for each group of users, who are sorted into groups while the heads learn (MaxMin)."""

    count: int = 1
    """How many. Their heads become the objectives `group-1`, `group-2` and so on of the model."""
    of: Literal["users", "pairs"] = "users"
    """What belongs to a group: `users`, each with all of their pairs, which needs `columns.user`;
    `pairs`, each of them by itself."""
    membership: Literal["hard", "soft"] = "hard"
    """`hard`: of the group under which the preferences are likeliest, as published; `soft`: of each
    group with its probability."""
    rounds: int = 5
    """How often users are sorted anew during training, at even distances, and then once at its end.
    Before the first time user number n is of the group n modulo `count`, as published."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "count", "rounds", room="groups.")


@dataclass(frozen=True)
class MixtureSettings:
    """Several heads of which a router on the prompt says how much each counts (MiCRo)."""

    heads: int = 1
    """How many. Each preference is that of one of them, nobody knows which."""
    entropy_coef: float = 0.5
    """Price of the negative entropy of the router's weights, which evens them prompt by prompt."""
    layers: int = 0
    """Hidden layers of the router; 0 makes it linear."""
    width: int = 64
    """Units of each hidden layer."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "heads", room="mixture.")
        require_at_least(self, 0, "layers", "entropy_coef", room="mixture.")
        require_positive(self, "width", room="mixture.")


@dataclass(frozen=True)
class LatentSettings:
    """What a user prefers, read off other preferences of the same user (VPL)."""

    size: int = 0
    """Numbers that describe a user, beside what the model makes of a text; 0 for none. Needs
    `columns.user`."""
    pairs: int = 8
    """Other pairs of the user that are shown for each pair, drawn anew each time."""
    width: int = 64
    """Numbers that describe a text, and units of the hidden layers of encoder and decoder."""
    kl_coef: float = 1e-4
    """Price of each nat by which descriptions of users differ from a standard normal one."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "size", "kl_coef", room="latent.")
        require_at_least(self, 1, "pairs", "width", room="latent.")


@dataclass(frozen=True)
class BoundSettings:
    """What is kept of the data for a pessimistic score, `folder#pessimistic=0.5`."""

    ridge: float | None = None
    """Added to the covariance of the differences of features between the answers of a pair, which
    is then written beside the model. None writes none."""

    def __post_init__(self) -> None:
        require_positive(self, "ridge", room="bound.")


def require_one_of(asked: Mapping[str, bool]) -> None:
    """Refuse settings of which each wants heads of its own.

    Args:
        asked: by the name of a setting, with its value, whether it is not at its default.

    Raises:
        ConfigError: two or more are asked for.
    """
    found = [name for name, here in asked.items() if here]
    if len(found) > 1:
        raise ConfigError(
            f"{' and '.join(found)}; expected one of them alone: each has heads, "
            "or a trunk, of its own"
        )
