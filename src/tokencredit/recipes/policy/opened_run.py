"""A run of train-policy as it begins or goes on: models, prompts, folder and state."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from tokencredit.batch import TokenScorer
from tokencredit.errors import RunFolderError
from tokencredit.models.precision import warn_of_emulated_bfloat16
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.recipes.policy.checkpoints import (
    last_checkpoint,
    read_state,
    restore_optimizer,
)
from tokencredit.recipes.policy.demonstrations import demonstrations_of
from tokencredit.recipes.policy.dialogue_critic import opened_dialogues
from tokencredit.recipes.policy.models import PolicyModels, loaded_models
from tokencredit.recipes.policy.pretraining import pretraining_rows
from tokencredit.recipes.policy.processes import (
    by_the_first,
    process_group_settings,
)
from tokencredit.recipes.policy.prompts import PolicyPrompts, tokenized_prompts
from tokencredit.recipes.policy.references import (
    FILE,
    normalised_by_reference,
    read_references,
    reference_moments,
)
from tokencredit.recipes.policy.refusals import require_what_sharding_allows
from tokencredit.recipes.policy.run_state import PolicyRun, RunState
from tokencredit.recipes.policy.setting_groups import OptimizerSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig, warn_of_biased_gradient
from tokencredit.recipes.policy.sharding import (
    configure_deepspeed,
    prepare,
    require_known_distribution,
)
from tokencredit.recipes.policy.target_network import opened_target
from tokencredit.recipes.policy.vllm import connect
from tokencredit.recipes.policy.watching import watched
from tokencredit.recipes.run.checksums import digest
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.run_folder import (
    keep_rows_before,
    open_run_folder,
    read_jsonl,
)
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import flat_settings, free_settings
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_pooled import PooledRewardModel

FREE_SETTINGS = free_settings(TrainPolicyConfig)


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
    open_run_folder(folder, config, free=FREE_SETTINGS)
    tell_left_out(prompts.left_out, folder / "skipped.jsonl")
    for left_over in (folder / "checkpoints").glob(".writing-*"):
        shutil.rmtree(left_over)
    keep_rows_before(folder / "metrics.jsonl", step)
    keep_rows_before(folder / "samples.jsonl", step)
    if (folder / FILE).exists():
        keep_rows_before(folder / FILE, step)


def accelerator_of(config: TrainPolicyConfig) -> Accelerator:
    """Accelerate with the precision and trackers of the settings."""
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
