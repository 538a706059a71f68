"""Several sources of reward as one: what each says, what each weighs, what a token is paid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from jaxtyping import Bool, Float
from torch import Tensor, nn, stack, tensor

from tokencredit.aggregation.methods import CombinationSettings, combining_weights
from tokencredit.aggregation.transforms import (
    ReferenceScores,
    RunningMoments,
    ScoreSettings,
    counted_scores,
    transformed_scores,
)
from tokencredit.batch import (
    ObjectiveScores,
    Prompt,
    ResponseBatch,
    ResponseScores,
    RewardScorer,
)
from tokencredit.credit.evidence import NEEDS
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings, adds_up
from tokencredit.errors import ConfigError
from tokencredit.scorers.ensemble import ensemble_scores, ensemble_token_scores
from tokencredit.scorers.evidence import AskPolicy, Responses, response_scores
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.scorers.hf_token_scores import CreditedScorer

MomentsOf = Callable[[str, Float[Tensor, "batch"]], RunningMoments]
"""From the name of a source and its scores to the moments that they are normalised by."""


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

    def objective_key(self, name: str, *, of: int) -> str:
        """An objective of this source by its name, after that of the source if it is one of many.

        Args:
            name: of the objective.
            of: so many sources.
        """
        return name if of == 1 else f"{self.name}/{name}"


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
    def is_one_as_it_is(self) -> bool:
        """Whether nothing is combined and nothing weighed."""
        return len(self.sources) == 1 and self.sources[0].weight == 1.0

    @property
    def gives(self) -> frozenset[str]:
        """What all give; attention and quotes of one source, embeddings of one as it is."""
        common = reduce(frozenset.intersection, (one.scorer.gives for one in self.sources))
        if not self.is_one_as_it_is:
            common -= {"embeddings"}
        return common if len(self.sources) == 1 else common - {"attention", "quoted_scores"}

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,
        conversations: Sequence[Prompt] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> ResponseScores:
        """Combined scores in nats, not normalised."""
        asked = Responses(batch, conversations, ended=ended)
        return self.combined(
            [response_scores(one.scorer, asked, attention=attention) for one in self.sources]
        )

    def combined(self, scores: Sequence[ResponseScores]) -> ResponseScores:
        """Scores of the sources, in their order, as one."""
        if self.is_one_as_it_is:
            return scores[0]
        return ensemble_scores(scores, [one.weight for one in self.sources], self.combine)


@dataclass(frozen=True)
class PaidObjective:
    """What one of several objectives of a reward model says of a batch of responses.

    Attributes:
        weights: of the objective in the reward of each response, known when its prompt is; None
            where the reward is no weighted sum of its objectives.
        sequence_scores: by this objective alone, without its weight.
        token_scores: likewise what each token is paid; None where these do not add up to those of
            the reward: with a reward that is no weighted sum, or credit that is not linear.
    """

    weights: Float[Tensor, "batch"] | None
    sequence_scores: Float[Tensor, "batch"]
    token_scores: Float[Tensor, "batch time"] | None

    def weight_of(self, row: int) -> float | None:
        """The weight in one response, in the digits that float32 has, so that 0.7 stays 0.7."""
        return None if self.weights is None else float(f"{float(self.weights[row]):.7g}")


@dataclass(frozen=True)
class PaidResponses:
    """What sources of reward say of a batch of responses.

    Attributes:
        raw: sequence scores of each source by its name, as it gave them, in nats.
        sequence_scores: raw scores, combined.
        token_scores: what each token is paid.
        seen: moments that the scores of each source were normalised by.
        by_source: what each source with a credit of its own pays each token, without its weight.
        transformed: sequence scores after what is done to those of each source, combined; None
            where tokens are paid without them.
        transformed_by_source: likewise, of each source by its name.
        raw_by_objective: sequence scores by each objective of a source that has several, by the
            names of both, without weights.
    """

    raw: dict[str, Float[Tensor, "batch"]]
    sequence_scores: Float[Tensor, "batch"]
    token_scores: Float[Tensor, "batch time"]
    seen: dict[str, RunningMoments] = field(default_factory=dict)
    by_source: dict[str, Float[Tensor, "batch time"]] = field(default_factory=dict)
    transformed: Float[Tensor, "batch"] | None = None
    transformed_by_source: dict[str, Float[Tensor, "batch"]] = field(default_factory=dict)
    raw_by_objective: dict[str, Float[Tensor, "batch"]] = field(default_factory=dict)


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
        """The models of this process that are asked, other than the policy.

        Not those whose weights a server has: they are here without them, on the device `meta`.
        """
        found = [getattr(one.scorer, "model", None) for one in self.sources]
        for credited in (self.credited, *(one.credited for one in self.sources if one.credited)):
            found += [credited.models.model, credited.models.reference]
        modules = [model for model in found if isinstance(model, nn.Module)]
        return [one for one in modules if not any(weight.is_meta for weight in one.parameters())]

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
        unfinished: Bool[Tensor, "batch"] | None = None,
        references: Mapping[str, ReferenceScores] | None = None,
    ) -> PaidResponses:
        """What every token is paid by all sources together.

        Args:
            responses: with segment ids where the settings of the run cut segments.
            scores: what each source said of them, as `scores` gives it; None asks them.
            moments_of: for running normalisation: from the name of a source and its scores of this
                batch to the moments that they are normalised by; None counts this batch alone.
            ask_policy: of the policy that wrote the responses, where there is one.
            unfinished: as in `CreditedScorer.paid`.
            references: by the name of each source that compares with responses of the reference,
                what it says of these.

        Raises:
            ConfigError, DataError, ModelError, NumericError, ServerError: as the sources.
        """
        raw = self.scores(responses) if scores is None else scores
        names = [one.name for one in self.sources]
        count = moments_of or (lambda _, scores: RunningMoments().updated(scores))
        mask = responses.batch.response_mask
        seen = {
            one.name: count(one.name, counted_scores(found, one.score, mask))
            for one, found in zip(self.sources, raw, strict=True)
        }
        changed = [
            transformed_scores(
                found,
                one.score,
                seen[one.name],
                response_mask=mask,
                references=(references or {}).get(one.name),
            ).transformed
            for one, found in zip(self.sources, raw, strict=True)
        ]
        token_scores, by_source = self._token_scores(responses, changed, ask_policy, unfinished)
        return PaidResponses(
            {name: one.sequence_scores for name, one in zip(names, raw, strict=True)},
            self._combined(raw).sequence_scores,
            token_scores,
            seen,
            by_source,
            self._combined(changed).sequence_scores,
            {name: one.sequence_scores for name, one in zip(names, changed, strict=True)},
            {
                f"{name}/{objective}": part.scores.sequence_scores
                for name, one in zip(names, raw, strict=True)
                for objective, part in one.objectives.items()
            },
        )

    def by_objective(
        self,
        responses: Responses,
        scores: Sequence[ResponseScores],
        *,
        ask_policy: AskPolicy | None = None,
        paid: bool = True,
    ) -> dict[str, PaidObjective]:
        """What each token is paid by every objective of the sources that have several.

        Weighted token scores of all objectives add up to those that `paid` gives, less what
        sources without objectives pay.

        Args:
            responses: as in `paid`.
            scores: as `scores` gives them.
            ask_policy: as in `paid`.
            paid: whether token scores are made, or only sequence scores told.

        Returns:
            By the name of the objective; before it that of the source, where there are several.
        """
        found = {}
        for source, said in zip(self.sources, scores, strict=True):
            for name, one in said.objectives.items():
                key = source.objective_key(name, of=len(self.sources))
                found[key] = self._paid_objective(source, one, responses, ask_policy, paid)
        return found

    def _paid_objective(
        self,
        source: LoadedSource,
        one: ObjectiveScores,
        responses: Responses,
        ask_policy: AskPolicy | None,
        paid: bool,
    ) -> PaidObjective:
        credited = source.credited or self.credited
        as_read = source.score == ScoreSettings() and one.weights is not None
        summed = len(self.sources) == 1 or self.combine.method == "sum"
        weights = None if one.weights is None else source.weight * one.weights
        if not (as_read and summed):
            weights = None
        if weights is None or not (paid and adds_up(credited.credit)):
            return PaidObjective(weights, one.scores.sequence_scores, None)
        if credited.segments is not self.credited.segments:
            ids = response_segments(credited.segments, credited.tokenizer, responses.batch)
            responses = replace(responses, segment_ids=ids)
        token_scores = credited.paid(responses, scores=one.scores, ask_policy=ask_policy)
        return PaidObjective(weights, one.scores.sequence_scores, token_scores)

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
            # Cut in another way, a source is asked at every token.
            same = credited.segments is self.credited.segments
            asked = responses if same else replace(responses, segment_ids=None)
            found.append(response_scores(one.scorer, asked, attention=asks))
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
        unfinished: Bool[Tensor, "batch"] | None,
    ) -> tuple[Float[Tensor, "batch time"], dict[str, Float[Tensor, "batch time"]]]:
        pairs = list(zip(self.sources, scores, strict=True))
        shared = [(one, found) for one, found in pairs if one.credited is None]
        own = [(one, found) for one, found in pairs if one.credited is not None]
        paid, weights = [], []
        if shared:
            combined = CombinedScorer(tuple(one for one, _ in shared), self.combine).combined(
                [found for _, found in shared]
            )
            paid.append(
                self.credited.paid(
                    responses, scores=combined, ask_policy=ask_policy, unfinished=unfinished
                )
            )
            weights.append(1.0)
        for one, found in own:
            assert one.credited is not None
            asked = responses
            if one.credited.segments is not self.credited.segments:
                ids = response_segments(
                    one.credited.segments, one.credited.tokenizer, responses.batch
                )
                asked = replace(responses, segment_ids=ids)
            paid.append(
                one.credited.paid(asked, scores=found, ask_policy=ask_policy, unfinished=unfinished)
            )
            weights.append(one.weight)
        if not own:
            return paid[0], {}
        by_source = {
            one.name: tokens for (one, _), tokens in zip(own, paid[-len(own) :], strict=True)
        }
        if self.combine.credit == "each":
            shares = combining_weights(
                stack([found.sequence_scores for _, found in own], dim=-1),
                tensor(weights),
                self.combine,
            )
            return (stack(paid, dim=-1) * shares[:, None]).sum(-1), by_source
        return ensemble_token_scores(paid, weights, CombinationSettings("sum")), by_source


def require_scores_as_read(name: str, score: ScoreSettings, credit: CreditSettings) -> None:
    """Raise ConfigError where a credit asks again, and so meets scores before their transform.

    Args:
        name: of the source.
        score: its transform.
        credit: that is made from it.
    """
    needs = credit_method(credit.method).needs
    again = [need for need in needs if need in ("kept_tokens", "embeddings")]
    changed = [key for key, value in vars(score).items() if value != vars(ScoreSettings())[key]]
    if again and changed:
        how = ", ".join(f"{key} {getattr(score, key)!r}" for key in changed)
        raise ConfigError(
            f"the score of {name!r} is transformed ({how}), and credit method {credit.method!r} is "
            f"made from {NEEDS[again[0]]}, as the reward model gives it; expected no transform of "
            "the score, or a method that is made from prefix scores"
        )
