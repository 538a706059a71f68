"""How the Trainer of transformers is told what the settings of a recipe say."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations

from tokencredit.errors import ConfigError
from tokencredit.models.precision import warn_of_emulated_bfloat16
from tokencredit.recipes.training.supervised import RunConfig, SupervisedConfig


def training_device(config: RunConfig) -> str:
    """Where models beside the one in training are put: where it will be."""
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    return "cpu" if on_cpu else str(torch.accelerator.current_accelerator())


def training_arguments(
    config: SupervisedConfig,
    folder: Path,
    *,
    examples: int,
    sampling: Literal["group_by_length", "random"] = "group_by_length",
) -> TrainingArguments:
    """The Trainer's settings: a cosine after a linear warm-up.

    Args:
        config: of a supervised recipe.
        folder: of the run.
        examples: rows to train on.
        sampling: `group_by_length` puts rows of like length together, `random` does not look.

    Raises:
        ConfigError: a tracker is not installed.
    """
    training = config.training
    on_cpu = training_device(config) == "cpu"
    batches = math.ceil(examples / training.batch_size)
    steps = math.ceil(batches / training.gradient_accumulation) * training.epochs
    total = training.max_steps or steps
    warmup = min(math.ceil(training.warmup * total), math.ceil(total) - 1)  # one step learns too
    require_trackers(training.report_to)
    if training.mixed_precision == "bf16":
        warn_of_emulated_bfloat16(training_device(config), setting="training.mixed_precision 'no'")
    return TrainingArguments(
        output_dir=str(folder / "checkpoints" / ".writing"),
        run_name=folder.name,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.mixed_precision == "bf16",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=on_cpu,
        train_sampling_strategy=sampling,
        save_strategy="steps",
        save_steps=training.checkpoint_every,
        report_to=list(training.report_to) or "none",
        logging_steps=training.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=not config.progress,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
    )


def require_trackers(names: Sequence[str]) -> None:
    """Every tracker is installed.

    Raises:
        ConfigError: one is not.
    """
    there = get_available_reporting_integrations()
    for name in names:
        if name not in there:
            raise ConfigError(
                f"training.report_to names {name!r}, which is not installed; expected it "
                f"(pip install {name}), or one of {', '.join(there) or 'none'}"
            )


def recompute_activations(model: nn.Module) -> None:
    """Keep the activations between layers alone, and compute the others again when they are needed.

    Args:
        model: of transformers, under any wrappers.
    """
    inner = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    # The name that transformers gave it first goes in version 6.
    name = "activation_checkpointing"
    if hasattr(inner, f"{name}_enable"):
        inner.activation_checkpointing_enable(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
