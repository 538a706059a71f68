"""Sources of reward as settings name them, loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import Prompt, ResponseBatch, ResponseScores, RewardScorer
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.scorers.evidence import Responses, require_evidence
from tokencredit.scorers.feature_folders import has_feature_model
from tokencredit.scorers.features import feature_reward
from tokencredit.scorers.functions import named_function, names_function
from tokencredit.scorers.hf_credit_models import CreditModels, loaded_credit_models
from tokencredit.scorers.hf_judges import judge_scorer
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_pooled import pooled_reward_model, unweighted_reward_model
from tokencredit.scorers.hf_prefix_texts import made_of_prefixes, prefix_reading
from tokencredit.scorers.hf_segmentation import response_segments, segment_function
from tokencredit.scorers.hf_similarity import similarity_scorer
from tokencredit.scorers.hf_token_scores import CreditedScorer
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.rewards import (
    CombinedScorer,
    LoadedSource,
    Rewards,
    require_scores_as_read,
)
from tokencredit.scorers.served import served_reward_model
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.server.client import RewardServer
from tokencredit.server.exchange import is_address
from tokencredit.server.vllm_scoring import is_vllm_address, scoring_server, vllm_address
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@dataclass(frozen=True)
class TokenSums:
    """Scores of a source that has no reward model: sums of what its tokens are paid.

    Attributes:
        writer: how the policy reads.
        credit: a method that asks no reward model.
        models: that the method is made from.
        segments: how responses are cut.
        micro_batch_size: rows per forward pass.
    """

    writer: Reading
    credit: CreditSettings
    models: CreditModels
    segments: SegmentSettings
    micro_batch_size: int | None = None

    @property
    def gives(self) -> frozenset[str]:
        """What methods can be made from."""
        return frozenset({"sequence_scores"})

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,  # noqa: ARG002 - every scorer is asked in the same way
        conversations: Sequence[Prompt] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> ResponseScores:
        """Scores of whole responses in nats."""
        every_token = replace(self.credited, credit=replace(self.credit, terminal_share=0.0))
        ids = response_segments(self.segments, self.writer.tokenizer, batch)
        asked = Responses(batch, conversations, segment_ids=ids, ended=ended)
        return ResponseScores(every_token.paid(asked).sum(-1), None, None)

    @property
    def credited(self) -> CreditedScorer:
        """What pays the tokens."""
        return CreditedScorer(
            self, self.writer, self.credit, self.models, self.segments, self.micro_batch_size
        )


def loaded_rewards(
    sources: Sequence[RewardSource],
    credit: CreditSettings,
    segments: SegmentSettings,
    combine: CombinationSettings,
    writer: Reading,
    *,
    known: Mapping[str, tuple[nn.Module, Reading]] | None = None,
    server: Callable[[str], RewardServer] = RewardServer,
    reading: ReadingSettings | None = None,
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
        writer: how the model reads that writes the responses which will be paid.
        known: models that are loaded already, by the name that a source gives them.
        server: makes a client of an address.
        reading: how local models read texts; None leaves that to each model.
        micro_batch_size: responses per forward pass.
        loading: of models, as `load_model` takes it; also `pad_token`.
        has_policy: whether a policy is there whose attention can be read.

    Raises:
        ConfigError: a function is not there, a credit needs what is not named, or one that asks
            the reward model again is to be made of scores that are transformed.
        ModelError, ServerError, DataError: a model is not there, or lacks what its credit needs.
    """
    for cut in (segments, *(one.segments for one in sources if one.segments)):
        segment_function(cut)  # one that is not there is an error before a model is read
    for one in sources:
        require_scores_as_read(one.label, one.score, one.credit or credit)
    loading = dict(loading or {})

    size = micro_batch_size

    def models_of(settings: CreditSettings) -> CreditModels:
        return loaded_credit_models(
            settings, writer.tokenizer, has_policy=has_policy, loading=loading
        )

    loaded = []
    for one in sources:
        cut, own = one.segments or segments, one.own_credit
        if own is not None and one.pays_itself:
            sums = TokenSums(writer, own, models_of(own), cut, size)
            loaded.append(LoadedSource(one.label, sums, one.weight, one.score, sums.credited))
            continue
        own = own or (credit if combine.credit == "each" else None)
        scorer = _loaded(one, own or credit, writer, known or {}, server, reading, size, loading)
        credited = None
        if own is not None:
            require_evidence(own, scorer, where=f"the reward {one.label!r}")
            credited = CreditedScorer(scorer, writer, own, models_of(own), cut, size)
        loaded.append(LoadedSource(one.label, scorer, one.weight, one.score, credited))
    shared = tuple(one for one in loaded if one.credited is None)
    combined = CombinedScorer(shared or tuple(loaded), combine)
    scorer = combined.sources[0].scorer if combined.is_one_as_it_is else combined
    if shared:
        require_evidence(credit, scorer, where="the reward model")
    models = models_of(credit) if shared else CreditModels()
    of_run = CreditedScorer(scorer, writer, credit, models, segments, size)
    return Rewards(tuple(loaded), of_run, combine)


