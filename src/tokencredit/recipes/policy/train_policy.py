"""PPO with a reward on every token, and its relatives without a critic.

    tokencredit train-policy --policy POLICY --reward_model RM --prompts prompts.jsonl --output run

The algorithm is Schulman et al. 2017 (arXiv 1707.06347) with the KL-penalised reward of Ziegler et
al. 2019 (arXiv 1909.08593). Departures: (1) every response token may earn a reward, (2)
log-probabilities are those of the distribution that was sampled from, (3) the critic may share the
policy's trunk, start from a copy of it, or start from the reward model, (4) dropout is off. Other
algorithms take the place of the advantages, with `algorithm.name`; the clipped loss stays.

Every step seeds the random generators from the run's seed and its own number, so that a resumed
run repeats the interrupted one bit for bit on the CPU.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tokencredit.aggregation.transforms import ReferenceScores
from tokencredit.batch import TokenScorer
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.recipes.policy.after_step import adapt, tell_unscored
from tokencredit.recipes.policy.checkpoints import (
    checkpoint_path,
    export_policy,
    write_checkpoint,
)
from tokencredit.recipes.policy.dialogue_step import rollout_of_step
from tokencredit.recipes.policy.experience import experience_of, rows_of
from tokencredit.recipes.policy.metrics import StepProgress, sample_rows, step_metrics, timed
from tokencredit.recipes.policy.opened_run import FREE_SETTINGS, accelerator_of, open_run
from tokencredit.recipes.policy.opponents import opponent_scores
from tokencredit.recipes.policy.processes import (
    by_the_first,
    end_processes,
    explain_lost_processes,
    largest_of_all,
)
from tokencredit.recipes.policy.prompts import seeded
from tokencredit.recipes.policy.references import references_of_rollout
from tokencredit.recipes.policy.refusals import require_shared_evenly
from tokencredit.recipes.policy.rollout import Rollout
from tokencredit.recipes.policy.run_state import PolicyRun, RunState
from tokencredit.recipes.policy.selection import kept_rows
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import (
    whole_moments,
    whole_weights,
)
from tokencredit.recipes.policy.soft_q import drawn_rows, with_soft_targets
from tokencredit.recipes.policy.target_network import follow
from tokencredit.recipes.policy.update import update_policy
from tokencredit.recipes.policy.watching import held_out_now, plot_run, reason_to_stop, watched
from tokencredit.recipes.run.run_folder import (
    append_jsonl,
    held,
    require_same_run,
)
from tokencredit.recipes.run.stop_signals import StopRequest, stop_requests

__all__ = ["TrainPolicyConfig", "train_policy"]

_SAID_BEFORE_A_STOP = (
    "the run ends after this step, with a checkpoint, and the same command goes on with it; "
    "once more to end it at once"
)


@quiet_transformers()
@explain_lost_processes()
def train_policy(config: TrainPolicyConfig, *, token_scorer: TokenScorer | None = None) -> Path:
    """Train a policy, or go on with a run that was interrupted.

    Args:
        config: the settings.
        token_scorer: pays the tokens instead of the reward model's `credit`; any callable from a
            `ResponseBatch` to (batch, time) token scores.

    The first SIGTERM or SIGINT ends it after the step that is under way, with a checkpoint; a
    second one ends it at once.

    Returns:
        The folder of the trained policy, in Hugging Face layout.

    Raises:
        RunFolderError: the output folder holds another run or one that has done more steps, is in
            use by another process, is damaged, or cannot be written.
        ModelError: a model is missing, or has no pad token or the wrong head.
        DataError: there are no prompts, or one is empty or too long.
        ConfigError: batches cannot be shared evenly by the processes, or Accelerate was launched
            with a kind of sharding other than FSDP2 and ZeRO-3.
        NumericError: a score, loss or gradient is NaN or infinite; the last checkpoint stays.
        ServerError: the reward server does not answer, or not with scores; likewise.
        ProcessError: another process of the run died or did not answer in time; likewise.
        SystemExit, KeyboardInterrupt: by SIGTERM, with exit status 143, and by SIGINT.
    """
    accelerator = accelerator_of(config)
    require_shared_evenly(config, accelerator.num_processes)
    folder = Path(config.output)
    require_same_run(folder, config, free=FREE_SETTINGS)
    with ExitStack() as stack:
        by_the_first(accelerator, lambda: stack.enter_context(held(folder)))
        run, state = open_run(config, accelerator, token_scorer)
        stop = stack.enter_context(stop_requests(_SAID_BEFORE_A_STOP))
        ended = _train(run, state, stop)
        if accelerator.is_main_process:
            _conclude(run, state, ended=ended)
        end_processes(accelerator)
        if not ended:
            stop.end()
    return folder / "policy"


def _train(run: PolicyRun, state: RunState, stop: StopRequest) -> bool:
    """All steps that are left, or those until the run is asked to stop; the last has a checkpoint.

    Returns:
        Whether the run has come to its end: by its steps, or by what `stop_when` says.

    Raises:
        NumericError, ServerError, RunFolderError: as `train_policy`.
    """
    config, accelerator = run.config, run.accelerator
    writes, every = accelerator.is_main_process, config.record.checkpoint_every
    asked = 0  # what the processes agree on: a signal may not have reached all of them yet
    reason = reason_to_stop(run.history, config.stop_when)
    with StepProgress(config.steps, state.step, config.record.progress, accelerator) as bar:
        while state.step < config.steps and not asked and reason is None:
            row, samples = _train_step(run, state)
            state.step += 1
            run.history.append(watched(row))
            reason = reason_to_stop(run.history, config.stop_when)
            bar.show(row)
            if writes:
                append_jsonl(run.folder / "metrics.jsonl", row)
                numbers = {name: value for name, value in row.items() if name != "step"}
                accelerator.log(numbers, step=row["step"])
                for sample in samples:
                    append_jsonl(run.folder / "samples.jsonl", sample)
            asked = largest_of_all(accelerator, stop.number)
            if state.step % every == 0 or state.step == config.steps or asked or reason:
                _checkpoint(run, state)
    stop.number = asked
    accelerator.wait_for_everyone()
    if reason is not None and writes:
        print(f"stopped after {state.step} of {config.steps} steps: {reason}", file=sys.stderr)
    return state.step == config.steps or reason is not None


def _conclude(run: PolicyRun, state: RunState, *, ended: bool) -> None:
    """Write the figure of a run, and of one that has come to its end its policies."""
    if run.history and run.config.record.figure:
        plot_run(run.history, run.config.stop_when.window, run.folder)
    if not ended:
        return
    export_policy(run.folder, state.step)
    best = state.best_step
    if best is not None and checkpoint_path(run.folder, best).is_dir():
        export_policy(run.folder, best, name="policy-best")


def _train_step(run: PolicyRun, state: RunState) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rollout, scoring, update; returns the row of metrics and sampled responses.

    `batch` is the share of this process of the responses, `time` the longest of them.
    """
    config, accelerator, models = run.config, run.accelerator, run.models
    seconds: dict[str, float] = {}
    rng = seeded(config.seed, state.step, accelerator.process_index)
    with timed(seconds, "rollout"):
        # prompt_ids (batch, prompt), response_ids (batch, time), truncated (batch)
        drawing = rollout_of_step(run, state.step, rng)
        rollout = drawing.rollout
    with timed(seconds, "score"):
        # sequence scores (batch); log-probs of policy and reference, values, token scores, and
        # from them token rewards, advantages and returns: (batch, time)
        experience = experience_of(
            models,
            run.model,
            rollout,
            config,
            accelerator,
            kl_coef=state.kl_coef,
            moments=state.moments,
            token_scorer=drawing.token_scorer,
            references=_references(run, rollout, state.step) | opponent_scores(run, rollout),
            multipliers=state.multipliers,
        )
        experience = with_soft_targets(run, experience, kl_coef=state.kl_coef)
    kept = kept_rows(config, experience, rollout, rng)
    with timed(seconds, "update"):
        # epochs times (minibatch, time): one loss per token, their sum over the tokens that count
        update = update_policy(
            config,
            accelerator,
            models,
            run.model,
            run.optimizer,
            experience if kept is None else rows_of(experience, kept),
            state.step,
            rng,
            run.pretraining,
        )
    follow(run.target, models.actor_critic, config.soft_q.target_rate)
    drawn = drawn_rows(run, experience)
    row = step_metrics(
        state.step,
        drawn,
        update,
        seconds,
        kl_coef=state.kl_coef,
        reduce=accelerator.gather,
        kept=kept,
    )
    row |= drawing.told
    samples = []
    if state.step % config.record.sample_every == 0 and accelerator.is_main_process:
        count = config.record.sample_count
        samples = sample_rows(state.step, drawn, models.tokenizer, count=count)
    tell_unscored(run, experience, state, row)
    adapt(run, experience, state, row)
    return row, samples


