"""What a reward model is served with: credit methods, and the numbers that they are made from."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tokencredit.batch import ResponseScores, RewardScorer
from tokencredit.credit.evidence import NEEDS, Need
from tokencredit.credit.methods import CREDIT_METHODS, credit_method
from tokencredit.credit.settings import CreditSettings, with_method
from tokencredit.errors import ConfigError, NumericError
from tokencredit.models.hf_objectives import joined_scores
from tokencredit.scorers.evidence import require_evidence
from tokencredit.scorers.rewards import LoadedSource, PaidObjective, Rewards
from tokencredit.scorers.text_rewards import other_credit
from tokencredit.server.rows import ObjectiveOfRow, TokenRow
from tokencredit.text.segments import SegmentSettings


def offered_credit(
    scorer: RewardScorer,
    asked: Sequence[str] | None,
    credit: CreditSettings,
    segments: SegmentSettings,
) -> tuple[str, ...]:
    """Names of the credit methods that a scorer is served with.

    Args:
        scorer: of one source of reward, or of several.
        asked: names of them; None for all of one pass that the scorer allows and that need nothing
            besides.
        credit: their options.
        segments: how responses are cut.

    Raises:
        ModelError: one that is named needs what the scorer does not give.
        ConfigError: one that is named needs what a server does not have.
    """
    gives = set(scorer.gives)
    gives |= {"segments"} if segments.kind != "none" else set()
    gives |= {"length_means", "location"} if credit.fitted is not None else set()
    if asked is None:
        return tuple(
            name
            for name, method in CREDIT_METHODS.items()
            if method.one_pass and set(method.needs) <= gives
        )
    for name in asked:
        method = credit_method(name)
        require_evidence(with_method(credit, name), scorer, where="the reward model")
        lacking = [need for need in method.needs if need not in gives]
        if lacking and not (method.model_kind and credit.model is not None):
            raise ConfigError(
                f"credit {name!r} needs {NEEDS[lacking[0]]}, which this server does not have; "
                "expected another method, or settings that give it: segments.kind, credit.fitted "
                "or credit.model"
            )
    return tuple(asked)


def rewards_on_offer(
    rewards: Rewards,
    asked: Sequence[str] | None = None,
    *,
    loading: Mapping[str, Any] | None = None,
) -> dict[str, Rewards]:
    """The credit methods that sources of reward are served with, each with what it needs.

    Args:
        rewards: the sources, as `loaded_text_rewards` returns them.
        asked: names of methods; None for all that need nothing besides.
        loading: of models that methods need, as `load_model` takes it.

    Raises:
        ConfigError, DataError, ModelError: as `offered_credit` and `other_credit`.
    """
    credit, segments = rewards.credited.credit, rewards.credited.segments
    names = offered_credit(rewards.credited.scorer, asked, credit, segments)
    return {
        name: other_credit(rewards, with_method(credit, name), loading=loading) for name in names
    }


# What a client makes credit from, by its name in requests.
DETAILS: dict[str, Need] = {
    "prefix-scores": "prefix_scores",
    "position-scores": "position_scores",
    "attention": "attention",
}


def offered_details(
    credit_methods: Sequence[str], *, reads_segments: bool = False
) -> tuple[str, ...]:
    """Names of what is told besides token scores: what the methods on offer are made from.

    Args:
        credit_methods: on offer.
        reads_segments: whether the model is read at the ends of segments; the numbers at each
            position are its prefix scores if not.

    >>> offered_details(("terminal", "attention"))
    ('attention',)
    """
    needs = {need for name in credit_methods for need in credit_method(name).needs}
    if needs & {"prefix_scores", "position_scores"}:
        needs |= {"prefix_scores", "position_scores"}
    if not reads_segments:
        needs.discard("position_scores")
    return tuple(name for name, need in DETAILS.items() if need in needs)


def known_objectives(sources: Sequence[LoadedSource]) -> tuple[str, ...]:
    """Names of the objectives by which sources with several score, as `Rewards` tells them.

    Args:
        sources: in their order.
    """
    found = []
    for source in sources:
        model = getattr(source.scorer, "model", None)
        joined = joined_scores(model) if isinstance(model, nn.Module) else None
        names = getattr(source.scorer, "criteria", ()) if joined is None else joined.names
        found += [source.objective_key(name, of=len(sources)) for name in names]
    return tuple(found)


def row_details(rows: Sequence[TokenRow], scores: ResponseScores) -> list[dict[str, Any]]:
    """What each row asks for besides token scores, under the names of `RowScores`.

    Args:
        rows: of one batch.
        scores: what the model says about it.

    Raises:
        NumericError: an attention that is asked for is NaN.
    """
    return [
        {name.replace("-", "_"): _numbers(row, index, scores, name) for name in row.details}
        for index, row in enumerate(rows)
    ]


def row_objectives(
    row: TokenRow,
    index: int,
    objectives: Mapping[str, PaidObjective],
    paid: Mapping[str, Mapping[str, PaidObjective]],
) -> dict[str, ObjectiveOfRow] | None:
    """What each objective says of one row of a batch; None where the model has one score.

    Args:
        row: that was asked about.
        index: of the row.
        objectives: by their names.
        paid: by the name of each credit method, what it pays for them.
    """
    if not objectives:
        return None
    found = {}
    for name, one in objectives.items():
        own = {method: paid[method][name].token_scores for method in row.credit}
        found[name] = ObjectiveOfRow(
            float(one.sequence_scores[index]),
            one.weight_of(index),
            {
                method: scores[index, : len(row.response_ids)].tolist()
                for method, scores in own.items()
                if scores is not None
            },
        )
    return found


def _numbers(row: TokenRow, index: int, scores: ResponseScores, name: str) -> list[float]:
    length = len(row.response_ids)
    if name != "attention":
        found = scores.position_scores if name == "position-scores" else scores.prefix_scores
        found = scores.prefix_scores if found is None else found
        assert found is not None
        return found[index, : length + 1].tolist()
    assert scores.attention is not None
    attention = scores.attention[index, :length]
    if not bool(attention.isfinite().all()):
        raise NumericError(
            "the attention to a token is NaN; expected finite numbers: look for NaN weights, or "
            "serve the model in float32 or bfloat16 rather than float16"
        )
    return attention.tolist()
