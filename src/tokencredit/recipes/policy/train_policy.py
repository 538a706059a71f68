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

import shutil
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from tokencredit.aggregation.transforms import ReferenceScores
from tokencredit.batch import TokenScorer
from tokencredit.errors import RunFolderError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.models.precision import warn_of_emulated_bfloat16
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.recipes.checksums import digest
from tokencredit.recipes.left_out import tell_left_out
from tokencredit.recipes.policy.after_step import adapt, tell_unscored
from tokencredit.recipes.policy.checkpoints import (
    checkpoint_path,
    export_policy,
    last_checkpoint,
    read_state,
    restore_optimizer,
    write_checkpoint,
)
from tokencredit.recipes.policy.demonstrations import demonstrations_of
from tokencredit.recipes.policy.dialogue_critic import opened_dialogues
from tokencredit.recipes.policy.dialogue_step import rollout_of_step
from tokencredit.recipes.policy.experience import experience_of, rows_of
from tokencredit.recipes.policy.metrics import StepProgress, sample_rows, step_metrics, timed
from tokencredit.recipes.policy.models import PolicyModels, loaded_models
from tokencredit.recipes.policy.opponents import opponent_scores
from tokencredit.recipes.policy.pretraining import pretraining_rows
from tokencredit.recipes.policy.processes import (
    by_the_first,
    end_processes,
    explain_lost_processes,
    largest_of_all,
    process_group_settings,
)
from tokencredit.recipes.policy.prompts import PolicyPrompts, seeded, tokenized_prompts
from tokencredit.recipes.policy.references import (
    FILE,
    normalised_by_reference,
    read_references,
    reference_moments,
    references_of_rollout,
)
from tokencredit.recipes.policy.refusals import (
    require_shared_evenly,
    require_what_sharding_allows,
)
from tokencredit.recipes.policy.rollout import Rollout
from tokencredit.recipes.policy.run_state import PolicyRun, RunState
from tokencredit.recipes.policy.selection import kept_rows
from tokencredit.recipes.policy.setting_groups import OptimizerSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig, warn_of_biased_gradient
from tokencredit.recipes.policy.sharding import (
    configure_deepspeed,
    prepare,
    require_known_distribution,
    whole_moments,
    whole_weights,
)
from tokencredit.recipes.policy.soft_q import drawn_rows, with_soft_targets
from tokencredit.recipes.policy.target_network import follow, opened_target
from tokencredit.recipes.policy.update import update_policy
from tokencredit.recipes.policy.vllm import connect
from tokencredit.recipes.policy.watching import held_out_now, plot_run, reason_to_stop, watched
from tokencredit.recipes.run_folder import (
    append_jsonl,
    held,
    keep_rows_before,
    open_run_folder,
    read_jsonl,
    require_same_run,
)
from tokencredit.recipes.settings import flat_settings, free_settings
from tokencredit.recipes.shown_reading import print_reading
from tokencredit.recipes.stop_signals import StopRequest, stop_requests
from tokencredit.scorers.local import LocalScorer
from tokencredit.scorers.pooled import PooledRewardModel

__all__ = ["TrainPolicyConfig", "train_policy"]

_FREE_SETTINGS = free_settings(TrainPolicyConfig)
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
    accelerator = _accelerator(config)
    require_shared_evenly(config, accelerator.num_processes)
    folder = Path(config.output)
    require_same_run(folder, config, free=_FREE_SETTINGS)
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


def open_run(
    config: TrainPolicyConfig, accelerator: Accelerator, token_scorer: TokenScorer | None
) -> tuple[PolicyRun, RunState]:
    """Open the folder of a run, load its models, and find where it stands.

    Args:
        config: the settings.
        accelerator: of the processes, of which the first holds the folder.
        token_scorer: as `train_policy` takes it.
    """
    folder = Path(config.output)
    if token_scorer is None and accelerator.is_main_process:
        warn_of_biased_gradient(config)
    checkpoint = by_the_first(accelerator, lambda: _checkpoint_to_go_on_from(config, folder))
    models = _models(config, checkpoint, accelerator)
    prompts = tokenized_prompts(config, models)
    pretraining = pretraining_rows(config, models.reading)
    prompts_digest = digest(prompts.rows)
    if checkpoint is not None:
        _require_same_prompts(config, checkpoint, prompts_digest)
    if accelerator.is_main_process:
        _print_readings(models, prompts)
    accelerator.wait_for_everyone()
    state = RunState.read(checkpoint, kl_coef=config.kl.coef)
    # Only now, so that a model that is not there leaves no folder.
    by_the_first(accelerator, lambda: _open_folder(config, folder, state.step, prompts))
    model, optimizer = _prepared_model(config.optimizer, checkpoint, models, accelerator)
    if config.record.trackers:
        settings = flat_settings(TrainPolicyConfig, asdict(config))
        accelerator.init_trackers(
            "tokencredit", config={name: str(value) for name, value in settings.items()}
        )
    run = PolicyRun(
        config,
        folder,
        accelerator,
        models,
        model,
        optimizer,
        prompts,
        prompts_digest,
        token_scorer,
        by_the_first(accelerator, lambda: read_references(folder)),
        pretraining,
        by_the_first(accelerator, lambda: list(map(watched, read_jsonl(folder / "metrics.jsonl")))),
        demonstrations=demonstrations_of(config, models.reading),
        dialogues=opened_dialogues(config, checkpoint, accelerator.device),
    )
    if ALGORITHMS[config.algorithm.name].loss == "path-consistency":
        run.target.update(opened_target(models.actor_critic, checkpoint))
    if token_scorer is None and not set(normalised_by_reference(config)) <= set(state.moments):
        state.moments |= reference_moments(
            config, accelerator, models, prompts, run.references, folder=folder
        )
    return run, state


