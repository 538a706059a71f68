"""Sources of reward asked about whole texts, in the tokens of the first reward model among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import Prompt
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_tokenizer
from tokencredit.scorers.evidence import Responses, require_evidence
from tokencredit.scorers.hf_credit_models import loaded_credit_models
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_pooled import PooledRewardModel
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.rewards import PaidObjective, Rewards, require_scores_as_read
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards, readable_reward_model
from tokencredit.scorers.texts import whole_texts
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@dataclass(frozen=True)
class PaidTexts:
    """Responses in the tokens of their reader, and what each token is paid.

    Attributes:
        encoded: prompts and responses, with the characters of each token.
        source_scores: sequence scores of each source by its name, in nats.
        sequence_scores: the same, combined.
        token_scores: by each credit, of each token, in nats.
        objectives: by each credit, what each objective of a reward model that has several says, by
            its name.
    """

    encoded: EncodedResponses
    source_scores: dict[str, Float[Tensor, "batch"]]
    sequence_scores: Float[Tensor, "batch"]
    token_scores: tuple[Float[Tensor, "batch time"], ...]
    objectives: tuple[dict[str, PaidObjective], ...] = ()


def loaded_text_rewards(
    sources: Sequence[RewardSource],
    credit: CreditSettings,
    segments: SegmentSettings,
    *,
    combine: CombinationSettings | None = None,
    reading: ReadingSettings | None = None,
    micro_batch_size: int | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Rewards:
    """Sources of reward for responses in the tokens of the first reward model among them.

    Where there is none they are those of the first judge, or of the first model that compares with
    references, that is loaded here.

    Args:
        sources: as `required_sources` gives them.
        credit: of the run.
        segments: how responses are cut.
        combine: how sources become one.
        reading: how reward models read texts; None leaves that to each model.
        micro_batch_size: responses per forward pass.
        loading: of models, as `load_model` takes it; also `pad_token`.

    Raises:
        ConfigError: no source is a reward model whose tokens are known here and could be paid.
        DataError, ModelError, ServerError: as `loaded_rewards`.
    """
    source = next((one for one in sources if one.has_tokens), None)
    local = next((one for one in sources if one.is_local_language_model), None)
    known: dict[str, tuple[nn.Module, Reading]] = {}
    if source is not None:
        known[source.model] = readable_reward_model(source, reading=reading, loading=loading)
        writer = known[source.model][1]
    elif local is not None:
        said = dict(loading or {})
        tokenizer = load_tokenizer(
            local.model,
            pad_token=said.get("pad_token"),
            trust_remote_code=said.get("trust_remote_code", False),
        )
        writer = written_by(tokenizer, local.model)
    else:
        raise ConfigError(
            f"the rewards are {', '.join(one.model for one in sources)}; expected a reward model "
            "or a judge by Hub id or folder, or a reward model that vLLM serves, among them: its "
            "tokens are those that are paid"
        )
    return loaded_rewards(
        sources,
        credit,
        segments,
        combine or CombinationSettings(),
        writer,
        known=known,
        reading=reading,
        micro_batch_size=micro_batch_size,
        loading=loading,
    )


def other_credit(
    rewards: Rewards, credit: CreditSettings, *, loading: Mapping[str, Any] | None = None
) -> Rewards:
    """Sources of reward with another credit, whose own model is loaded if it needs one.

    Args:
        rewards: as `loaded_text_rewards` returns them.
        credit: the other method.
        loading: as there.

    Raises:
        ConfigError: as `loaded_credit_models` and `require_scores_as_read`.
        ModelError: as `loaded_credit_models`, or the sources lack what it needs.
    """
    for one in rewards.sources:
        if one.credited is None:
            require_scores_as_read(one.name, one.score, credit)
    require_evidence(credit, rewards.credited.scorer, where="the reward model")
    models = loaded_credit_models(credit, rewards.credited.tokenizer, loading=loading)
    return replace(rewards, credited=replace(rewards.credited, credit=credit, models=models))


def reader_of(rewards: Rewards) -> tuple[nn.Module, Reading]:
    """The reward model whose own tokens are paid, or the judge, and how it reads texts."""
    tokenizer = rewards.credited.tokenizer
    for one in rewards.sources:
        scorer = one.scorer
        if isinstance(scorer, LocalScorer | PooledRewardModel) and scorer.tokenizer is tokenizer:
            return scorer.model, scorer.reading
    judges = [one.scorer for one in rewards.sources if isinstance(one.scorer, FunctionScorer)]
    found = next(one for one in judges if one.model is not None)
    assert found.model is not None
    return found.model, found.writer


def paid_texts(
    rewards: Sequence[Rewards],
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    ended: bool | Sequence[bool] = True,
) -> PaidTexts:
    """What each token of whole responses is paid, in the tokens of the first reward model.

    One forward pass of each source serves every credit that needs no more.

    Args:
        rewards: the same sources with one credit or several, as `loaded_text_rewards` and
            `other_credit` make them.
        prompts: texts or conversations; an empty text stands for the start of a sequence.
        responses: one per prompt.
        ended: as in `Reading.encoded`.

    Raises:
        DataError, ModelError: as `Reading.encoded`.
        NumericError: a score is NaN or infinite.
    """
    encoded = whole_texts(*reader_of(rewards[0]), prompts, responses, ended=ended)
    closed = [ended] * len(prompts) if isinstance(ended, bool) else list(ended)
    asked = Responses(
        encoded.batch,
        list(prompts),
        encoded.attention_mask.bool(),
        ended=torch.tensor(closed, device=encoded.batch.response_ids.device),
    )
    attends = any("attention" in credit_method(one.credited.credit.method).needs for one in rewards)
    cut = [(one, with_segments(one, asked)) for one in rewards]
    # What reads a text may be asked at the ends of segments alone, where all credit is made there.
    scores = rewards[0].scores(cut[0][1] if len(cut) == 1 else asked, attention=attends)
    paid = [one.paid(responses, scores=scores) for one, responses in cut]
    return PaidTexts(
        encoded,
        paid[0].raw,
        paid[0].sequence_scores,
        tuple(one.token_scores for one in paid),
        tuple(one.by_objective(responses, scores) for one, responses in cut),
    )


def with_segments(rewards: Rewards, responses: Responses) -> Responses:
    """The responses, cut as the settings of the rewards say."""
    tokenizer = rewards.credited.tokenizer
    ids = response_segments(rewards.credited.segments, tokenizer, responses.batch)
    return replace(responses, segment_ids=ids)
