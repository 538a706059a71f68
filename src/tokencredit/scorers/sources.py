"""Several sources of reward: their models, what each weighs, and how they become one reward."""

import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.aggregation.methods import (
    AGGREGATIONS,
    CombinationSettings,
    require_weights,
)
from tokencredit.aggregation.transforms import RunningMoments, ScoreSettings, transformed_scores
from tokencredit.batch import Prompt, ResponseBatch, ResponseScores, RewardScorer
from tokencredit.credit.methods import CreditSettings, credit_method
from tokencredit.errors import ConfigError, DataError
from tokencredit.scorers.credit_models import CreditModels, loaded_credit_models
from tokencredit.scorers.ensemble import ensemble_scores, ensemble_token_scores
from tokencredit.scorers.evidence import AskPolicy, Responses, require_evidence, response_scores
from tokencredit.scorers.local import LocalScorer
from tokencredit.scorers.policy_tokens import decoded_responses
from tokencredit.scorers.segmentation import response_segments
from tokencredit.scorers.served import served_reward_model
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.scorers.token_scores import CreditedScorer
from tokencredit.server.client import RewardServer
from tokencredit.server.exchange import is_address
from tokencredit.text.hf_rendering import Template
from tokencredit.text.segments import SegmentSettings

TextReward = Callable[[list[Any], list[str]], Sequence[float]]
"""A reward written in Python: from prompts and responses to one number per response."""

MomentsOf = Callable[[str, Float[Tensor, "batch"]], RunningMoments]
"""From the name of a source and its scores to the moments that they are normalised by."""

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class RewardSource:
    """One source of reward."""

    model: str
    """Hub id or folder of a reward model, the address, `http(s)://...`, of a `tokencredit serve`,
    or `module:function`, a Python function from prompts and responses to scores."""
    name: str = ""
    """In metrics and samples; empty for the last part of `model`."""
    weight: float = 1.0
    """Multiplies its scores, and its token scores where it has a credit of its own."""
    score: ScoreSettings = field(default_factory=ScoreSettings)
    """What is done to its score before it is combined and spread."""
    credit: CreditSettings | None = None
    """A credit of its own; None takes the credit of the run, which all sources without one share:
    their scores are combined before it."""
    segments: SegmentSettings | None = None
    """How responses are cut for its own credit; None for the segments of the run."""

    @property
    def label(self) -> str:
        """Its name in metrics and samples."""
        return self.name or re.split(r"[/:]", self.model.rstrip("/"))[-1]


@dataclass(frozen=True)
class FunctionScorer:
    """A reward written in Python, which reads text.

    Attributes:
        function: from prompts and responses to one number per response.
        policy_tokenizer: of the ids in the batches.
        name: for messages.
    """

    function: TextReward
    policy_tokenizer: PreTrainedTokenizerBase
    name: str = "the function"

    @property
    def gives(self) -> frozenset[str]:
        """What methods can be made from."""
        return frozenset({"sequence_scores", "kept_tokens"})

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,  # noqa: ARG002 - every scorer is asked in the same way
        conversations: Sequence[Prompt] | None = None,
    ) -> ResponseScores:
        """Scores of whole responses, by their text.

        Args:
            batch: responses of the policy.
            attention: there is none.
            conversations: what was asked; None takes the text of the prompt's ids.

        Raises:
            DataError: the function does not give one finite number per response.
        """
        decoded = decoded_responses(self.policy_tokenizer, batch)
        prompts = [row.prompt for row in decoded] if conversations is None else list(conversations)
        found = list(self.function(prompts, [row.response for row in decoded]))
        try:
            scores = torch.tensor([float(score) for score in found])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.name} gives {found[:3]}; expected one number per response"
            ) from error
        if len(scores) != len(batch) or not bool(scores.isfinite().all()):
            raise DataError(
                f"{self.name} gives {len(scores)} scores for {len(batch)} responses, of which "
                f"{int(scores.isfinite().sum())} are finite; expected one finite number for each"
            )
        return ResponseScores(scores.to(batch.response_ids.device), None, None)


