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
import warnings
from dataclasses import asdict, dataclass, field, replace
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
from tokencredit.recipes.left_out import tell_left_out
from tokencredit.recipes.policy.checkpoints import (
    checkpoint_path,
    export_policy,
    last_checkpoint,
    read_state,
    restore_optimizer,
    write_checkpoint,
)
from tokencredit.recipes.policy.experience import Experience, experience_of
from tokencredit.recipes.policy.metrics import StepProgress, sample_rows, step_metrics, timed
from tokencredit.recipes.policy.models import PolicyModels, loaded_models
from tokencredit.recipes.policy.processes import (
    end_processes,
    explain_lost_processes,
    process_group_settings,
)
from tokencredit.recipes.policy.prompts import PolicyPrompts, seeded, tokenized_prompts
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.setting_groups import OptimizerSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig, warn_of_biased_gradient
from tokencredit.recipes.policy.sharding import (
    configure_deepspeed,
    prepare,
    require_known_distribution,
    whole_moments,
    whole_weights,
)
from tokencredit.recipes.policy.update import update_policy
from tokencredit.recipes.policy.vllm import connect
from tokencredit.recipes.run_folder import (
    append_jsonl,
    keep_rows_before,
    open_run_folder,
    require_same_run,
)
from tokencredit.recipes.settings import flat_settings, free_settings
from tokencredit.shaping import adapted_kl_coef

__all__ = ["TrainPolicyConfig", "train_policy"]

_FREE_SETTINGS = free_settings(TrainPolicyConfig)


@dataclass(frozen=True)
class PolicyRun:
    """A training with everything that stays as it is from step to step.

    Attributes:
        config: the settings.
        folder: of the run.
        accelerator: of its processes.
        models: everything that speaks during a rollout.
        model: what is trained, as Accelerate wraps or shards it.
        optimizer: likewise.
        prompts: all of them.
        token_scorer: pays the tokens in the place of the credit; None for the credit.
    """

    config: TrainPolicyConfig
    folder: Path
    accelerator: Accelerator
    models: PolicyModels
    model: Any
    optimizer: Any
    prompts: PolicyPrompts
    token_scorer: TokenScorer | None


@dataclass
class RunState:
    """What changes from step to step besides the weights."""

    step: int = 0
    kl_coef: float = 0.0
    moments: dict[str, RunningMoments] = field(default_factory=dict)
    warned_of_negative_kl: bool = False

    @classmethod
    def read(cls, checkpoint: Path | None, *, kl_coef: float) -> "RunState":
        """The state in a checkpoint, or that of a run that begins.

        Args:
            checkpoint: of the run; None for one that begins.
            kl_coef: the coefficient to begin with.
        """
        if checkpoint is None:
            return cls(kl_coef=kl_coef)
        saved = read_state(checkpoint)
        moments = {name: RunningMoments(**one) for name, one in saved["moments"].items()}
        return cls(**{**saved, "moments": moments})


@quiet_transformers()
@explain_lost_processes()
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
    run, state = open_run(config, token_scorer)
    writes = run.accelerator.is_main_process
    with StepProgress(config.steps, state.step, config.record.progress, run.accelerator) as bar:
        while state.step < config.steps:
            row, samples = _train_step(run, state)
            state.step += 1
            bar.show(row)
            if writes:
                append_jsonl(run.folder / "metrics.jsonl", row)
                numbers = {name: value for name, value in row.items() if name != "step"}
                run.accelerator.log(numbers, step=row["step"])
                for sample in samples:
                    append_jsonl(run.folder / "samples.jsonl", sample)
            if state.step % config.record.checkpoint_every == 0 or state.step == config.steps:
                _checkpoint(run, state)
    run.accelerator.wait_for_everyone()
    if writes:
        export_policy(run.folder, config.steps)
    end_processes(run.accelerator)
    return run.folder / "policy"


