"""Settings of credit: the method, what it asks models for, and what verdicts are worth."""

from dataclasses import dataclass, field, replace
from typing import Literal

from tokencredit.credit.methods import credit_method
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


@dataclass(frozen=True)
class CreditSettings:
    """How a score becomes token scores."""

    method: str = field(default="prefix-difference", metadata={"was": "credit"})
    """Name of a credit method; `tokencredit methods` lists them with what they need."""
    beta: float = 0.8
    """Share of the score that attention spreads; the rest stays on the last token."""
    layer: int = field(default=-1, metadata={"was": "attention_layer"})
    """Layer whose attention is read; -1 is the last."""
    decay: float = field(default=0.5, metadata={"was": "smoothing_decay"})
    """Decay of smoothed prefix scores: how much of the score before each token remains, from 0 (no
    smoothing) to below 1."""
    model: str | None = None
    """What the method needs besides the reward model: a policy trained by DPO for log-ratios, a
    token classifier, a rewriter, or a language model whose attention or two prompts are read."""
    reference: str | None = None
    """Reference of a policy trained by DPO; None for the one in its configuration."""
    dpo_beta: float | None = None
    """Beta of a log-ratio; None takes it from the configuration of `model`."""
    clip: float | None = None
    """Largest absolute log-ratio, in nats, after it is multiplied by beta; None for none."""
    score_weight: float = 1.0
    """Weight of the score that `rto` pays on the last token."""
    better_prompt: str = "Write a good answer.\n\n"
    """For `contrastive-prompts`: text before the prompt that asks for a good answer."""
    worse_prompt: str = "Write a bad answer.\n\n"
    """For `contrastive-prompts`: text before the prompt that asks for a bad answer."""
    prefixes: Literal["own-text", "one-pass"] = "own-text"
    """How prefixes are scored if the reward model has other tokens than the policy: `own-text`
    tokenizes the text up to each token by itself, so that later text does not change earlier
    credit; `one-pass` reads all scores from one pass over the response, which is cheaper."""
    fitted: str | None = None
    """File of mean scores by length and by location, which `tokencredit fit-credit` writes."""
    terminal_share: float = field(default=0.0, metadata={"was": "terminal_share"})
    """Share of the reward that is paid at the end instead, from 0 to 1."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """Settings of methods that ask the reward model more than once."""
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """Settings of methods that turn verdicts into scores."""

    def __post_init__(self) -> None:
        if not 0 <= self.terminal_share <= 1 or not 0 <= self.decay < 1:
            raise ConfigError(
                f"terminal_share is {self.terminal_share} and decay {self.decay}; expected numbers "
                "from 0 to 1, the second below it"
            )
        credit_method(self.method)


def with_method(settings: CreditSettings, name: str) -> CreditSettings:
    """The options of the settings with another method, which takes the model only if it needs one.

    >>> with_method(CreditSettings("log-ratio", model="dpo"), "uniform").model is None
    True
    """
    method = credit_method(name)
    return replace(settings, method=name, model=settings.model if method.model_kind else None)


def adds_up(settings: CreditSettings) -> bool:
    """Whether the token scores of several scores add up to those of their weighted sum.

    >>> adds_up(CreditSettings("prefix-difference")), adds_up(CreditSettings("shapley"))
    (True, False)
    """
    clamped = settings.method == "segment" and settings.judge.clamp is not None
    return credit_method(settings.method).adds_up and not clamped
