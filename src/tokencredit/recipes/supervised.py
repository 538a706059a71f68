"""What the supervised recipes share: a quiet Trainer, checks, and folders that are whole."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from tokencredit.errors import ConfigError, NumericError, RunFolderError
from tokencredit.hf_loading import context_length
from tokencredit.recipes.run_folder import append_jsonl, open_run_folder

_FREE_SETTINGS = ("output", "device", "progress")


class SupervisedTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with a bar instead of printed logs, stopped by the first loss that is NaN."""

    def __init__(self, *arguments: Any, log_file: Path, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(_LossBar(log_file, visible=not self.args.disable_tqdm))

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        """One forward and backward pass.

        Raises:
            NumericError: the loss is NaN or infinite.
        """
        loss: Tensor = super().training_step(*arguments, **keywords)
        if not bool(torch.isfinite(loss)):
            raise NumericError(
                f"the loss is {float(loss)} after {self.state.global_step} optimiser steps; "
                "expected a finite number: lower learning_rate, or look for broken rows in the data"
            )
        return loss


class _LossBar(ProgressCallback):  # type: ignore[misc]
    """A progress bar that shows the loss, and a JSON line for every log."""

    def __init__(self, log_file: Path, *, visible: bool) -> None:
        super().__init__()
        self.log_file, self.visible = log_file, visible

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.visible:
            super().on_train_begin(args, state, control, **keywords)

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **keywords)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        append_jsonl(self.log_file, {"step": state.global_step, **logs})
        if self.training_bar is not None:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **keywords)


def training_arguments(
    config: Any, folder: Path, *, examples: int, learning_rate: float
) -> TrainingArguments:
    """The Trainer's settings: no checkpoints, no trackers, a cosine after a linear warm-up.

    Args:
        config: of a supervised recipe.
        folder: of the run.
        examples: rows to train on.
        learning_rate: the highest.
    """
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    batches = math.ceil(examples / config.batch_size)
    steps = math.ceil(batches / config.gradient_accumulation) * config.epochs
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=config.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.mixed_precision == "bf16",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=on_cpu,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=not config.progress,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
    )


def finished_run(config: Any) -> Path | None:
    """The folder of a run with the same settings that has written its model, or None.

    Raises:
        RunFolderError: the folder holds the model of another run.
    """
    if not (Path(config.output) / "config.json").is_file():
        return None
    folder = open_run_folder(config.output, config, free=_FREE_SETTINGS)
    print(f"{folder} holds the finished model of these settings; nothing to do")
    return folder


@contextmanager
def supervised_run(config: Any) -> Iterator[Path]:
    """The folder of a run; one that did not exist before goes again when the run fails.

    Inside, transformers shows neither bars nor remarks of its own; the bar of training stays.
    """
    existed = Path(config.output).exists()
    folder = open_run_folder(config.output, config, free=_FREE_SETTINGS)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    try:
        with quiet_transformers():
            yield folder
    except Exception:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Put model and tokenizer into the folder of their run, `config.json` last.

    Raises:
        NumericError: a weight is NaN or infinite.
        RunFolderError: the disk is full or not writable.
    """
    _require_finite_weights(model)
    beside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for file in sorted(beside.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"the model cannot be written to {folder} ({error}); expected a disk with room and "
            "permission to write"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and remarks of transformers, about weights it loads or masks it misses, say."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def autocast(config: Any, device: torch.device) -> torch.autocast:
    """bfloat16 where the settings ask for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16")


def require_fitting(config: Any) -> None:
    """The settings that every supervised recipe has make sense.

    Raises:
        ConfigError: one does not.
    """
    for name in ("batch_size", "gradient_accumulation", "max_length", "epochs"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected more than 0")
    for name in ("held_out", "warmup"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected a share in [0, 1)")


def require_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """The model can read `max_length` tokens.

    Raises:
        ConfigError: it cannot.
    """
    limit = context_length(model, tokenizer)
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"max_length is {max_length}, and the model reads at most {limit} tokens; expected no "
            "more than that"
        )


def _require_finite_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise NumericError(
                f"the weight {name} is NaN or infinite after training; expected finite numbers: "
                "lower learning_rate"
            )