def open_run(
    config: TrainPolicyConfig, token_scorer: TokenScorer | None = None
) -> tuple[PolicyRun, RunState]:
    """Open the folder of a run, load its models, and find where it stands.

    Args:
        config: the settings.
        token_scorer: as `train_policy` takes it.
    """
    accelerator = _accelerator(config)
    _require_divisible(config, accelerator.num_processes)
    folder = Path(config.output)
    require_same_run(folder, config, free=_FREE_SETTINGS)
    if token_scorer is None and accelerator.is_main_process:
        warn_of_biased_gradient(config)
    checkpoint = last_checkpoint(folder)
    models = _models(config, checkpoint, accelerator)
    prompts = tokenized_prompts(config, models.tokenizer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # only now, so that a model that is not there leaves no folder
        open_run_folder(folder, config, free=_FREE_SETTINGS)
        tell_left_out(prompts.left_out, folder / "skipped.jsonl")
        for left_over in (folder / "checkpoints").glob(".writing-*"):
            shutil.rmtree(left_over)
    model, optimizer = _prepared_model(config.optimizer, checkpoint, models, accelerator)
    state = RunState.read(checkpoint, kl_coef=config.kl.coef)
    if accelerator.is_main_process:
        keep_rows_before(folder / "metrics.jsonl", state.step)
        keep_rows_before(folder / "samples.jsonl", state.step)
    if config.record.trackers:
        settings = flat_settings(TrainPolicyConfig, asdict(config))
        accelerator.init_trackers(
            "tokencredit", config={name: str(value) for name, value in settings.items()}
        )
    run = PolicyRun(config, folder, accelerator, models, model, optimizer, prompts, token_scorer)
    return run, state


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
    return accelerator


def _require_divisible(config: TrainPolicyConfig, processes: int) -> None:
    sizes = (config.batch_size, config.algorithm.minibatch_size or config.batch_size)
    if any(size % processes for size in sizes):
        raise ConfigError(
            f"batch_size is {sizes[0]} and algorithm.minibatch_size {sizes[1]} on {processes} "
            "processes; expected multiples of the number of processes"
        )
    samples = config.algorithm.samples_per_prompt
    if sizes[0] // processes % samples:
        raise ConfigError(
            f"batch_size is {sizes[0]} on {processes} processes with algorithm.samples_per_prompt "
            f"{samples}; expected whole groups on each process: make batch_size a multiple of "
            f"{processes * samples}"
        )


def _models(
    config: TrainPolicyConfig, checkpoint: Path | None, accelerator: Accelerator
) -> PolicyModels:
    """The models of the run, and the server that draws responses if there is one."""
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(accelerator, config)
    models = loaded_models(config, checkpoint, accelerator.device, sharded=sharded)
    if config.machine.vllm_server is None:
        return models
    return replace(models, server=connect(config.machine.vllm_server, accelerator))


def _prepared_model(
    settings: OptimizerSettings,
    checkpoint: Path | None,
    models: PolicyModels,
    accelerator: Accelerator,
) -> tuple[Any, Any]:
    """What is trained and its optimiser, with the moments of the last checkpoint."""
    optimizer = torch.optim.AdamW(
        [p for p in models.actor_critic.parameters() if p.requires_grad],
        lr=settings.learning_rate,
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
        rollout = draw_responses(config, accelerator, models, run.prompts, state.step, rng)
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
            token_scorer=run.token_scorer,
        )
    with timed(seconds, "update"):
        # epochs times (minibatch, time): one loss per token, their sum over the tokens that count
        update = update_policy(
            config, accelerator, run.model, run.optimizer, experience, state.step, rng
        )
    row = step_metrics(
        state.step, experience, update, seconds, kl_coef=state.kl_coef, reduce=accelerator.gather
    )
    samples = []
    if state.step % config.record.sample_every == 0 and accelerator.is_main_process:
        count = config.record.sample_count
        samples = sample_rows(state.step, experience, models.tokenizer, count=count)
    _adapt(run, experience, state, row)
    return row, samples


def _adapt(run: PolicyRun, experience: Experience, state: RunState, row: dict[str, Any]) -> None:
    """Adapt the KL coefficient and count the scores."""
    config = run.config
    if config.kl.target is not None:
        state.kl_coef = adapted_kl_coef(
            state.kl_coef,
            row["kl"],
            kl_target=config.kl.target,
            responses=config.batch_size,
            horizon=config.kl.horizon,
        )
    for source in config.sources:
        if source.score.normalization == "running":
            gathered = run.accelerator.gather(experience.source_scores[source.label])
            seen = state.moments.get(source.label, RunningMoments())
            state.moments[source.label] = seen.updated(gathered)
    _warn_of_farmed_kl(config, state, row)


def _warn_of_farmed_kl(config: TrainPolicyConfig, state: RunState, row: dict[str, Any]) -> None:
    if config.kl.estimator != "k1" or config.batch_size < 8 or state.warned_of_negative_kl:
        return  # the noise of fewer responses cannot be told from themselves
    noise = 3 * row["kl_std"] / config.batch_size**0.5
    if row["kl"] < -noise:
        state.warned_of_negative_kl = True
        warnings.warn(
            f"the KL estimate is {row['kl']:.2f} nats at step {row['step']}, negative beyond its "
            f"noise of {noise:.2f}; a KL is never negative. The log-probs are not those of the "
            "distribution that was sampled from, and the policy can farm that: set "
            "sampling.logprobs_of='sampled'",
            TokenCreditWarning,
            stacklevel=2,
        )


def _checkpoint(run: PolicyRun, state: RunState) -> None:
    """Gather what is sharded, by all processes, and write it, by the first."""
    actor_critic, writes = run.models.actor_critic, run.accelerator.is_main_process
    weights = whole_weights(actor_critic, keep=writes)
    moments = whole_moments(actor_critic, run.optimizer.optimizer, keep=writes)
    if writes:
        write_checkpoint(
            checkpoint_path(run.folder, state.step),
            actor_critic,
            run.models.tokenizer,
            weights,
            moments,
            {**vars(state), "moments": {name: vars(one) for name, one in state.moments.items()}},
            keep=run.config.record.keep_checkpoints,
        )
