"""PPO with a reward on every token.

    tokencredit train-policy --policy POLICY --reward_model RM --prompts prompts.jsonl --output run

The algorithm is Schulman et al. 2017 (arXiv 1707.06347) with the KL-penalised reward of Ziegler et
al. 2019 (arXiv 1909.08593). Departures: (1) every response token may earn a reward, (2)
log-probabilities are those of the distribution that was sampled from, (3) the critic may share the
policy's trunk, start from a copy of it, or start from the reward model, (4) dropout is off.

Every step seeds the random generators from the run's seed and its own number, so that a resumed
run repeats the interrupted one bit for bit on the CPU.
"""

import shutil
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from tokencredit.aggregation.transforms import RunningMoments
from tokencredit.batch import TokenScorer
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.recipes.policy.checkpoints import (
    checkpoint_path,
    last_checkpoint,
    read_state,
    restore_optimizer,
    write_checkpoint,
)
from tokencredit.recipes.policy.experience import Experience, collected
from tokencredit.recipes.policy.metrics import StepProgress, sample_rows, step_metrics, timed
from tokencredit.recipes.policy.models import PolicyModels, loaded_models
from tokencredit.recipes.policy.processes import process_group_settings, told_of_lost_processes
from tokencredit.recipes.policy.prompts import PolicyPrompts, seeded, tokenized_prompts
from tokencredit.recipes.policy.rollout import rolled_out
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import (
    prepared,
    require_known_distribution,
    settle,
    whole_moments,
    whole_weights,
)
from tokencredit.recipes.policy.update import updated
from tokencredit.recipes.policy.vllm import connected
from tokencredit.recipes.run_folder import (
    append_jsonl,
    keep_rows_before,
    open_run_folder,
    require_same_run,
)
from tokencredit.shaping import adapted_kl_coef

__all__ = ["TrainPolicyConfig", "train_policy"]

_FREE_SETTINGS = ("output", "steps", "checkpoint_every", "keep_checkpoints", "sample_every",
                  "sample_count", "trackers", "progress", "device", "process_timeout",
                  "offload_frozen", "gather_for_generation", "vllm_server", "reward_token_variable",
                  "reward_server_timeout", "reward_server_retries")  # fmt: skip


@dataclass
class RunState:
    """What changes from step to step besides the weights."""

    step: int = 0
    kl_coef: float = 0.0
    moments: RunningMoments = field(default_factory=RunningMoments)
    warned_of_negative_kl: bool = False


