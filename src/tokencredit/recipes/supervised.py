"""What the supervised recipes share: a quiet Trainer, hold-out, checks, whole folders."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError, NumericError, RunFolderError
from tokencredit.models.hf_loading import (
    context_length,
    disable_dropout,
    load_model,
    load_tokenizer,
    quiet_transformers,
    require_pad_token,
)
from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.run_folder import append_jsonl, open_run_folder


def held_out_rows(
    prompts: Sequence[Prompt], responses: Sequence[str], *, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices to train on and indices held out.

    No prompt stands on both sides; where the prompts are too few for that, or none, no response.

    Args:
        prompts: of each row; may be empty.
        responses: of each row.
        fraction: share of the different prompts or responses to hold out, rounded up.
        seed: another one holds out others.

    Raises:
        DataError: nothing is left to train on.
    """
    keys = [str(prompt) for prompt in prompts]
    if len(set(keys)) * fraction < 1:
        keys = list(responses)
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    held_out = set(order[: math.ceil(fraction * len(order))])
    train = [row for row, key in enumerate(keys) if key not in held_out]
    if not train:
        raise DataError(
            f"{len(order)} different texts, of which the share {fraction} is held out, leave none "
            "to train on; expected more data or a smaller held_out"
        )
    return train, [row for row, key in enumerate(keys) if key in held_out]


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


def training_pairs(config: Any) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs to train on and pairs that are held out; no prompt stands on both sides.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
    """
    pairs = _loaded(config, config.data, config.split)
    if config.eval_data is not None:
        return pairs, _loaded(config, config.eval_data, config.eval_split or config.split)
    train, held_out = held_out_rows(
        [pair.prompt for pair in pairs],
        [pair.chosen for pair in pairs],
        fraction=config.held_out,
        seed=config.seed,
    )
    return [pairs[row] for row in train], [pairs[row] for row in held_out]


def _loaded(config: Any, data: str, split: str) -> list[PreferencePair]:
    return load_pairs(
        data,
        split=split,
        prompt_column=config.prompt_column,
        chosen_column=config.chosen_column,
        rejected_column=config.rejected_column,
        unusable=config.unusable,
        limit=config.limit,
    )


def language_model_to_train(config: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that training starts from, dropout off, and its tokenizer with a pad token.

    Raises:
        ModelError: a model or tokenizer is not there, or there is no pad token.
        ConfigError: the model is too short for `max_length`.
    """
    tokenizer = load_tokenizer(
        config.model, pad_token=config.pad_token, trust_remote_code=config.trust_remote_code
    )
    require_pad_token(tokenizer)
    with quiet_transformers():
        model = load_model(
            AutoModelForCausalLM,
            config.model,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
    require_context(model, tokenizer, config.max_length)
    disable_dropout(model)
    return model, tokenizer
