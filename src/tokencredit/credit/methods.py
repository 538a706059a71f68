"""Every credit method by its name, with what it needs, what it conserves and whether it is causal."""

from dataclasses import dataclass, field

from tokencredit.errors import ConfigError


@dataclass(frozen=True)
class CreditSettings:
    """How a score becomes token scores."""

    method: str = field(default="prefix-difference", metadata={"was": "credit"})
    """Name of a credit method; `tokencredit methods` lists them with what they need."""
    beta: float = 0.8
    """Share of the score that attention spreads; the rest stays on the last token."""
    layer: int = field(default=-1, metadata={"was": "attention_layer"})
    """Layer whose attention is read; -1 is the last."""
    decay: float = 0.5
    """Of smoothed prefix scores: how much of the score before each token stays, from 0 (not
    smoothed at all) to below 1."""
    model: str | None = None
    """What the method needs besides the reward model: a policy trained by DPO for the log-ratios,
    a token classifier for methods that judge tokens, steps or spans, a rewriter."""
    reference: str | None = None
    """Of a policy trained by DPO; None for the one in its configuration."""
    dpo_beta: float | None = None
    """Price of a log-ratio; None for the one in the configuration of `model`."""
    clip: float | None = None
    """Largest absolute log-ratio, in nats, after its price; None for none."""
    steps: int = field(default=16, metadata={"was": "gradient_steps"})
    """Gradients per response of integrated gradients."""
    width: int = field(default=3, metadata={"was": "window_width"})
    """Most tokens or segments that a window reads at once."""
    samples: int = field(default=20, metadata={"was": "shapley_samples"})
    """Orders of the tokens or segments that Shapley values try out; even."""
    terminal_share: float = field(default=0.0, metadata={"was": "terminal_share"})
    """Share of the reward that is paid as a terminal reward instead, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.terminal_share <= 1 or not 0 <= self.decay < 1:
            raise ConfigError(
                f"terminal_share is {self.terminal_share} and decay {self.decay}; expected numbers "
                "from 0 to 1, the second below it"
            )
