"""One rollout, ready for updates: scores, token rewards, advantages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.aggregation.transforms import ReferenceScores, RunningMoments
from tokencredit.batch import Prompt, ResponseBatch, TokenScorer
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import NumericError
from tokencredit.masking import masked_sum
from tokencredit.policy.losses.divergences import chi_square_terms, dense_chi_square_penalties
from tokencredit.policy.methods import ALGORITHMS, Advantages, Outcome
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.objectives import (
    Raw,
    judged_scores,
    objective_advantages,
    weighed_scores,
)
from tokencredit.recipes.policy.passes import support_of_rows
from tokencredit.recipes.policy.processes import own_rows, rows_of_all
from tokencredit.recipes.policy.rollout import Rollout
from tokencredit.recipes.policy.scoring import held_out_scores, references_of_rows, scores_of
from tokencredit.recipes.policy.setting_groups import AlgorithmSettings, SamplingSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.views import (
    PolicyView,
    SoftTargets,
    old_view,
    reference_entropies,
    reference_logprobs,
    sampling_support,
)
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.shaping import kl_estimates, kl_penalised_rewards


@dataclass(frozen=True)
class Experience:
    """A scored batch, ready for updates.

    `source_scores` are those of each source of reward, as it gave them; `sequence_scores` are the
    same, combined, and `objective_scores` those by each objective of a source that has several.
    All are zero where `unscored` says so; `fault` is why, for one of them, with
    the number of its row. `moments` are those that scores were normalised by. `passed` says what
    all judges pass. `first_pass` is `old` with its graph, where the first update may start from it.
    `soft` is there for soft Q-learning alone.
    """

    batch: ResponseBatch
    truncated: Bool[Tensor, "batch"]
    support: Bool[Tensor, "*#batch vocab"] | None
    old: PolicyView
    first_pass: PolicyView | None
    entropies: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]
    kl: Float[Tensor, "batch time"]
    sequence_scores: Float[Tensor, "batch"]
    source_scores: dict[str, Float[Tensor, "batch"]]
    held_out_scores: Float[Tensor, "batch"] | None
    unscored: Bool[Tensor, "batch"]
    fault: tuple[int, Exception] | None
    moments: dict[str, RunningMoments]
    token_scores: Float[Tensor, "batch time"]
    token_rewards: Float[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"] | None
    passed: Bool[Tensor, "batch"] | None = None
    objective_scores: dict[str, Float[Tensor, "batch"]] = field(default_factory=dict)
    soft: SoftTargets | None = None


def with_truncation(
    token_scores: Float[Tensor, "batch time"],
    batch: ResponseBatch,
    truncated: Bool[Tensor, "batch"],
    sampling: SamplingSettings,
) -> Float[Tensor, "batch time"]:
    """Token scores with the penalty for responses that did not end, if there is one.

    Args:
        token_scores: of responses.
        batch: the responses.
        truncated: True for each that did not end.
        sampling: whether the penalty is added to its scores or put in their place.

    Source: "replace" is the end penalty of Yin et al. 2025, arXiv 2501.02790. Their code gives it
    to every token, so that it grows with the length; here the last token alone pays it. It can do
    the same to responses beyond a length; here `max_new_tokens` cuts these.
    """
    if sampling.truncated == "replace":
        token_scores = token_scores.masked_fill(truncated[:, None], 0.0)
    penalties = truncated * sampling.truncation_penalty
    return token_scores - terminal_credit(penalties, batch.response_mask)


@torch.no_grad()
def experience_of(
    models: PolicyModels,
    model: Callable[..., Any],
    rollout: Rollout,
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    *,
    kl_coef: float,
    moments: Mapping[str, RunningMoments],
    token_scorer: TokenScorer | None = None,
    references: Mapping[str, ReferenceScores] | None = None,
    multipliers: Raw | None = None,
) -> Experience:
    """What the updates need of a rollout: its scores, token rewards, advantages.

    Raises:
        NumericError: a reward is NaN or infinite.
    """
    batch, truncated, mask = rollout.batch, rollout.truncated, rollout.batch.response_mask
    temperature, size = config.sampling.temperature, config.algorithm.micro_batch_size
    support = sampling_support(models, model, batch, config.sampling, size)
    begins_update = _begins_update(config, accelerator)
    with torch.set_grad_enabled(begins_update):
        view, entropies = old_view(model, batch, support, temperature, size)
    old = view.detached()
    with accelerator.autocast():
        ref_logprobs = reference_logprobs(models, batch, support, temperature, size)
    responses = _responses(models, batch, config, ref_logprobs, rollout.asked)

    fixed = [one.label for one in config.sources if one.score.normalization == "reference"]

    def moments_of(
        name: str, fresh: Float[Tensor, "batch"], counts: Bool[Tensor, "batch"]
    ) -> RunningMoments:
        if name in fixed:
            return moments[name]
        everywhere = rows_of_all(accelerator, fresh)[rows_of_all(accelerator, counts)]
        return moments.get(name, RunningMoments()).updated(everywhere)

    bootstraps = config.sampling.truncated == "bootstrap"
    scores, unscored = scores_of(
        models,
        responses,
        moments_of,
        token_scorer=token_scorer,
        unfinished=truncated if bootstraps else None,
        references=references,
    )
    scores = weighed_scores(
        config, scores, unscored.rows, multipliers or {}, rollout.preferences, accelerator
    )
    scores, unscored, passed = judged_scores(
        config, models, responses, scores, unscored, old.logprobs, ref_logprobs
    )
    kl = kl_estimates(old.logprobs, ref_logprobs, estimator=config.kl.estimator)
    paid = with_truncation(scores.token_scores, batch, truncated, config.sampling)
    penalties = kl
    if config.kl.penalty == "sqrt-chi-square" and kl_coef:
        penalties = _chi_square_penalties(old.logprobs, ref_logprobs, mask, accelerator)
    charged = 0.0 if ALGORITHMS[config.algorithm.name].pays_kl_itself else kl_coef
    token_rewards = kl_penalised_rewards(paid, penalties, mask, kl_coef=charged)
    if not bool(token_rewards.isfinite().all()):
        raise NumericError(
            "a token reward is NaN or infinite; expected finite scores and log-probabilities. "
            "The last checkpoint is whole; look at the reward model and at kl.coef"
        )
    chooses = ALGORITHMS[config.algorithm.name].loss in ("likelihood", "pairs")
    outcome = Outcome(
        token_rewards,
        mask,
        values=old.values,
        group_ids=rollout.group_ids,
        greedy_returns=greedy_returns(
            models, rollout, config, accelerator, scores.seen, token_scorer, references
        ),
        segment_ids=responses.segment_ids if config.segments.use == "macro-actions" else None,
        bootstrap_values=old.last_values * truncated if bootstraps else None,
        paid=scores.transformed if chooses else None,
        passed=passed,
    )
    left_out = _not_comparable(unscored.rows, config.algorithm)
    if config.has_streams:
        advantages, returns = (
            objective_advantages(
                config,
                outcome,
                scores,
                penalties,
                ~left_out,
                multipliers or {},
                accelerator,
                kl_coef=kl_coef,
            ),
            None,
        )
    else:
        advantages, returns = advantages_of(outcome, config.algorithm, accelerator)
    if chooses:
        left_out = left_out | ~advantages.bool().any(-1)  # responses that were not chosen
    if config.sampling.truncated == "mask":
        left_out = left_out | truncated
    held_out, not_judged = held_out_scores(models, batch, rollout.asked)
    return Experience(
        batch=batch,
        truncated=truncated,
        support=support,
        old=old,
        first_pass=view if begins_update else None,
        entropies=entropies,
        ref_logprobs=ref_logprobs,
        kl=kl,
        sequence_scores=scores.sequence_scores,
        source_scores=scores.raw,
        objective_scores=scores.raw_by_objective,
        held_out_scores=held_out,
        unscored=unscored.rows,
        fault=next(iter([*unscored.faults.items(), *not_judged.faults.items()]), None),
        moments=scores.seen,
        token_scores=scores.token_scores,
        token_rewards=token_rewards,
        loss_mask=mask & ~left_out[:, None],
        advantages=advantages,
        returns=returns,
        passed=passed,
    )


def _begins_update(config: TrainPolicyConfig, accelerator: Accelerator) -> bool:
    """Whether the pass that old log-probs come from may be the one that the first update needs.

    It is where that update is of all responses at once, and its loss one of log-probs and values
    alone. Several processes are left out: what joins their gradients, or gathers their weights,
    wants a backward pass after every such pass, and there is none where no response counts.
    """
    algorithm, size = config.algorithm, config.batch_size
    at_once = (algorithm.minibatch_size or size) == size <= (algorithm.micro_batch_size or size)
    kind = ALGORITHMS[algorithm.name].loss
    # Of dialogues there are more utterances than `batch_size`, and so several minibatches.
    all_at_once = config.dialogue.environment is None and kind != "pairs"
    learns_from_all = config.selection.keep == "all" and all_at_once
    one_process = accelerator.distributed_type == DistributedType.NO
    return at_once and learns_from_all and not needs_logits(config) and one_process


def needs_logits(config: TrainPolicyConfig) -> bool:
    """Whether the loss is of whole distributions, and not of the tokens that were drawn alone."""
    by_logits = ALGORITHMS[config.algorithm.name].loss == "path-consistency"
    return by_logits or bool(config.kl.entropy_coef or config.kl.forward_coef)


def _chi_square_penalties(
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    accelerator: Accelerator,
) -> Float[Tensor, "batch time"]:
    """What each token pays of the root of the chi-square, which is that of all processes."""
    terms = chi_square_terms(masked_sum(policy_logprobs - ref_logprobs, mask))
    chi_square = float(rows_of_all(accelerator, terms).mean())
    return dense_chi_square_penalties(policy_logprobs, ref_logprobs, mask, chi_square=chi_square)


def _not_comparable(
    unscored: Bool[Tensor, "batch"], settings: AlgorithmSettings
) -> Bool[Tensor, "batch"]:
    """Responses without a score, and those whose advantage compares them with such a one."""
    if ALGORITHMS[settings.name].needs != "groups":
        return unscored
    samples = settings.samples_per_prompt
    return unscored.view(-1, samples).any(-1).repeat_interleave(samples)


def _responses(
    models: PolicyModels,
    batch: ResponseBatch,
    config: TrainPolicyConfig,
    ref_logprobs: Float[Tensor, "batch time"],
    asked: list[Prompt] | None,
) -> Responses:
    """Responses with what was asked, cut as the settings say."""
    size = config.algorithm.micro_batch_size
    ids = response_segments(
        config.segments,
        models.tokenizer,
        batch,
        ref_logprobs=lambda: ref_logprobs,
        ref_entropies=lambda: reference_entropies(models, batch, size),
        turn_ends=models.reading.turn_ends,
    )
    return Responses(batch, asked, segment_ids=ids)


def greedy_returns(
    models: PolicyModels,
    rollout: Rollout,
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    seen: Mapping[str, RunningMoments],
    token_scorer: TokenScorer | None,
    references: Mapping[str, ReferenceScores] | None = None,
) -> Float[Tensor, "batch"] | None:
    """Sum of the token scores of the greedy response to the prompt of each response.

    It is 0 where that response cannot be scored.

    They are normalised as those of the responses that were drawn. The KL penalty is left out, as
    in the code of ReMax: a baseline may be any number that does not depend on what was drawn.

    Args:
        models: of the run.
        rollout: with a greedy response per prompt; without, the result is None.
        config: the settings.
        accelerator: of the run.
        seen: moments of the scores of each source, those of the drawn responses among them.
        token_scorer: as in `scores_of`.
        references: likewise, of the responses that were drawn.
    """
    greedy, samples = rollout.greedy, config.algorithm.samples_per_prompt
    if greedy is None or rollout.greedy_truncated is None:
        return None
    ref_logprobs = torch.zeros(greedy.response_ids.shape, device=greedy.response_ids.device)
    if config.segments.kind == "perplexity":
        temperature, size = config.sampling.temperature, config.algorithm.micro_batch_size
        with accelerator.autocast():
            ref_logprobs = reference_logprobs(models, greedy, None, temperature, size)
    asked = None if rollout.asked is None else rollout.asked[::samples]
    scores, _ = scores_of(
        models,
        _responses(models, greedy, config, ref_logprobs, asked),
        lambda name, *_: seen[name],
        token_scorer=token_scorer,
        references={
            name: references_of_rows(one, slice(None, None, samples))
            for name, one in (references or {}).items()
        },
    )
    paid = with_truncation(scores.token_scores, greedy, rollout.greedy_truncated, config.sampling)
    return masked_sum(paid, greedy.response_mask).repeat_interleave(samples)


def advantages_of(
    outcome: Outcome, settings: AlgorithmSettings, accelerator: Accelerator
) -> Advantages:
    """Advantages by the algorithm of these settings, and the returns that a critic learns.

    An algorithm without a critic sees the responses of all processes: its statistics are those of
    the whole batch, however many processes share it.

    Args:
        outcome: of the responses of this process.
        settings: name and options of the algorithm.
        accelerator: of the processes.
    """
    make = ALGORITHMS[settings.name].advantages
    if settings.has_critic:
        return make(outcome, settings.options)
    parts = {name: value for name, value in vars(outcome).items() if value is not None}
    everywhere = Outcome(**{name: rows_of_all(accelerator, part) for name, part in parts.items()})
    advantages, _ = make(everywhere, settings.options)
    return own_rows(accelerator, advantages, outcome.token_rewards), None


def rows_of(experience: Experience, rows: Tensor) -> Experience:
    """The experience of some responses."""

    def part(value: Any) -> Any:
        if isinstance(value, PolicyView | SoftTargets):
            return type(value)(**{k: part(v) for k, v in vars(value).items()})
        if isinstance(value, dict):
            return {k: part(v) for k, v in value.items()}
        return value[rows] if isinstance(value, Tensor | ResponseBatch) else value

    parts = {name: part(value) for name, value in vars(experience).items() if name != "support"}
    return Experience(**parts, support=support_of_rows(experience.support, rows))
