"""The Trainer of the supervised recipes: it can be left alone, killed, and started again.

Checkpoints are those of the Trainer of transformers (optimiser, schedule, random generators), with
the weights in training as safetensors and the sums behind the metrics in JSON, sealed by checksums.
The order of the rows follows from the seed and the number of the pass alone. So a run that was
stopped goes on, on the CPU bit for bit, as if it had not been.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.integrations import TensorBoardCallback

from tokencredit.errors import NumericError, RunFolderError
from tokencredit.models.hf_adapters import restore_trained_weights, write_trained_weights
from tokencredit.recipes.policy.checkpoints import (
    checkpoint_path,
    checkpoints_in,
)
from tokencredit.recipes.run.checksums import seal
from tokencredit.recipes.run.run_folder import append_jsonl, flush, read_jsonl, write_atomically
from tokencredit.recipes.run.stop_signals import StopRequest, stop_requests
from tokencredit.recipes.training.arguments import recompute_activations
from tokencredit.recipes.training.memory import return_large_blocks
from tokencredit.recipes.training.progress import (
    PROGRESS_FILE,
    Progress,
    TrainingRun,
    saved_progress,
)

# Batches that are drawn together before they are sorted by length, as in transformers.
_SORTED_BATCHES = 50


class ModelFunction(nn.Module):
    """A function of a model as a module, whose forward gives what the loss is made of.

    Wrappers for several processes then see every forward pass.

    Args:
        model: in training.
        function: of the model and the columns of a batch.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, **batch: Tensor) -> Any:
        """What the function gives."""
        return self.function(self.model, **batch)


class RowOrder(Sampler[int]):
    """The order of the rows, which the seed and the number of the pass decide alone.

    Args:
        count: how many rows there are.
        lengths: of each; rows of like length then stand together, batch by batch. None shuffles.
        batch_size: rows of one optimiser step.
        seed: another one gives another order.
    """

    def __init__(
        self, count: int, lengths: Sequence[int] | None, *, batch_size: int, seed: int
    ) -> None:
        self.count, self.lengths = count, lengths
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data comes next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        if self.lengths is None:
            return iter(order)
        batches: list[list[int]] = []
        for at in range(0, self.count, _SORTED_BATCHES * self.batch_size):
            some = order[at : at + _SORTED_BATCHES * self.batch_size]
            some.sort(key=self.lengths.__getitem__)
            sizes = range(0, len(some), self.batch_size)
            batches += [some[first : first + self.batch_size] for first in sizes]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        shuffled = torch.randperm(len(whole), generator=generator).tolist()
        # The incomplete batch stays last, or it would shift the borders of all after it.
        return iter([row for batch in [*(whole[i] for i in shuffled), *rest] for row in batch])


class SupervisedTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with checkpoints that a run goes on from, stopped by the first loss that is NaN.

    Args:
        run: what it belongs to.
    """

    def __init__(self, *arguments: Any, run: TrainingRun, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.run, self.progress, self.stop = run, run.begin, StopRequest()
        self.step_loss = self.last_loss = 0.0
        self.started = time.perf_counter()
        self.order: RowOrder | None = None
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(run.folder / "tensorboard")
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Flow(self))
        self.add_callback(_LossBar(self, visible=not self.args.disable_tqdm))

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        """One forward and backward pass.

        Raises:
            NumericError: the loss is NaN or infinite.
        """
        loss: Tensor = super().training_step(*arguments, **keywords)
        number = float(loss)
        if not math.isfinite(number):
            raise NumericError(
                f"the loss is {number} after {self.state.global_step} optimiser steps; "
                "expected a finite number: lower training.learning_rate, or look for broken rows "
                "in the data"
            )
        self.step_loss += number
        return loss

    def log(self, logs: dict[str, Any], *arguments: Any, **keywords: Any) -> None:
        """Log the mean loss since the last row, which a run that goes on knows too."""
        if "loss" in logs:
            mean = self.progress.logged_loss()
            if self.accelerator.num_processes > 1:
                here = torch.tensor(mean, device=self.accelerator.device)
                mean = float(self.accelerator.reduce(here, reduction="mean"))
            logs = {**logs, "loss": mean}
        super().log(logs, *arguments, **keywords)

    def remembered(self) -> dict[str, Any]:
        """What the checkpoint shall hold besides, as JSON has it."""
        return {}

    def recall(self, remembered: dict[str, Any]) -> None:
        """Take back what `remembered` gave."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that are trained, of a checkpoint."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            write_trained_weights(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            restore_trained_weights(self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write beside, seal, then rename; older checkpoints beyond `keep` go afterwards."""
        progress = self.progress
        path = checkpoint_path(self.run.folder, progress.steps_before + progress.steps)
        beside = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            # Not the one of TRL in between, which writes a page about the model.
            Trainer._save_checkpoint(self, model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seconds = progress.seconds + time.perf_counter() - self.started
                row = asdict(progress) | {"seconds": seconds, "more": self.remembered()}
                (beside / PROGRESS_FILE).write_text(json.dumps(row), encoding="utf-8")
                seal(beside)
                shutil.rmtree(path, ignore_errors=True)
                beside.rename(path)
                flush(path.parent)
        except Exception as error:  # safetensors and torch have exceptions of their own
            shutil.rmtree(beside, ignore_errors=True)
            raise RunFolderError(
                f"the checkpoint {path} could not be written ({error}); expected room and "
                "permission on that disk. Earlier checkpoints are whole: run the same command to "
                "go on"
            ) from error
        if self.args.should_save:
            for old in list(checkpoints_in(self.run.folder).values())[: -self.run.training.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(rows, Sized)
        grouped = self.args.train_sampling_strategy == "group_by_length"
        self.order = RowOrder(
            len(rows),
            list(rows["length"]) if grouped else None,  # type: ignore[index]
            batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            seed=self.run.seed,
        )
        return self.order


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
        loss: Callable[[Any, dict[str, Tensor]], Tensor],
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


class _Flow(TrainerCallback):  # type: ignore[misc]
    """Counts steps, evaluates in between, and stops after a checkpoint when a signal asks."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a checkpoint brings the intervals it had

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        trainer.progress.add_step(trainer.step_loss)
        trainer.last_loss, trainer.step_loss = trainer.step_loss, 0.0
        every, evaluate = trainer.run.training.evaluate_every, trainer.run.evaluate
        between = state.global_step < state.max_steps
        if every and evaluate is not None and state.global_step % every == 0 and between:
            trainer.log({name: n for name, n in evaluate().items() if n is not None})
        if self._asked_to_stop():
            control.should_save = control.should_training_stop = True

    def _asked_to_stop(self) -> bool:
        asked, accelerator = self.trainer.stop.number, self.trainer.accelerator
        if accelerator.num_processes > 1:  # all of them stop after the same step
            numbers = accelerator.gather(torch.tensor([asked], device=accelerator.device))
            asked = self.trainer.stop.number = int(numbers.max())
        return bool(asked)


class _LossBar(ProgressCallback):  # type: ignore[misc]
    """A progress bar that shows the loss of the last step, and a JSON line for every log."""

    def __init__(self, trainer: SupervisedTrainer, *, visible: bool) -> None:
        super().__init__()
        self.trainer, self.visible = trainer, visible

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.visible:
            super().on_train_begin(args, state, control, **keywords)

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.training_bar is not None:
            self.training_bar.set_postfix(loss=f"{self.trainer.last_loss:.3f}", refresh=False)
            super().on_step_end(args, state, control, **keywords)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and "train_runtime" not in logs:
            row = {"step": state.global_step, **logs}
            append_jsonl(self.trainer.run.folder / "metrics.jsonl", row)

    def on_train_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **keywords)


def row_numbers(lengths: Sequence[int]) -> Dataset:
    """What the Trainer shuffles: the number and the length of each row, and no copy of it."""
    return Dataset.from_dict({"row": list(range(len(lengths))), "length": list(lengths)})


def train(trainer: SupervisedTrainer, *, tokens: int) -> dict[str, float]:
    """Train, from the last checkpoint of the run if it has one, and say what it took.

    Args:
        trainer: as the recipe made it.
        tokens: that are read in one pass over the data.

    Returns:
        `train_loss`, the mean over all steps, `train_steps`, `train_tokens`, `seconds` and
        `tokens_per_second`; of a run that went on, of all of it.

    Raises:
        NumericError: a loss is NaN or infinite.
        RunFolderError: a checkpoint cannot be written or belongs to another model.
        KeyboardInterrupt, SystemExit: a signal asked to stop; the checkpoint is written.
    """
    run = trainer.run
    saved = saved_progress(run.folder)
    checkpoint = None
    if saved is not None and saved[1].turn == run.begin.turn:
        checkpoint, trainer.progress = saved
        trainer.recall(trainer.progress.more)
        print(f"the run goes on from {checkpoint}", flush=True)
    progress = trainer.progress
    if trainer.is_world_process_zero():
        _forget_rows_after(run.folder / "metrics.jsonl", progress)
    if run.training.gradient_checkpointing:
        recompute_activations(trainer.model)
    if trainer.args.device.type == "cpu":
        return_large_blocks()
    trainer.started = time.perf_counter()
    with stop_requests("the run stops after this step, with a checkpoint to go on from") as request:
        trainer.stop = request
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    progress.seconds += time.perf_counter() - trainer.started
    if request.number:
        request.end()
    read = tokens * float(trainer.state.epoch)
    return {
        "train_loss": progress.loss / max(progress.steps, 1),
        "train_steps": float(progress.steps),
        "train_tokens": read,
        "seconds": progress.seconds,
        "tokens_per_second": read / progress.seconds,
    }


def _forget_rows_after(path: Path, progress: Progress) -> None:
    """Drop the rows of metrics of steps that are done again."""
    rows = read_jsonl(path)
    here = (progress.turn, progress.steps)
    kept = [row for row in rows if (row.get("turn", 1), row["step"]) <= here]
    if len(kept) < len(rows):
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
