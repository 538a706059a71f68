"""What the supervised recipes share: held-out data, the start of training, the folder of a run."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import Prompt
from tokencredit.errors import DataError, NumericError, RunFolderError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, of_one_kind
from tokencredit.recipes.policy.checkpoints import checkpoints_in
from tokencredit.recipes.run.left_out import encodable, usable
from tokencredit.recipes.run.run_folder import held, open_run_folder, write_atomically
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    TrainingSettings,
    free_settings,
    require_trainable_device,
)


@runtime_checkable
class RunConfig(Protocol):
    """The settings that every run has which trains."""

    @property
    def output(self) -> str:
        """The folder of the run."""

    @property
    def device(self) -> str | None:
        """`cpu`, or None."""


@runtime_checkable
class SupervisedConfig(RunConfig, Protocol):
    """The settings that every supervised recipe has."""

    @property
    def data(self) -> str:
        """What to train on."""

    @property
    def split(self) -> str:
        """Which part of the data is read."""

    @property
    def dataset(self) -> DatasetSettings:
        """Which part of a dataset is read, and what becomes of bad rows."""

    @property
    def max_length(self) -> int:
        """Longest row, in tokens."""

    @property
    def evaluation(self) -> HeldOutSettings:
        """What the model is judged by."""

    @property
    def training(self) -> TrainingSettings:
        """How it is trained."""

    @property
    def loading(self) -> LoadingSettings:
        """How it is loaded."""

    @property
    def seed(self) -> int:
        """Seed of everything random."""

    @property
    def progress(self) -> bool:
        """Whether a bar is shown."""


@dataclass(frozen=True)
class Source:
    """Where rows are read from, with the names that loaders give to it.

    Attributes:
        path_or_id: of the data.
        split: of them.
        dataset: which part of them.
        left_out: takes the bad rows; None makes one an error.
    """

    path_or_id: str
    split: str
    dataset: DatasetSettings
    left_out: list[LeftOut] | None


@runtime_checkable
class PromptedRow(Protocol):
    """A row of data that answers a prompt."""

    @property
    def prompt(self) -> Prompt:
        """What is answered."""


Row = TypeVar("Row", bound=PromptedRow)
Made = TypeVar("Made")


def train_and_held_out(
    config: SupervisedConfig,
    load: Callable[[Source], Sequence[Row]],
    *,
    text: Callable[[Row], str],
) -> tuple[list[Row], list[Row], list[LeftOut] | None]:
    """Rows to train on and rows that are held out; no prompt stands on both sides.

    Args:
        config: says where both come from.
        load: from a source to its rows.
        text: what tells two rows apart that have the same prompt.

    Returns:
        Both, and the rows that cannot be used; None where one is an error.

    Raises:
        DataError: the data are not there, are empty, a row does not fit, or none is left to train
            on.
    """
    left_out = config.dataset.collecting()
    rows = _of_one_kind(load(Source(config.data, config.split, config.dataset, left_out)), left_out)
    apart = config.evaluation
    if apart.data is not None:
        parts = replace(config.dataset, config=None, revision=None)  # these are of `data`
        dataset = config.dataset if apart.data == config.data else parts
        source = Source(apart.data, apart.split or config.split, dataset, left_out)
        held = _of_one_kind(load(source), left_out)
        _require_one_kind([row.prompt for row in (*rows, *held)])
        return rows, held, left_out
    train, held_out = held_out_rows(
        [row.prompt for row in rows],
        [text(row) for row in rows],
        fraction=apart.share,
        seed=config.seed,
    )
    return [rows[i] for i in train], [rows[i] for i in held_out], left_out


def encoded_sides(
    config: SupervisedConfig,
    encode: Callable[[list[Row]], list[Made]],
    rows: list[Row],
    held_out: list[Row],
    left_out: list[LeftOut] | None,
) -> tuple[list[Made], list[Made]]:
    """What rows to train on and rows that are held out become, without those that cannot be used.

    None may stay of a share that is held out, but for data of their own that is an error.

    Args:
        config: says where they come from.
        encode: as of `encodable`.
        rows: to train on.
        held_out: the others.
        left_out: takes the bad ones; None makes one an error.

    Raises:
        DataError: a row is bad where that is an error, or no row to train on is good.
    """
    held = usable if config.evaluation.data is None else encodable
    return encodable(encode, rows, left_out), held(encode, held_out, left_out)


def _of_one_kind(rows: Sequence[Row], left_out: list[LeftOut] | None) -> list[Row]:
    return of_one_kind(
        rows,
        prompt=lambda row: row.prompt,
        place=lambda row: (None, f"the prompt {row.prompt!r:.200}"),
        left_out=left_out,
    )


def _require_one_kind(prompts: Sequence[Prompt]) -> None:
    """Raise DataError if the prompts to train on are texts and those held out are conversations."""
    kinds = {type(prompt): prompt for prompt in prompts if prompt}
    if len(kinds) > 1:
        raise DataError(
            f"some prompts are texts and some are conversations, such as {kinds[str]!r:.80} and "
            f"{kinds[list]!r:.80}; expected one kind only in data and evaluation.data: make each "
            "text a message of the user"
        )


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
            "to train on; expected more data or a smaller evaluation.share"
        )
    return train, [row for row, key in enumerate(keys) if key in held_out]


def finished_run(config: SupervisedConfig) -> Path | None:
    """The folder of a run with the same settings that has written its model, or None.

    Raises:
        RunFolderError: the folder holds the model of another run.
    """
    require_trainable_device(config.device, name="device")
    if not (Path(config.output) / "config.json").is_file():
        return None
    folder = open_run_folder(config.output, config, free=free_settings(type(config)))
    print(f"{folder} holds the finished model of these settings; nothing to do")
    return folder


def processes_of(config: RunConfig) -> PartialState | None:
    """The processes that Accelerate or torchrun launched; None where there is one.

    Args:
        config: of a recipe that trains.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return PartialState(cpu=config.device == "cpu" or not torch.accelerator.is_available())