def named_scorer(
    name: str,
    writer: Reading,
    *,
    judge: JudgingSettings | None = None,
    server: Callable[[str], RewardServer] = RewardServer,
    reading: ReadingSettings | None = None,
    loading: Mapping[str, Any] | None = None,
) -> RewardScorer:
    """What scores whole responses by the name that settings give it, no credit made of it.

    Args:
        name: Hub id or folder of a reward model, an address, or `module:function`.
        writer: how the model reads that writes the responses.
        judge: how it is asked as a judge; None for what is none.
        server: makes a client of an address.
        reading: how a local model reads texts; None leaves that to the model.
        loading: of a model, as `load_model` takes it; also `pad_token`.

    Raises:
        ConfigError: a function is not there.
        ModelError, ServerError: a model is not there, or a server does not answer.
    """
    source, whole = RewardSource(name, judge=judge), CreditSettings("terminal")
    return _loaded(source, whole, writer, {}, server, reading, None, dict(loading or {}))


def readable_reward_model(
    source: RewardSource,
    *,
    server: Callable[[str], RewardServer] = RewardServer,
    reading: ReadingSettings | None = None,
    loading: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Reading]:
    """The reward model of a source, and how it reads texts; without weights where vLLM has them.

    Args:
        source: which has tokens.
        server: makes a client of an address.
        reading: how it reads, where the source does not say; None leaves that to the model.
        loading: as `load_model` takes it; also `pad_token`.

    Raises:
        ModelError, ConfigError, ServerError: as `loaded_reward_model`, or as `scoring_server` and
            `unweighted_reward_model`.
    """
    asked, loading = source.reading or reading, dict(loading or {})
    if not is_vllm_address(source.model):
        return loaded_reward_model(source.model, asked, **loading)
    address, name = vllm_address(source.model)
    return unweighted_reward_model(
        scoring_server(server(address)),
        name,
        asked,
        trust_remote_code=loading.get("trust_remote_code", False),
        pad_token=loading.get("pad_token"),
    )


def _loaded(
    source: RewardSource,
    credit: CreditSettings,
    writer: Reading,
    known: Mapping[str, tuple[nn.Module, Reading]],
    server: Callable[[str], RewardServer],
    reading: ReadingSettings | None,
    micro_batch_size: int | None,
    loading: dict[str, Any],
) -> RewardScorer:
    """The scorer of one source."""
    if source.judge is not None:
        return judge_scorer(
            source,
            credit,
            writer,
            server=server,
            reading=reading,
            loading=loading,
            micro_batch_size=micro_batch_size,
        )
    if source.similarity is not None:
        return similarity_scorer(
            source.model, source.label, source.similarity, credit, writer, loading=loading
        )
    if is_vllm_address(source.model):
        found = known.get(source.model) or readable_reward_model(
            source, server=server, reading=reading, loading=loading
        )
        scoring = scoring_server(server(vllm_address(source.model)[0]))
        return pooled_reward_model(scoring, *found, writer, credit=credit)
    if is_address(source.model):
        return served_reward_model(server(source.model), writer, credit=credit)
    if names_function(source.model) or has_feature_model(source.model):
        by_features = has_feature_model(source.model)
        function = feature_reward(source.model) if by_features else named_function(source.model)
        name = f"the {'features of' if by_features else 'function'} {source.model}"
        at_ends = "segments" in credit_method(credit.method).needs
        return FunctionScorer(function, writer, name, made_of_prefixes(credit), at_ends=at_ends)
    model, own = known.get(source.model) or readable_reward_model(
        source, reading=reading, loading=loading
    )
    model.requires_grad_(False)
    size, prefixes = micro_batch_size, prefix_reading(credit)
    return LocalScorer(model, own, writer, credit.layer, size, prefixes)