@dataclass(frozen=True)
class LoadedSource:
    """A source of reward that can be asked.

    Attributes:
        name: in metrics and samples.
        scorer: of responses.
        weight: of its scores.
        score: what is done to its score before.
        credited: its own credit; None where it shares that of the run.
    """

    name: str
    scorer: RewardScorer
    weight: float = 1.0
    score: ScoreSettings = field(default_factory=ScoreSettings)
    credited: CreditedScorer | None = None


@dataclass(frozen=True)
class CombinedScorer:
    """Several scorers of responses as one: what they say is combined before credit is given.

    Attributes:
        sources: at least one.
        combine: how.
    """

    sources: tuple[LoadedSource, ...]
    combine: CombinationSettings = field(default_factory=CombinationSettings)

    @property
    def gives(self) -> frozenset[str]:
        """What all sources give; attention and embeddings of one source alone."""
        common = reduce(frozenset.intersection, (one.scorer.gives for one in self.sources))
        return common if len(self.sources) == 1 else common - {"attention", "embeddings"}

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,
        conversations: Sequence[Prompt] | None = None,
    ) -> ResponseScores:
        """Combined scores in nats, not normalised."""
        asked = Responses(batch, conversations)
        return self.combined(
            [response_scores(one.scorer, asked, attention=attention) for one in self.sources]
        )

    def combined(self, scores: Sequence[ResponseScores]) -> ResponseScores:
        """Scores of the sources, in their order, as one."""
        if len(scores) == 1 and self.sources[0].weight == 1.0:
            return scores[0]
        return ensemble_scores(scores, [one.weight for one in self.sources], self.combine)