@contextmanager
def supervised_run(config: SupervisedConfig) -> Iterator[Path]:
    """The folder of a run; one that did not exist before goes again when the run fails.

    It stays where there is a checkpoint to go on from, unless numbers went wrong, as they would
    again. Inside, transformers shows neither bars nor remarks of its own; the
    bar of training stays. Of several processes the first one holds the folder for all.

    Raises:
        RunFolderError: another process holds the folder, it holds another run, or cannot be
            written.
    """

    def has_checkpoint(folder: Path, error: Exception) -> bool:
        return bool(checkpoints_in(folder)) and not isinstance(error, NumericError)

    with folder_of_all(config, kept=has_checkpoint) as folder, quiet_transformers():
        yield folder


@contextmanager
def folder_of_all(config: RunConfig, *, kept: Callable[[Path, Exception], bool]) -> Iterator[Path]:
    """The folder of a run, open in all processes; the first one holds it for all.

    Args:
        config: of a recipe that trains.
        kept: whether a folder that did not exist before stays after an error.

    Raises:
        RunFolderError: another process holds the folder, it holds another run, or cannot be
            written.
    """
    existed, state = Path(config.output).exists(), processes_of(config)
    first = state is None or state.is_main_process
    with held(config.output) if first else nullcontext():
        if not first and state is not None:
            state.wait_for_everyone()  # until the first one has written the settings
        folder = open_run_folder(config.output, config, free=free_settings(type(config)))
        if first and state is not None:
            state.wait_for_everyone()
        try:
            yield folder
        except Exception as error:
            if first and not existed and not kept(folder, error):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def write_results(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float | None],
    folder: Path,
    *,
    name: str,
) -> None:
    """Write and print the numbers of a run, and put its model into its folder.

    Its checkpoints, which nobody needs any more, go. Of several processes the first one writes.

    Args:
        model: as it was trained.
        tokenizer: its own.
        metrics: for `metrics.json`.
        folder: of the run.
        name: of what was made, to print.

    Raises:
        NumericError: a weight is NaN or infinite.
        RunFolderError: the disk is full or not writable.
    """
    state = PartialState()
    if state.is_main_process:
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_model(model, tokenizer, folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        told = (f"{key} {value:,.6g}" for key, value in metrics.items() if value is not None)
        print("  ".join(told))
        print(f"{name}: {folder}")
    state.wait_for_everyone()


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


def autocast(training: TrainingSettings, device: torch.device) -> torch.autocast:
    """bfloat16 where the settings ask for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision == "bf16")


def _require_finite_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise NumericError(
                f"the weight {name} is NaN or infinite after training; expected finite numbers: "
                "lower training.learning_rate"
            )
