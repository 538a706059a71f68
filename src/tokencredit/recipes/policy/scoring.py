"""What rewards say of the responses of a rollout. A response that cannot be scored ends no run.

A policy writes what it likes: texts that a chat template refuses, that are too long for the reward
model, on which a function of the user fails. Such a response gets no score and is left out of the
update, whatever went wrong, as long as it goes wrong for that response alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.aggregation.transforms import ReferenceScores, RunningMoments
from tokencredit.batch import Prompt, ResponseBatch, RewardScorer, TokenScorer
from tokencredit.credit.methods import credit_method
from tokencredit.errors import ConfigError, DataError
from tokencredit.masking import masked_sum
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.sharding import on_device
from tokencredit.scorers.evidence import Responses, response_scores
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.rewards import MomentsOf, PaidResponses

Result = TypeVar("Result")

_OF_THE_RUN = (RuntimeError, OSError, ConfigError)
"""What no single text is to blame for: devices, processes, disks, servers, settings."""


@dataclass(frozen=True)
class Unscored:
    """The responses of a batch that could not be scored.

    Attributes:
        rows: True for each of them.
        faults: why, by the number of the row.
    """

    rows: Bool[Tensor, "batch"]
    faults: Mapping[int, Exception] = field(default_factory=dict)


@torch.no_grad()
def scores_of(
    models: PolicyModels,
    responses: Responses,
    moments_of: Callable[[str, Float[Tensor, "batch"], Bool[Tensor, "batch"]], RunningMoments],
    *,
    token_scorer: TokenScorer | None,
    unfinished: Bool[Tensor, "batch"] | None = None,
    references: Mapping[str, ReferenceScores] | None = None,
) -> tuple[PaidResponses, Unscored]:
    """Scores of responses: as each source of reward gave them, combined, and on their tokens.

    Args:
        models: of the run.
        responses: with segment ids where settings cut segments.
        moments_of: what the scores of a source are normalised by, from its name, its scores and
            which of them count. It is called once for each source, whatever fails.
        token_scorer: pays the tokens in the place of the rewards; None for the rewards.
        unfinished: True for responses whose return goes on with the critic's value, so that they
            are paid no score that is only due at the end.
        references: by the name of a source, what it says of the reference's responses to the
            prompt of each row.

    Returns:
        The scores, zero for responses that could not be scored, and which those are.

    Raises:
        RuntimeError, OSError, ConfigError: what no single response is to blame for.
        Exception: what went wrong with all responses together, but with none of them alone.
    """
    references, alone = _something_to_compare_with(references or {}, responses)
    found, unscored = _scores_of(
        models,
        responses,
        moments_of,
        token_scorer=token_scorer,
        unfinished=unfinished,
        references=references,
    )
    if not alone.faults:
        return found, unscored
    rows, faults = unscored.rows | alone.rows, {**alone.faults, **unscored.faults}
    return without_scores(found, rows), Unscored(rows, faults)


def _something_to_compare_with(
    references: Mapping[str, ReferenceScores], responses: Responses
) -> tuple[dict[str, ReferenceScores], Unscored]:
    """Scores of the reference with a zero where a prompt has none, and which rows these are."""
    mask = responses.batch.response_mask
    rows = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    filled = {}
    for name, one in references.items():
        without = one.scores.isnan().all(-1)
        rows = rows | without
        filled[name] = replace(one, scores=one.scores.masked_fill(without[:, None], 0.0))
    error = DataError(
        "no response of the reference to its prompt could be scored, so that its score cannot be "
        "compared; expected one at least: look at the prompt, or raise references.per_prompt"
    )
    return filled, Unscored(rows, dict.fromkeys(rows.nonzero().flatten().tolist(), error))


def _scores_of(
    models: PolicyModels,
    responses: Responses,
    moments_of: Callable[[str, Float[Tensor, "batch"], Bool[Tensor, "batch"]], RunningMoments],
    *,
    token_scorer: TokenScorer | None,
    unfinished: Bool[Tensor, "batch"] | None,
    references: Mapping[str, ReferenceScores],
) -> tuple[PaidResponses, Unscored]:
    """Scores of responses whose prompts all have something to compare with."""
    mask = responses.batch.response_mask
    none = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    known: dict[str, RunningMoments] = {}

    def paid(asked: Responses, rows: Unscored) -> PaidResponses:
        def once(name: str, fresh: Float[Tensor, "batch"]) -> RunningMoments:
            if name not in known:  # a second call would wait for the other processes for ever
                known[name] = moments_of(name, fresh, ~rows.rows)
            return known[name]

        return _paid(
            models,
            asked,
            once,
            token_scorer=token_scorer,
            unfinished=unfinished,
            references=references,
        )

    try:
        return paid(responses, Unscored(none)), Unscored(none)
    except _OF_THE_RUN:
        raise
    except Exception as error:
        unscored = _unscored(
            lambda row: _try_alone(
                models,
                _rows_of(responses, row),
                token_scorer,
                {name: references_of_rows(one, row) for name, one in references.items()},
            ),
            none,
            error,
        )
    if bool(unscored.rows.all()):
        names = [] if token_scorer is not None else [one.name for one in models.rewards.sources]
        zeros = torch.zeros(len(mask), device=mask.device)
        for name in names:
            if name not in known:
                known[name] = moments_of(name, zeros, none)
        tokens = torch.zeros_like(mask.float())
        found = PaidResponses(
            dict.fromkeys(names or ["reward"], zeros),
            zeros,
            tokens,
            known,
            dict.fromkeys(names, tokens),
            zeros,
            dict.fromkeys(names, zeros),
        )
        return found, unscored
    # A response that can be scored stands in for each that cannot, and its score is not used.
    rows = torch.arange(len(mask), device=mask.device)
    stand_in = int((~unscored.rows).nonzero()[0])
    found = paid(_rows_of(responses, rows.where(~unscored.rows, stand_in)), unscored)
    return without_scores(found, unscored.rows), unscored


def _paid(
    models: PolicyModels,
    responses: Responses,
    moments_of: MomentsOf | None,
    *,
    token_scorer: TokenScorer | None,
    unfinished: Bool[Tensor, "batch"] | None = None,
    references: Mapping[str, ReferenceScores] | None = None,
) -> PaidResponses:
    batch = responses.batch
    if token_scorer is not None:
        token_scores = token_scorer(batch)
        sums = masked_sum(token_scores, batch.response_mask)
        return PaidResponses({"reward": sums}, sums, token_scores)
    with on_device(models.visits, *models.rewards.modules):
        return models.rewards.paid(
            responses,
            moments_of=moments_of,
            ask_policy=models.of_policy,
            unfinished=unfinished,
            references=references,
        )


def _try_alone(
    models: PolicyModels,
    responses: Responses,
    token_scorer: TokenScorer | None,
    references: Mapping[str, ReferenceScores],
) -> None:
    """Score one response, to see whether it can be done."""
    rewards = models.rewards
    credited = (rewards.credited, *(one.credited for one in rewards.sources if one.credited))
    asks_policy = any(
        "policy_attention" in credit_method(one.credit.method).needs for one in credited
    )
    if token_scorer is None and asks_policy:  # which other processes may have to take part in
        with on_device(models.visits, *rewards.modules):
            rewards.scores(responses)
    else:
        _paid(models, responses, None, token_scorer=token_scorer, references=references)


def _unscored(
    try_row: Callable[[Tensor], object], none: Bool[Tensor, "batch"], whole: Exception
) -> Unscored:
    """Which rows fail alone.

    Args:
        try_row: of one row, given as a tensor of its number.
        none: False for every row.
        whole: what went wrong with all rows together, raised where no row fails alone.
    """
    faults: dict[int, Exception] = {}
    for row in range(len(none)):
        try:
            try_row(torch.tensor([row], device=none.device))
        except _OF_THE_RUN:
            raise
        except Exception as error:
            faults[row] = error
    if not faults:
        raise whole
    rows = none.clone()
    rows[list(faults)] = True
    return Unscored(rows, faults)


def references_of_rows(references: ReferenceScores, rows: Any) -> ReferenceScores:
    """What is known of the reference's responses to the prompts of some rows."""
    return ReferenceScores(references.scores[rows], references.lengths[rows])


