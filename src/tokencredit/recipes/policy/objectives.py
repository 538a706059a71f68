"""What single rewards become in a step: judged, weighed by multipliers or preferences, mixed.

With the settings of `objective_groups` left alone, nothing here is called.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import ConfigError, NumericError
from tokencredit.masking import masked_sum, masked_whiten
from tokencredit.policy.bounds import pessimism
from tokencredit.policy.constraints import (
    CONSTRAINTS,
    mixed_advantages,
    pessimistic_cost_factors,
    starting_point,
    updated_multiplier,
)
from tokencredit.policy.judged import judged_factors
from tokencredit.policy.methods import ALGORITHMS, Outcome
from tokencredit.policy.objectives import OBJECTIVE_MIXES, Objectives
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.objective_groups import NONE, ConstraintSettings
from tokencredit.recipes.policy.processes import own_rows, rows_of_all
from tokencredit.recipes.policy.scoring import Unscored, passed_responses, without_scores
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.rewards import PaidResponses
from tokencredit.shaping import kl_penalised_rewards

Raw = Mapping[str, list[float]]
"""By the name of a constrained reward: the number behind its multiplier, and its velocity."""


def multipliers_of(settings: ConstraintSettings, raw: Raw) -> dict[str, float]:
    """The multiplier of each constrained reward.

    Args:
        settings: of the constraints.
        raw: what the run has learnt so far; what is not in it begins.
    """
    if settings.method == NONE:
        return {}
    one, start = CONSTRAINTS[settings.method], starting_point(settings.method, settings.start)
    return {name: one.multiplier(raw.get(name, [start])[0]) for name in settings.thresholds or {}}


def weighed_scores(
    config: TrainPolicyConfig,
    scores: PaidResponses,
    unscored: Bool[Tensor, "batch"],
    raw: Raw,
    preferences: Float[Tensor, "batch rewards"] | None,
    accelerator: Accelerator,
) -> PaidResponses:
    """Scores with costs taken off by their multipliers, or rewards by what the prompt asked for.

    Args:
        config: the settings.
        scores: of the responses of this process.
        unscored: True for those without a score.
        raw: of the multipliers.
        preferences: the vector that each prompt told.
        accelerator: of the processes; all of them must ask.

    Raises:
        ConfigError: tokens are paid by one scorer for all rewards.
        NumericError: a reward pays NaN or infinity; its name is in the message.
    """
    if not config.weighs_rewards:
        return scores
    paid = scores.by_source
    if not paid:
        raise ConfigError(
            "a token scorer of the caller pays all rewards at once, and the settings weigh single "
            "rewards; expected no objectives.mix, constraints.method or preference.names with it"
        )
    for name, tokens in paid.items():
        if not bool(tokens.isfinite().all()):
            raise NumericError(
                f"the reward {name!r} pays a token NaN or infinity; expected finite scores. The "
                "last checkpoint is whole; look at this reward model"
            )
    weights = {one.label: one.weight for one in config.sources}
    if preferences is not None:
        return _by_preferences(config, scores, weights, preferences)
    if not config.constraints.is_linear:
        return scores
    costs = multipliers_of(config.constraints, raw)
    kept = [name for name in weights if name not in costs]
    total = sum(
        (weights[name] * paid[name] for name in kept), torch.zeros_like(scores.token_scores)
    )
    for name, multiplier in costs.items():
        if multiplier != 0:
            factors = _cost_factors(config, scores.raw[name], unscored, accelerator)
            total = total - multiplier * factors[:, None] * paid[name]
    sums = sum((weights[name] * scores.raw[name] for name in kept), torch.zeros_like(total[:, 0]))
    return replace(scores, token_scores=total, sequence_scores=sums)


def _by_preferences(
    config: TrainPolicyConfig,
    scores: PaidResponses,
    weights: Mapping[str, float],
    preferences: Float[Tensor, "batch rewards"],
) -> PaidResponses:
    tokens, sums = torch.zeros_like(scores.token_scores), torch.zeros_like(scores.sequence_scores)
    for name, own in zip(config.preference.names, preferences.unbind(-1), strict=True):
        tokens = tokens + weights[name] * own[:, None] * scores.by_source[name]
        sums = sums + weights[name] * own * scores.raw[name]
    return replace(scores, token_scores=tokens, sequence_scores=sums)


def _cost_factors(
    config: TrainPolicyConfig,
    costs: Float[Tensor, "batch"],
    unscored: Bool[Tensor, "batch"],
    accelerator: Accelerator,
) -> Float[Tensor, "batch"]:
    """Factors of costs; 1 where the mean alone is constrained."""
    settings = config.constraints
    everywhere = _scored_everywhere(costs, unscored, accelerator)
    if not CONSTRAINTS[settings.method].pessimistic or len(everywhere) < 2:
        return torch.ones_like(costs)
    return pessimistic_cost_factors(
        costs,
        mean=float(everywhere.mean()),
        deviation=float(everywhere.std()),
        pessimism=_pessimism(settings, len(everywhere)),
    )


def _pessimism(settings: ConstraintSettings, count: int) -> float:
    samples = [(settings.training_weight, count), (settings.test_weight, settings.test_prompts)]
    return pessimism(settings.failure_probability, samples)


def _scored_everywhere(
    scores: Float[Tensor, "batch"], unscored: Bool[Tensor, "batch"], accelerator: Accelerator
) -> Float[Tensor, "all"]:
    return rows_of_all(accelerator, scores)[~rows_of_all(accelerator, unscored)]


def adapted_multipliers(
    config: TrainPolicyConfig,
    source_scores: Mapping[str, Float[Tensor, "batch"]],
    unscored: Bool[Tensor, "batch"],
    raw: Raw,
    accelerator: Accelerator,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """What is behind the multipliers after a step, and what to report of them.

    Args:
        config: the settings.
        source_scores: of each reward, as it gave them, of the responses of this process.
        unscored: True for responses without a score.
        raw: before the step.
        accelerator: of the processes; all of them must ask.

    Returns:
        The new numbers, and by `multiplier/name` the multiplier that was in force, by
        `excess/name` what the mean, or its bound, was above the threshold.
    """
    settings = config.constraints
    if settings.method == NONE:
        return {}, {}
    one, start = CONSTRAINTS[settings.method], starting_point(settings.method, settings.start)
    rate = one.rate if settings.rate is None else settings.rate
    found, told = {}, {}
    for name, threshold in (settings.thresholds or {}).items():
        number, velocity = raw.get(name, [start, 0.0])
        scores = _scored_everywhere(source_scores[name], unscored, accelerator).double()
        told[f"multiplier/{name}"] = one.multiplier(number)
        found[name] = [number, velocity]
        if len(scores) < 1 + one.pessimistic:
            continue
        excess = float(scores.mean()) - threshold
        if one.pessimistic:
            excess += _pessimism(settings, len(scores)) * float(scores.std())
        told[f"excess/{name}"] = excess
        found[name] = list(
            updated_multiplier(
                number,
                velocity,
                excess,
                method=settings.method,
                rate=rate,
                momentum=settings.momentum,
            )
        )
    return found, told


def judged_scores(
    config: TrainPolicyConfig,
    models: PolicyModels,
    responses: Responses,
    scores: PaidResponses,
    unscored: Unscored,
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
) -> tuple[PaidResponses, Unscored, Bool[Tensor, "batch"] | None]:
    """Scores without those of responses that do not pass, and which pass.

    Args:
        config: the settings.
        models: of the run, with the judges.
        responses: of this process.
        scores: of these.
        unscored: those without a score.
        policy_logprobs: of the policy that wrote them.
        ref_logprobs: of the reference.

    Returns:
        Scores, the responses that have none, those among them that no judge could read, and True
        for those that pass; None where nothing decides.

    Raises:
        DataError: a judge gives something other than True and False.
    """
    settings = config.judges
    if not settings.gate:
        return scores, unscored, None
    passed, unscored = passed_responses(models.judges, responses, unscored)
    name, loss = config.algorithm.name, ALGORITHMS[config.algorithm.name].loss
    hard = loss == "pairs" or name == "crraft"
    log_ratios = masked_sum(policy_logprobs - ref_logprobs, responses.batch.response_mask)
    factors = judged_factors(passed, log_ratios, max_kl=settings.max_kl, hard=hard)
    if loss == "pairs":  # which compares the scores of those that fail as well
        return without_scores(scores, unscored.rows), unscored, (factors > 0) & ~unscored.rows
    mask, whole = responses.batch.response_mask, scores.transformed
    if whole is None:
        whole = masked_sum(scores.token_scores, mask)
    gated = replace(
        scores,
        token_scores=_gated(scores.token_scores, whole, factors, mask),
        by_source={
            name: _gated(one, scores.transformed_by_source[name], factors, mask)
            for name, one in scores.by_source.items()
        },
        transformed=factors * whole,
    )
    return without_scores(gated, unscored.rows), unscored, passed & ~unscored.rows


def _gated(
    token_scores: Float[Tensor, "batch time"],
    whole: Float[Tensor, "batch"],
    factors: Float[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Token scores that sum to the score times its factor, less what they did not pay of it.

    What a prompt has before its response, and prefix differences do not pay, is taken back at the
    end, or a bad response that fails would be better off than one that passes.
    """
    unpaid = whole - masked_sum(token_scores, mask)
    return factors[:, None] * token_scores + terminal_credit((factors - 1) * unpaid, mask)