@dataclass(frozen=True)
class PaidResponses:
    """What sources of reward say of a batch of responses.

    Attributes:
        raw: sequence scores of each source by its name, as it gave them, in nats.
        sequence_scores: raw scores, combined.
        token_scores: what each token is paid.
        seen: moments that the scores of each source were normalised by.
    """

    raw: dict[str, Float[Tensor, "batch"]]
    sequence_scores: Float[Tensor, "batch"]
    token_scores: Float[Tensor, "batch time"]
    seen: dict[str, RunningMoments] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewards:
    """All sources of reward with the credit that is made from them: a `TokenScorer`.

    Attributes:
        sources: at least one, each with a name of its own.
        credited: the credit of the run, over the sources that have none of their own.
        combine: how sources become one.
    """

    sources: tuple[LoadedSource, ...]
    credited: CreditedScorer
    combine: CombinationSettings = field(default_factory=CombinationSettings)

    @property
    def modules(self) -> list[nn.Module]:
        """The models of this process that are asked, other than the policy."""
        found = [getattr(one.scorer, "model", None) for one in self.sources]
        for credited in (self.credited, *(one.credited for one in self.sources if one.credited)):
            found += [credited.models.model, credited.models.reference]
        return [model for model in found if isinstance(model, nn.Module)]

    def __call__(
        self, batch: ResponseBatch, conversations: Sequence[Prompt] | None = None
    ) -> Float[Tensor, "batch time"]:
        """Token scores of responses, without running normalisation."""
        settings, tokenizer = self.credited.segments, self.credited.tokenizer
        ids = response_segments(settings, tokenizer, batch)
        return self.paid(Responses(batch, conversations, segment_ids=ids)).token_scores

    def paid(
        self,
        responses: Responses,
        *,
        scores: Sequence[ResponseScores] | None = None,
        moments_of: MomentsOf | None = None,
        ask_policy: AskPolicy | None = None,
    ) -> PaidResponses:
        """What every token is paid by all sources together.

        Args:
            responses: with segment ids where the settings of the run cut segments.
            scores: what each source said of them, as `scores` gives it; None asks them.
            moments_of: for running normalisation: from the name of a source and its scores of this
                batch to the moments that they are normalised by; None counts this batch alone.
            ask_policy: of the policy that wrote the responses, where there is one.

        Raises:
            ConfigError, DataError, ModelError, NumericError, ServerError: as the sources.
        """
        raw = self.scores(responses) if scores is None else scores
        names = [one.name for one in self.sources]
        count = moments_of or (lambda _, scores: RunningMoments().updated(scores))
        seen = {
            name: count(name, one.sequence_scores) for name, one in zip(names, raw, strict=True)
        }
        changed = [
            transformed_scores(found, one.score, seen[one.name]).transformed
            for one, found in zip(self.sources, raw, strict=True)
        ]
        return PaidResponses(
            {name: one.sequence_scores for name, one in zip(names, raw, strict=True)},
            self._combined(raw).sequence_scores,
            self._token_scores(responses, changed, ask_policy),
            seen,
        )

    def scores(
        self, responses: Responses, *, attention: bool | None = None
    ) -> list[ResponseScores]:
        """What each source says of responses, as it is.

        Args:
            responses: of the policy.
            attention: whether to ask for it; None where a credit needs it.
        """
        found = []
        for one in self.sources:
            credited = one.credited or self.credited
            needed = "attention" in credit_method(credited.credit.method).needs
            asks = needed if attention is None else attention
            found.append(response_scores(one.scorer, responses, attention=asks))
        return found

    def _combined(self, scores: Sequence[ResponseScores]) -> ResponseScores:
        return CombinedScorer(self.sources, self.combine).combined(
            [ResponseScores(one.sequence_scores, None, None) for one in scores]
        )

    def _token_scores(
        self,
        responses: Responses,
        scores: Sequence[ResponseScores],
        ask_policy: AskPolicy | None,
    ) -> Float[Tensor, "batch time"]:
        pairs = list(zip(self.sources, scores, strict=True))
        shared = [(one, found) for one, found in pairs if one.credited is None]
        own = [(one, found) for one, found in pairs if one.credited is not None]
        paid, weights = [], []
        if shared:
            combined = CombinedScorer(tuple(one for one, _ in shared), self.combine).combined(
                [found for _, found in shared]
            )
            paid.append(self.credited.paid(responses, scores=combined, ask_policy=ask_policy))
            weights.append(1.0)
        for one, found in own:
            assert one.credited is not None
            asked = responses
            if one.credited.segments is not self.credited.segments:
                ids = response_segments(
                    one.credited.segments, one.credited.tokenizer, responses.batch
                )
                asked = replace(responses, segment_ids=ids)
            paid.append(one.credited.paid(asked, scores=found, ask_policy=ask_policy))
            weights.append(one.weight)
        if not own:
            return paid[0]
        return ensemble_token_scores(paid, weights, CombinationSettings("sum"))