def _rows_of(responses: Responses, rows: Int[Tensor, "some"]) -> Responses:
    asked, segments = responses.conversations, responses.segment_ids
    return Responses(
        responses.batch[rows],
        None if asked is None else [asked[row] for row in rows.tolist()],
        segment_ids=None if segments is None else segments[rows],
        ended=None if responses.ended is None else responses.ended[rows],
    )


def without_scores(paid: PaidResponses, unscored: Bool[Tensor, "batch"]) -> PaidResponses:
    """Scores that are 0 for the responses that have none.

    Args:
        paid: scores of all.
        unscored: True for these responses.
    """
    return replace(
        paid,
        raw={name: scores.masked_fill(unscored, 0.0) for name, scores in paid.raw.items()},
        sequence_scores=paid.sequence_scores.masked_fill(unscored, 0.0),
        token_scores=paid.token_scores.masked_fill(unscored[:, None], 0.0),
        by_source={
            name: tokens.masked_fill(unscored[:, None], 0.0)
            for name, tokens in paid.by_source.items()
        },
        transformed=None
        if paid.transformed is None
        else paid.transformed.masked_fill(unscored, 0.0),
        transformed_by_source={
            name: scores.masked_fill(unscored, 0.0)
            for name, scores in paid.transformed_by_source.items()
        },
        raw_by_objective={
            name: scores.masked_fill(unscored, 0.0)
            for name, scores in paid.raw_by_objective.items()
        },
    )