def _print_readings(models: PolicyModels, prompts: PolicyPrompts) -> None:
    """How the policy and each reward model whose tokens are known read texts."""
    print_reading("policy", models.reading)
    asked = None if prompts.asked is None else (prompts.asked[0], "")
    for one in models.rewards.sources:
        if isinstance(one.scorer, LocalScorer | PooledRewardModel):
            print_reading(f"reward {one.name!r}", one.scorer.reading, example=asked)


def _checkpoint_to_go_on_from(config: TrainPolicyConfig, folder: Path) -> Path | None:
    """The newest whole checkpoint of a run that has no more steps behind it than it is to have."""
    checkpoint = last_checkpoint(folder)
    done = 0 if checkpoint is None else read_state(checkpoint)["step"]
    if done > config.steps:
        raise RunFolderError(
            f"{folder} holds a run that has done {done} steps, and steps is {config.steps}; "
            f"expected at least {done}: an older policy would take the place of the newer one"
        )
    return checkpoint


def _require_same_prompts(config: TrainPolicyConfig, checkpoint: Path, prompts_digest: str) -> None:
    before = read_state(checkpoint).get("prompts")
    if before not in (None, prompts_digest):
        raise RunFolderError(
            f"the prompts of {config.prompts}, as the policy's tokenizer reads them, are not those "
            f"with which the run in {config.output} was trained so far; expected the same prompts: "
            "put them back, or choose another `output`"
        )


def _open_folder(
    config: TrainPolicyConfig, folder: Path, step: int, prompts: PolicyPrompts
) -> None:
    """Write what was asked, and clear away what an interrupted run left behind."""
    open_run_folder(folder, config, free=_FREE_SETTINGS)
    tell_left_out(prompts.left_out, folder / "skipped.jsonl")
    for left_over in (folder / "checkpoints").glob(".writing-*"):
        shutil.rmtree(left_over)
    keep_rows_before(folder / "metrics.jsonl", step)
    keep_rows_before(folder / "samples.jsonl", step)
    if (folder / FILE).exists():
        keep_rows_before(folder / FILE, step)


def _accelerator(config: TrainPolicyConfig) -> Accelerator:
    AcceleratorState._reset_state()  # its singleton refuses a second run with other settings
    accelerator = Accelerator(
        cpu=config.machine.device == "cpu",
        mixed_precision=config.machine.mixed_precision,
        log_with=list(config.record.trackers) or None,
        project_dir=config.output,
        kwargs_handlers=[process_group_settings(config.machine.process_timeout)],
    )
    require_known_distribution(accelerator)
    if config.machine.mixed_precision == "bf16":
        warn_of_emulated_bfloat16(accelerator.device, setting="machine.mixed_precision 'no'")
    return accelerator


def _models(
    config: TrainPolicyConfig, checkpoint: Path | None, accelerator: Accelerator
) -> PolicyModels:
    """The models of the run, and the server that draws responses if there is one."""
    require_what_sharding_allows(config, accelerator)
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(accelerator, config)
    server = None
    if config.machine.vllm_server is not None:
        server = connect(config.machine, accelerator, Path(config.output))
    models = loaded_models(config, checkpoint, accelerator.device, sharded=sharded)
    return replace(models, server=server)


def _prepared_model(
    settings: OptimizerSettings,
    checkpoint: Path | None,
    models: PolicyModels,
    accelerator: Accelerator,
) -> tuple[Any, Any]:
    """What is trained and its optimiser, with the moments of the last checkpoint."""
    optimizer = torch.optim.AdamW(
        [p for p in models.actor_critic.parameters() if p.requires_grad],
        lr=settings.rate,
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    model, wrapped_optimizer = prepare(accelerator, models.actor_critic, optimizer)
    if checkpoint is not None:
        restore_optimizer(models.actor_critic, wrapped_optimizer.optimizer, checkpoint)
    return model, wrapped_optimizer


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