def required_sources(
    reward_model: str | None,
    rewards: Sequence[RewardSource],
    *,
    score: ScoreSettings | None = None,
    combine: CombinationSettings | None = None,
) -> tuple[RewardSource, ...]:
    """The sources that settings name: one reward model in the short form, or a list.

    Args:
        reward_model: of the short form; None where there is a list.
        rewards: the list; empty in the short form.
        score: of the short form.
        combine: how several become one.

    Raises:
        ConfigError: neither or both are given, two have the same name, a weight is NaN or
            infinite, or sources with credit of their own are to be combined otherwise than by sum.
    """
    if (reward_model is None) == (not rewards):
        raise ConfigError(
            f"reward_model is {reward_model!r} and there are {len(rewards)} rewards; expected one "
            "reward model, or a list of rewards"
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
    if own and AGGREGATIONS[combine.method].acts != "linear":
        raise ConfigError(
            f"combine.method is {combine.method!r} and the reward {own[0]!r} has a credit of its "
            "own; expected 'sum', or one credit of the combined scores: set `credit` of the run"
        )
    require_weights([one.weight for one in rewards], combine)
    return tuple(rewards)


def loaded_rewards(
    sources: Sequence[RewardSource],
    credit: CreditSettings,
    segments: SegmentSettings,
    combine: CombinationSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    known: Mapping[str, tuple[nn.Module, PreTrainedTokenizerBase]] | None = None,
    server: Callable[[str], RewardServer] = RewardServer,
    template: Template = "auto",
    micro_batch_size: int | None = None,
    loading: Mapping[str, Any] | None = None,
    has_policy: bool = False,
) -> Rewards:
    """Load every source, with what its credit needs besides.

    Args:
        sources: as `required_sources` gives them.
        credit: of the run.
        segments: of the run.
        combine: how sources become one.
        tokenizer: of the responses that will be paid.
        known: models that are loaded already, by the name that a source gives them.
        server: makes a client of an address.
        template: how local models render texts, as in `encoded_prompts`.
        micro_batch_size: responses per forward pass.
        loading: of models, as `load_model` takes it; also `pad_token`.
        has_policy: whether a policy is there whose attention can be read.

    Raises:
        ConfigError: a function is not there, or a credit needs what is not named.
        ModelError, ServerError, DataError: a model is not there, or lacks what its credit needs.
    """
    loading = dict(loading or {})

    def credited(scorer: RewardScorer, settings: CreditSettings, cut: SegmentSettings, what: str
                 ) -> CreditedScorer:  # fmt: skip
        require_evidence(settings, scorer, where=what)
        models = loaded_credit_models(settings, tokenizer, has_policy=has_policy, loading=loading)
        return CreditedScorer(scorer, tokenizer, settings, models, cut, micro_batch_size)

    loaded = []
    for one in sources:
        own = one.credit or credit
        scorer = _loaded(
            one, own, tokenizer, known or {}, server, template, micro_batch_size, loading
        )
        of_its_own = None
        if one.credit is not None:
            cut = one.segments or segments
            of_its_own = credited(scorer, one.credit, cut, f"the reward {one.label!r}")
        loaded.append(LoadedSource(one.label, scorer, one.weight, one.score, of_its_own))
    shared = tuple(one for one in loaded if one.credited is None)
    scorer = CombinedScorer(shared or tuple(loaded), combine)
    single = scorer.sources[0].scorer if len(scorer.sources) == 1 else scorer
    if shared:
        of_run = credited(single, credit, segments, "the reward model")
    else:
        of_run = CreditedScorer(single, tokenizer, credit, CreditModels(), segments)
    return Rewards(tuple(loaded), of_run, combine)


def is_local(model: str) -> bool:
    """Whether a source names a reward model that is loaded here: no address and no function."""
    return not is_address(model) and not _FUNCTION.fullmatch(model)


def _loaded(
    source: RewardSource,
    credit: CreditSettings,
    tokenizer: PreTrainedTokenizerBase,
    known: Mapping[str, tuple[nn.Module, PreTrainedTokenizerBase]],
    server: Callable[[str], RewardServer],
    template: Template,
    micro_batch_size: int | None,
    loading: dict[str, Any],
) -> RewardScorer:
    """The scorer of one source."""
    if is_address(source.model):
        return served_reward_model(server(source.model), tokenizer, credit=credit)
    if _FUNCTION.fullmatch(source.model):
        return FunctionScorer(_function(source.model), tokenizer, f"the function {source.model}")
    model, own = known.get(source.model) or loaded_reward_model(source.model, **loading)
    model.requires_grad_(False)
    return LocalScorer(model, own, tokenizer, template, credit.layer, micro_batch_size)


def _function(path: str) -> TextReward:
    """The function at `module:function`, from the working folder or what is installed."""
    module, _, name = path.partition(":")
    sys.path.insert(0, "")
    try:
        found: TextReward = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"there is no function {path} ({error}); expected `module:function` of a module in the "
            "working folder or an installed one"
        ) from error
    finally:
        sys.path.remove("")
    return found