def objective_advantages(
    config: TrainPolicyConfig,
    outcome: Outcome,
    scores: PaidResponses,
    penalties: Float[Tensor, "batch time"],
    counts: Bool[Tensor, "batch"],
    raw: Raw,
    accelerator: Accelerator,
    *,
    kl_coef: float,
) -> Float[Tensor, "batch time"]:
    """Advantages of each reward, made as one alone would have them, and mixed.

    All of it with the responses of all processes.

    Args:
        config: the settings, with an algorithm that needs no critic.
        outcome: of the responses of this process.
        scores: with what each reward pays.
        penalties: price of KL of each token, before its coefficient.
        counts: True for responses that have a score to be compared.
        raw: of the multipliers.
        accelerator: of the processes; all of them must ask.
        kl_coef: the coefficient.
    """
    row, settings = ALGORITHMS[config.algorithm.name], config.algorithm.options
    own, weights = outcome.response_mask, {one.label: one.weight for one in config.sources}
    mask = rows_of_all(accelerator, own)
    groups = rows_of_all(accelerator, outcome.group_ids)
    counted = mask & rows_of_all(accelerator, counts)[:, None]

    def made(rewards: Float[Tensor, "batch time"]) -> Float[Tensor, "all time"]:
        everywhere = Outcome(rows_of_all(accelerator, rewards), mask, group_ids=groups)
        return row.advantages(everywhere, settings)[0]

    streams = [scores.by_source[name] for name in weights]
    of_kl = kl_penalised_rewards(torch.zeros_like(penalties), penalties, own, kl_coef=kl_coef)
    if config.constraints.has_streams:
        # On a scale of its own, so that its coefficient falls out.
        of_kl = kl_penalised_rewards(torch.zeros_like(penalties), penalties, own, kl_coef=1.0)
        white = [masked_whiten(made(one), counted) for one in (of_kl, *streams)]
        multipliers = multipliers_of(config.constraints, raw)
        by_name = torch.tensor([multipliers[name] for name in weights])
        mixed = mixed_advantages(white[0], torch.stack(white[1:]), by_name)
        return own_rows(accelerator, mixed, penalties)
    mix = OBJECTIVE_MIXES[config.objectives.mix]
    each = mix.kl == "each"
    factors = [weights[name] if each else 1.0 for name in weights]
    rewards = [factor * one for factor, one in zip(factors, streams, strict=True)]
    returns = [rows_of_all(accelerator, masked_sum(one, own)) for one in rewards]
    objectives = Objectives(
        torch.stack([made(one + of_kl if each else one) for one in rewards]),
        torch.stack(returns),
        counted,
        groups,
        torch.tensor(list(weights.values()), device=mask.device),
    )
    mixed = mix.mixed(objectives)
    if not each and kl_coef:
        mixed = mixed + made(of_kl)
    return own_rows(accelerator, mixed, penalties)