@torch.no_grad()
def held_out_scores(
    models: PolicyModels, batch: ResponseBatch, conversations: list[Prompt] | None
) -> tuple[Float[Tensor, "batch"] | None, Unscored]:
    """Scores of the reward model that the policy never sees; NaN for what it cannot score.

    Raises:
        RuntimeError, OSError, ConfigError, Exception: as `scores_of`.
    """
    held_out = models.held_out
    if held_out is None:
        none = torch.zeros(len(batch), dtype=torch.bool, device=batch.response_ids.device)
        return None, Unscored(none)
    with on_device(models.visits, getattr(held_out, "model", None)):
        return scores_where_possible(held_out, Responses(batch, conversations))


def scores_where_possible(
    scorer: RewardScorer, responses: Responses
) -> tuple[Float[Tensor, "batch"], Unscored]:
    """Sequence scores of responses, as they are; NaN for what cannot be scored.

    Raises:
        RuntimeError, OSError, ConfigError, Exception: as `scores_of`.
    """
    batch = responses.batch
    none = torch.zeros(len(batch), dtype=torch.bool, device=batch.response_ids.device)
    try:
        return response_scores(scorer, responses).sequence_scores, Unscored(none)
    except _OF_THE_RUN:
        raise
    except Exception as error:
        found = torch.full((len(batch),), torch.nan, device=none.device)

        def score_row(row: Tensor) -> None:
            scores = response_scores(scorer, _rows_of(responses, row)).sequence_scores
            found[row] = scores.float()

        return found, _unscored(score_row, none, error)


def passed_responses(
    judges: Sequence[FunctionScorer], responses: Responses, unscored: Unscored
) -> tuple[Bool[Tensor, "batch"], Unscored]:
    """True for responses that all judges pass, and those that could not be scored or judged.

    Args:
        judges: each says True or False of a response.
        responses: of a policy.
        unscored: those that have no score already.

    Raises:
        DataError: a judge gives something other than True and False.
        RuntimeError, OSError, ConfigError, Exception: as `scores_of`.
    """
    passed = torch.ones_like(unscored.rows)
    for judge in judges:
        verdicts, failed = scores_where_possible(judge, responses)
        odd = ~((verdicts == 0) | (verdicts == 1) | verdicts.isnan())
        if bool(odd.any()):
            raise DataError(
                f"{judge.name} gives {float(verdicts[odd][0]):g}; expected True or False for each "
                "response: a score belongs to `rewards`"
            )
        passed = passed & (verdicts == 1)
        unscored = Unscored(unscored.rows | failed.rows, {**failed.faults, **unscored.faults})
    return passed, unscored