@quiet_transformers()
@told_of_lost_processes()
def train_policy(config: TrainPolicyConfig, *, token_scorer: TokenScorer | None = None) -> Path:
    """Train a policy, or go on with a run that was interrupted.

    Args:
        config: the settings.
        token_scorer: pays the tokens instead of the reward model's `credit`; any callable from a
            `ResponseBatch` to (batch, time) token scores.

    Returns:
        The folder of the trained policy, in Hugging Face layout.

    Raises:
        RunFolderError: the output folder holds another run, or cannot be written.
        ModelError: a model is missing, or has no pad token or the wrong head.
        DataError: there are no prompts, or one is empty or too long.
        ConfigError: batches cannot be shared evenly by the processes, or Accelerate was launched
            with a kind of sharding other than FSDP2 and ZeRO-3.
        NumericError: a score, loss or gradient is NaN or infinite; the last checkpoint stays.
        ServerError: the reward server does not answer, or not with scores; likewise.
        ProcessError: another process of the run died or did not answer in time; likewise.
    """
    AcceleratorState._reset_state()  # its singleton refuses a second run with other settings
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output,
        kwargs_handlers=[process_group_settings(config.process_timeout)],
    )
    require_known_distribution(accelerator)
    _require_divisible(config, accelerator.num_processes)
    folder = Path(config.output)
    require_same_run(folder, config, free=_FREE_SETTINGS)
    checkpoint = last_checkpoint(folder)
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settle(accelerator, config)
    models = loaded_models(config, checkpoint, accelerator.device, sharded=sharded)
    if config.vllm_server is not None:
        models = replace(models, server=connected(config.vllm_server, accelerator))
    prompts = tokenized_prompts(config, models.tokenizer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        open_run_folder(folder, config, free=_FREE_SETTINGS)
        for left_over in (folder / "checkpoints").glob(".writing-*"):
            shutil.rmtree(left_over)
    optimizer = torch.optim.AdamW(
        [p for p in models.actor_critic.parameters() if p.requires_grad],
        lr=config.learning_rate,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )
    model, optimizer = prepared(accelerator, models.actor_critic, optimizer)
    state = RunState(kl_coef=config.kl_coef)
    if checkpoint is not None:
        restore_optimizer(models.actor_critic, optimizer.optimizer, checkpoint)
        saved = read_state(checkpoint)
        state = RunState(**{**saved, "moments": RunningMoments(**saved["moments"])})
    if accelerator.is_main_process:
        keep_rows_before(folder / "metrics.jsonl", state.step)
        keep_rows_before(folder / "samples.jsonl", state.step)
    if config.trackers:
        accelerator.init_trackers(
            "tokencredit", config={k: str(v) for k, v in vars(config).items()}
        )
    with StepProgress(config.steps, state.step, config.progress, accelerator) as progress:
        while state.step < config.steps:
            row, samples = _ppo_step(
                config, accelerator, models, model, optimizer, prompts, state, token_scorer
            )
            state.step += 1
            progress.show(row)
            if accelerator.is_main_process:
                append_jsonl(folder / "metrics.jsonl", row)
                accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])
                for sample in samples:
                    append_jsonl(folder / "samples.jsonl", sample)
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                _checkpoint(config, accelerator, folder, models, optimizer, state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _export_policy(folder, config.steps)
    accelerator.end_training()
    return folder / "policy"


def _require_divisible(config: TrainPolicyConfig, processes: int) -> None:
    sizes = (config.batch_size, config.minibatch_size or config.batch_size)
    if any(size % processes for size in sizes):
        raise ConfigError(
            f"batch_size is {sizes[0]} and minibatch_size {sizes[1]} on {processes} processes; "
            "expected multiples of the number of processes"
        )


def _ppo_step(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    model: Any,
    optimizer: Any,
    prompts: PolicyPrompts,
    state: RunState,
    token_scorer: TokenScorer | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rollout, scoring, update; returns the row of metrics and sampled responses."""
    seconds: dict[str, float] = {}
    rng = seeded(config.seed, state.step, accelerator.process_index)
    with timed(seconds, "rollout"):
        batch, truncated, chats = rolled_out(config, accelerator, models, prompts, state.step, rng)
    with timed(seconds, "score"):
        experience = collected(
            models,
            model,
            batch,
            truncated,
            config,
            kl_coef=state.kl_coef,
            moments=state.moments,
            autocast=accelerator.autocast,
            token_scorer=token_scorer,
            conversations=chats,
        )
    with timed(seconds, "update"):
        update = updated(config, accelerator, model, optimizer, experience, state.step, rng)
    row = step_metrics(
        state.step, experience, update, seconds, kl_coef=state.kl_coef, reduce=accelerator.gather
    )
    samples = []
    if state.step % config.sample_every == 0 and accelerator.is_main_process:
        samples = sample_rows(state.step, experience, models.tokenizer, count=config.sample_count)
    _after_step(config, accelerator, experience, state, row)
    return row, samples


def _after_step(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    experience: Experience,
    state: RunState,
    row: dict[str, Any],
) -> None:
    """Adapt the KL coefficient and count the scores."""
    if config.kl_target is not None:
        state.kl_coef = adapted_kl_coef(
            state.kl_coef,
            row["kl"],
            kl_target=config.kl_target,
            responses=config.batch_size,
            horizon=config.kl_horizon,
        )
    if config.score_normalization == "running":
        state.moments = state.moments.updated(accelerator.gather(experience.sequence_scores))
    _warn_of_farmed_kl(config, state, row)


def _warn_of_farmed_kl(config: TrainPolicyConfig, state: RunState, row: dict[str, Any]) -> None:
    if config.kl_estimator != "k1" or config.batch_size < 8 or state.warned_of_negative_kl:
        return  # the noise of fewer responses cannot be told from themselves
    noise = 3 * row["kl_std"] / config.batch_size**0.5
    if row["kl"] < -noise:
        state.warned_of_negative_kl = True
        warnings.warn(
            f"the KL estimate is {row['kl']:.2f} nats at step {row['step']}, negative beyond its "
            f"noise of {noise:.2f}; a KL is never negative. The log-probs are not those of the "
            "distribution that was sampled from, and the policy can farm that: set "
            "logprobs_of='sampled'",
            TokenCreditWarning,
            stacklevel=2,
        )


def _checkpoint(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    folder: Path,
    models: PolicyModels,
    optimizer: Any,
    state: RunState,
) -> None:
    """Gather what is sharded, by all processes, and write it, by the first."""
    writes = accelerator.is_main_process
    weights = whole_weights(models.actor_critic, keep=writes)
    moments = whole_moments(models.actor_critic, optimizer.optimizer, keep=writes)
    if writes:
        write_checkpoint(
            checkpoint_path(folder, state.step),
            models.actor_critic,
            models.tokenizer,
            weights,
            moments,
            {**vars(state), "moments": vars(state.moments)},
            keep=config.keep_checkpoints,
        )


def _export_policy(folder: Path, steps: int) -> None:
    beside = folder / ".policy.writing"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(checkpoint_path(folder, steps) / "policy", beside)
    shutil.rmtree(folder / "policy", ignore_errors=True)
    beside.rename(folder / "policy")
