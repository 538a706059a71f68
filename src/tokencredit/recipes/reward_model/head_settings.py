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
    """How many heads. Each begins with its own weights; the loss is the mean of their losses."""
    bootstrap: bool = False
    """Count each pair, for each head, as often as a Poisson number with mean 1 says, drawn once for
    the run, as if each head had its own data."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "heads")
        if self.bootstrap and self.heads == 1:
            raise ConfigError(
                "ensemble.bootstrap is true with one head; expected false, or ensemble.heads of 2 "
                "or more, which are to differ"
            )


@dataclass(frozen=True)
class RegulariserSettings:
    """Keeps the hidden states of a reward model fit for a language model (GRM)."""

    form: Form | None = None
    """What the head of the language model still has to do with the hidden states. `sft`: raise the
    log sigmoid of `scale` times the log-probability of the preferred answer; `likelihood`: raise
    that log-probability itself; `dpo`: compare both answers. None for no regulariser."""
    weight: float = 0.01
    """Share of the regulariser in the loss; the loss of preferences has the rest."""
    scale: float = 0.1
    """Beta, which multiplies the log-probabilities of `sft` and `dpo`."""
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
    """Weight of the contrastive loss beside that of preferences; 0 for none, 1 as published. Above
    0 every batch is read twice."""
    temperature: float = 0.05
    """Temperature of the cosines of features; the paper names none, and SimCSE has this one."""
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
    """How many groups. Their heads become the objectives `group-1`, `group-2` and so on of the
    model."""
    of: Literal["users", "pairs"] = "users"
    """What is sorted into groups: `users`, each with all their pairs, which needs `columns.user`;
    or `pairs`, each by itself."""
    membership: Literal["hard", "soft"] = "hard"
    """`hard` puts each into the group under which its preferences are likeliest, as published;
    `soft` into every group, with its probability."""
    rounds: int = 5
    """How often the groups are formed anew during training, at even distances; they are formed once
    more at the end. Before the first time, user number n is in group n modulo `count`, as
    published."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "count", "rounds", room="groups.")


@dataclass(frozen=True)
class MixtureSettings:
    """Several heads, and a router that weighs them by the prompt (MiCRo)."""

    heads: int = 1
    """How many heads. Each preference comes from one of them; it is not known which."""
    entropy_coef: float = 0.5
    """Price of the negative entropy of the router's weights, which evens them out prompt by
    prompt."""
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
    """What a user prefers, inferred from other preferences of that user (VPL)."""

    size: int = 0
    """How many numbers describe a user, beside what the model makes of a text; 0 for none. Needs
    `columns.user`."""
    pairs: int = 8
    """How many other pairs of the user are shown with each pair, drawn anew each time."""
    width: int = 64
    """How many numbers describe a text; also the width of the hidden layers of encoder and
    decoder."""
    kl_coef: float = 1e-4
    """Price of a nat of KL between the description of a user and a standard normal distribution."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "size", "kl_coef", room="latent.")
        require_at_least(self, 1, "pairs", "width", room="latent.")


@dataclass(frozen=True)
class BoundSettings:
    """Statistics of the data that a pessimistic score needs, `folder#pessimistic=0.5`."""

    ridge: float | None = None
    """What is added to the covariance of the differences of features between the answers of a pair.
    The covariance is written beside the model; None writes none."""

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
