"""Settings of what credit methods ask models for, and of what verdicts are worth."""

from dataclasses import dataclass, field
from typing import Literal

from tokencredit.credit.token_judges import MQM_SCORES
from tokencredit.errors import ConfigError
from tokencredit.ranges import require_at_least
from tokencredit.text.pooling import Spreading


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of methods that ask the reward model more than once."""

    steps: int = field(default=16, metadata={"was": "gradient_steps"})
    """For integrated gradients: gradients per response."""
    width: int = field(default=3, metadata={"was": "window_width"})
    """For windows: most tokens or segments that are read at once."""
    samples: int = field(default=20, metadata={"was": "shapley_samples"})
    """For Shapley values: orders of the tokens or segments that are tried; even."""
    seed: int = 0
    """Seed of these orders."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "width", "samples")
        if self.samples % 2:
            raise ConfigError(f"samples is {self.samples}; expected an even number")


@dataclass(frozen=True)
class JudgeSettings:
    """What the verdicts of classifiers, rewriters and segment models are worth."""

    transform: Literal["none", "clip", "delta", "clip-delta"] = "none"
    """Transform of step scores: `clip` keeps only what is below `threshold`, `delta` takes how much
    a step scores above the next one."""
    threshold: float = 0.5
    """Probability of a good step below which `clip` charges it."""
    severity_scores: tuple[float, ...] = MQM_SCORES
    """Scores of the classes of a severity classifier, from none to the worst."""
    agreement: float = 1.0
    """What a token earns that a rewriter would keep."""
    divergence: float = -1.0
    """What a token earns that a rewriter would replace."""
    margin: float = 1e-3
    """How much likelier another token must be, in nats, to count as a divergence."""
    unquoted: Literal["even", "end"] = "even"
    """Where `quoted-evidence` pays criteria for which nothing is quoted that stands in the
    response: `even` over all tokens, or at the `end`."""
    spread: Spreading | None = None
    """How segment scores spread over their tokens: `even`, `end` or `copy`; None for the method's
    own."""
    clamp: float | None = None
    """Largest absolute token score of segment rewards, after the spread; None for none. The
    published code has 10."""