def _references(run: PolicyRun, rollout: Rollout, step: int) -> dict[str, ReferenceScores]:
    """Scores of the reference's responses to the prompts of a rollout, where any are compared."""
    if run.token_scorer is not None:
        return {}
    return references_of_rollout(
        run.config,
        run.accelerator,
        run.models,
        rollout,
        run.references,
        step=step,
        folder=run.folder,
    )


def _checkpoint(run: PolicyRun, state: RunState) -> None:
    """Gather what is sharded, by all processes, and write it, by the first."""
    actor_critic, writes = run.models.actor_critic, run.accelerator.is_main_process
    held_out = held_out_now(run.history, run.config.stop_when.window)
    best = state.best_held_out_score
    if held_out is not None and (best is None or held_out > best):
        state.best_step, state.best_held_out_score = state.step, held_out
    weights = whole_weights(actor_critic, keep=writes)
    moments = whole_moments(actor_critic, run.optimizer.optimizer, keep=writes)
    if writes:
        write_checkpoint(
            checkpoint_path(run.folder, state.step),
            actor_critic,
            run.models.tokenizer,
            weights,
            moments,
            {
                **vars(state),
                "moments": {name: vars(one) for name, one in state.moments.items()},
                "prompts": run.prompts_digest,
            },
            keep=run.config.record.keep_checkpoints,
            spare=state.best_step,
            others=run.tensors,
        )
