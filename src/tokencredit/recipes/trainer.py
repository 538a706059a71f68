"""The Trainer of the supervised recipes: quiet, with a log, stopped by a loss that is no number."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from tokencredit.errors import NumericError
from tokencredit.recipes.run_folder import append_jsonl
from tokencredit.recipes.supervised import SupervisedConfig


class ModelFunction(nn.Module):
    """A function of a model as a module, whose forward gives what the loss is made of.

    Wrappers for several processes then see every forward pass.

    Args:
        model: in training.
        function: of the model and the columns of a batch.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, **batch: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(self.model, **batch)


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
                "expected a finite number: lower training.learning_rate, or look for broken rows "
                "in the data"
            )
        return loss


class LossTrainer(SupervisedTrainer):
    """The Trainer of a `ModelFunction`, with a loss of what it gives and of what was said of it.

    Args:
        loss: of the outputs and of the whole batch; a mean, which the Trainer divides by the
            accumulated passes.
        unread: columns of the batch that are not for the model.
    """

    def __init__(
        self,
        *arguments: Any,
        loss: Callable[[Tensor, dict[str, Tensor]], Tensor],
        unread: tuple[str, ...],
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.loss, self.unread = loss, unread

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the Trainer passes it by name
    ) -> Any:
        """The loss of a batch, with the outputs where they are asked for."""
        outputs = model(**{name: inputs[name] for name in inputs if name not in self.unread})
        loss = self.loss(outputs, inputs)
        return (loss, outputs) if return_outputs else loss


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


def training_device(config: SupervisedConfig) -> str:
    """Where models beside the one in training are put: where it will be."""
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    return "cpu" if on_cpu else str(torch.accelerator.current_accelerator())


def training_arguments(
    config: SupervisedConfig,
    folder: Path,
    *,
    examples: int,
    learning_rate: float = 2e-5,
    sampling: Literal["group_by_length", "random"] = "group_by_length",
) -> TrainingArguments:
    """The Trainer's settings: no checkpoints, no trackers, a cosine after a linear warm-up.

    Args:
        config: of a supervised recipe.
        folder: of the run.
        examples: rows to train on.
        learning_rate: the highest, where the settings name none.
        sampling: `group_by_length` puts rows of like length together, `random` does not look.
    """
    training = config.training
    named = training.learning_rate
    on_cpu = training_device(config) == "cpu"
    batches = math.ceil(examples / training.batch_size)
    steps = math.ceil(batches / training.gradient_accumulation) * training.epochs
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        num_train_epochs=training.epochs,
        learning_rate=learning_rate if named is None else named,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(training.warmup * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.mixed_precision == "bf16",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=on_cpu,
        train_sampling_strategy=sampling,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=not config.progress,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
    )


def row_numbers(lengths: Sequence[int]) -> Dataset:
    """What the Trainer shuffles: the number and the length of each row, and no copy of it."""
    return Dataset.from_dict({"row": list(range(len(lengths))), "length": list(lengths)})


def train(trainer: Trainer, *, tokens: float) -> dict[str, float]:
    """Train, and say what it took.

    Args:
        trainer: as the recipe made it.
        tokens: that are read in all passes.

    Returns:
        `train_loss`, the mean over all steps, `train_tokens`, `seconds` and `tokens_per_second`.

    Raises:
        NumericError: a loss is NaN or infinite.
    """
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    return {
        "train_loss": loss,
        "train_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
