"""Sources of reward as settings name them, checked; `sources` loads them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tokencredit.aggregation.methods import AGGREGATIONS, CombinationSettings, require_weights
from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.credit.evidence import OF_SCORERS
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError
from tokencredit.scorers.feature_folders import has_feature_model
from tokencredit.scorers.functions import names_function
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.server.exchange import checked_address, is_address
from tokencredit.server.judge_endpoint import endpoint_address
from tokencredit.server.vllm_scoring import is_vllm_address
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@dataclass(frozen=True)
class SimilaritySettings:
    """How responses are compared with references."""

    references: str
    """JSON-lines file with `prompt` and `response`, one reference for every prompt."""


@dataclass(frozen=True)
class RewardSource:
    """One source of reward."""

    model: str
    """Hub id or folder of a reward model; the address of a `tokencredit serve`, `http(s)://...`, or
    of a vLLM server that scores, `vllm+http(s)://...`, followed by `#` and the model's folder or
    Hub id if it has another name here; `module:function`, a Python function from prompts and
    responses to scores; or a folder of `train-feature-model`. If its own credit needs no reward
    model, as `fine-grained`, the model of that credit."""
    name: str = ""
    """Name in metrics and samples; empty for the last part of `model`."""
    weight: float = 1.0
    """Multiplies its scores, and its token scores where it has a credit of its own."""
    score: ScoreSettings = field(default_factory=ScoreSettings)
    """What is done to its score before it is combined and spread."""
    credit: CreditSettings | None = None
    """Its own credit. None takes the credit of the run; the scores of all sources without their own
    are combined before it."""
    segments: SegmentSettings | None = None
    """How responses are cut for its own credit; None for the segments of the run."""
    reading: ReadingSettings | None = None
    """How it reads texts; None for the reading of the run."""
    judge: JudgingSettings | None = None
    """How it is asked as a judge: `model` is then the Hub id or folder of a causal language model,
    or `http(s)://.../v1#name`, a model behind an endpoint of chat completions."""
    similarity: SimilaritySettings | None = None
    """How it compares responses with references: `model` is then the Hub id or folder of a causal
    language model, whose input embeddings say how like two tokens are."""

    def __post_init__(self) -> None:
        if self.similarity is not None and (self.judge or not is_local(self.model)):
            raise ConfigError(
                f"the source {self.model!r} has `similarity`"
                f"{' and `judge`' if self.judge else ''}; expected one of the two, and a causal "
                "language model by Hub id or folder as `model`"
            )
        if self.judge is None:
            return
        if is_vllm_address(self.model) or names_function(self.model) or not self.judge.setup:
            raise ConfigError(
                f"the judge {self.model!r} is asked by the set-up {self.judge.setup!r}; expected "
                "a causal language model or http://host:port/v1#name as `model`, and judge.setup"
            )
        if is_address(self.model):
            checked_address(endpoint_address(self.model)[0])
        elif self.judge.token_variable is not None:
            raise ConfigError(
                f"judge.token_variable is {self.judge.token_variable!r} and the judge "
                f"{self.model!r} is no address; expected http://host:port/v1#name, or no token"
            )

    @property
    def label(self) -> str:
        """Its name in metrics and samples."""
        return self.name or re.split(r"[/:#]", self.model.rstrip("/"))[-1]

    @property
    def pays_itself(self) -> bool:
        """Whether `model` is no reward model, but what its own credit is made from."""
        if self.judge or self.similarity or not is_local(self.model):
            return False
        if self.credit is None or self.credit.model is not None:
            return False
        method = credit_method(self.credit.method)
        return bool(method.model_kind) and not set(method.needs) & set(OF_SCORERS)

    @property
    def own_credit(self) -> CreditSettings | None:
        """Its own credit with the model that it is made from; None takes that of the run."""
        if self.credit is None or not self.pays_itself:
            return self.credit
        return replace(self.credit, model=self.model)

    @property
    def has_tokens(self) -> bool:
        """Whether how it cuts texts into tokens is known here."""
        return self.is_reward_model or is_vllm_address(self.model)

    @property
    def is_reward_model(self) -> bool:
        """Whether a reward model that reads tokens is loaded here, and nothing else."""
        other = self.judge or self.similarity
        if other or has_feature_model(self.model):
            return False
        return is_local(self.model) and not self.pays_itself

    @property
    def is_local_language_model(self) -> bool:
        """Whether it is a language model of this process, which judges or compares."""
        return bool(self.judge or self.similarity) and is_local(self.model)


def required_sources(
    reward_model: str | None,
    rewards: Sequence[RewardSource],
    *,
    score: ScoreSettings | None = None,
    combine: CombinationSettings | None = None,
    has_references: bool = False,
) -> tuple[RewardSource, ...]:
    """The sources that settings name: one reward model in the short form, or a list.

    Args:
        reward_model: of the short form; None where there is a list.
        rewards: the list; empty in the short form.
        score: of the short form.
        combine: how several become one.
        has_references: whether responses of a reference policy are drawn, with which scores may be
            compared.

    Raises:
        ConfigError: neither or both are given, two have the same name, a weight is NaN or
            infinite, or sources with credit of their own are to be combined otherwise than by sum.
    """
    if (reward_model is None) == (not rewards):
        raise ConfigError(
            f"reward_model is {reward_model!r} and there are {len(rewards)} rewards; expected one "
            "reward model, or a list of rewards"
        )
    for one in () if has_references else rewards:
        if one.score.reference_responses or one.score.normalization == "reference":
            raise ConfigError(
                f"the score of the reward {one.label!r} is compared with the reference's responses "
                f"(transform {one.score.transform!r}, normalization {one.score.normalization!r}); "
                "expected another transform and normalization: train-policy alone draws these"
            )
    if reward_model is not None:
        return (RewardSource(reward_model, name="reward", score=score or ScoreSettings()),)
    combine = combine or CombinationSettings()
    labels = [one.label for one in rewards]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(
            f"two rewards have the name {twice[0]!r}; expected a name of its own for each: set "
            "`name`"
        )
    own = [one.label for one in rewards if one.credit is not None]
    if own and combine.credit == "together" and AGGREGATIONS[combine.method].acts != "linear":
        raise ConfigError(
            f"combine.method is {combine.method!r} and the reward {own[0]!r} has a credit of its "
            "own; expected 'sum', combine.credit 'each', or one credit of the combined scores: set "
            "`credit` of the run"
        )
    require_weights([one.weight for one in rewards], combine)
    return tuple(rewards)


def is_local(model: str) -> bool:
    """Whether a source names a model that is loaded here: no address and no function."""
    return not is_address(model) and not names_function(model)
