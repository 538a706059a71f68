"""What a score does when one attribute is edited: `tokencredit evaluate-edits`.

    tokencredit evaluate-edits --reward_model rm --data edits.jsonl --output effects

Rows have an `original`, an `edited` text and the `attribute` that was edited, and where the answer
stands in a pair the `other` answer. Edits come from people, or from a language model that was asked
to change one attribute and nothing else.
"""

import json
from dataclasses import asdict, dataclass
from itertools import islice
from math import isnan, nan
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError
from tokencredit.evaluation.edits import AttributeEffect, attribute_effects
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.cells import Row, text_cell
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import row_prompt
from tokencredit.ranges import require_positive
from tokencredit.recipes.policy.models import reward_server_of
from tokencredit.recipes.policy.setting_groups import ServerSettings
from tokencredit.recipes.run.left_out import require_some, tell_left_out, usable
from tokencredit.recipes.run.run_folder import (
    jsonl_text,
    open_run_folder,
    require_same_run,
    write_atomically,
)
from tokencredit.recipes.settings import LoadingSettings, free_settings, group, setting
from tokencredit.scorers.named_texts import named_text_scorer
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings

_BATCHES_PER_CHUNK = 8


@dataclass(frozen=True)
class EditColumns:
    """Names of the columns of edits."""

    prompt: str | None = None
    """Prompts; None takes `prompt` or another usual name where one is there; an empty name for
    texts that stand alone."""
    original: str = "original"
    """Texts before the edit."""
    edited: str = "edited"
    """Texts after it."""
    attribute: str = "attribute"
    """What was edited."""
    other: str = "other"
    """The other answers of the pairs in which edited ones stand, where there are any."""


@dataclass(frozen=True)
class EvaluateEditsConfig:
    """One evaluation."""

    reward_model: str
    """What scores: any model that `vote-on-pairs` takes."""
    data: str
    """JSON-lines file, dataset folder or dataset id, of edits."""
    output: str = setting(free=True)
    """Folder for `effects.json` and `edits.jsonl`."""
    columns: EditColumns = group(EditColumns)
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    resamples: int = 1000
    """Resamples of the bootstrap."""
    reading: ReadingSettings = group(ReadingSettings)
    """How a model reads texts, where its configuration does not say."""
    max_length: int | None = None
    """Most tokens of prompt and response; None takes what the model can read."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first."""
    batch_size: int = setting(16, free=True)
    """Responses per forward pass."""
    server: ServerSettings = group(ServerSettings, free=True)
    """How to reach a model that another process serves."""
    loading: LoadingSettings = group(LoadingSettings)
    device: str | None = setting(None, free=True)
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "batch_size", "max_length", "resamples")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence is {self.confidence}; expected a share between 0 and 1")


@dataclass(frozen=True)
class _Edit:
    """One row of the data."""

    number: int
    prompt: Prompt
    texts: tuple[str, ...]  # original, edited, and the other answer where there is one
    attribute: str


@quiet_transformers()
def evaluate_edits(config: EvaluateEditsConfig) -> Path:
    """Score texts before and after their edits; an earlier evaluation in the folder is replaced.

    Args:
        config: the settings.

    Returns:
        The folder: `effects.json`, an object of each attribute, and `edits.jsonl`, the scores.

    Raises:
        DataError: the data are not there, or no row can be used.
        ModelError, ServerError: the model is not there or lacks what is needed.
        RunFolderError: the folder holds something else, or cannot be written.
    """
    require_same_run(config.output, config, free=free_settings(type(config)))
    left_out = config.dataset.collecting()
    edits = _edits(config, left_out)
    scored = _scored(config, edits, left_out)
    require_some(scored, left_out)
    others = [scores[2] if len(scores) == 3 else nan for _, scores in scored]
    effects = attribute_effects(
        [one.attribute for one, _ in scored],
        torch.tensor([scores[0] for _, scores in scored]),
        torch.tensor([scores[1] for _, scores in scored]),
        other=torch.tensor(others),
        coverage=config.confidence,
        resamples=config.resamples,
    )
    folder = open_run_folder(config.output, config, free=free_settings(type(config)))
    tell_left_out(left_out, folder / "skipped.jsonl")
    names = ("original", "edited", "other")
    rows = (
        {"row": one.number, "attribute": one.attribute, **dict(zip(names, scores, strict=False))}
        for one, scores in scored
    )
    write_atomically(folder / "edits.jsonl", jsonl_text(rows))
    found = {"reward_model": config.reward_model, "attributes": [_as_row(one) for one in effects]}
    write_atomically(folder / "effects.json", json.dumps(found, indent=2) + "\n")
    _print_table(effects)
    print(f"effects of {len(scored)} edits: {folder}")
    return folder


def _edits(config: EvaluateEditsConfig, left_out: list[LeftOut] | None) -> list[_Edit]:
    columns = config.columns
    apart = (columns.original, columns.edited, columns.attribute, columns.other)

    def edit(row: Row) -> _Edit:
        names = [columns.original, columns.edited]
        names += [columns.other] if row.values.get(columns.other) is not None else []
        texts = tuple(text_cell(row, name) for name in names)
        prompt = row_prompt(row, columns.prompt, apart=apart) or ""
        return _Edit(row.number, prompt, texts, text_cell(row, columns.attribute))

    rows = dataset_rows(config.data, split=config.split, limit=config.limit, dataset=config.dataset)
    return list(made_rows(edit, rows, name=config.data, left_out=left_out))


def _scored(
    config: EvaluateEditsConfig, edits: list[_Edit], left_out: list[LeftOut] | None
) -> list[tuple[_Edit, list[float]]]:
    """Edits with a score of each of their texts."""
    scores = named_text_scorer(
        config.reward_model,
        server=lambda address: reward_server_of(address, config.server),
        reading=config.reading,
        batch_size=config.batch_size,
        max_length=config.max_length,
        truncation=config.truncation,
        device=config.device,
        **vars(config.loading),
    )

    def scored(some: list[_Edit]) -> list[tuple[_Edit, list[float]]]:
        prompts = [one.prompt for one in some for _ in one.texts]
        texts = [text for one in some for text in one.texts]
        found = iter(scores(prompts, texts, [True] * len(texts)).tolist())
        return [(one, [next(found) for _ in one.texts]) for one in some]

    made: list[tuple[_Edit, list[float]]] = []
    waiting = iter(edits)
    while chunk := list(islice(waiting, _BATCHES_PER_CHUNK * config.batch_size)):
        made += usable(scored, chunk, left_out)
    return made


def _as_row(effect: AttributeEffect) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and isnan(value) else value
        for name, value in asdict(effect).items()
    }


def _print_table(effects: list[AttributeEffect]) -> None:
    table = Table("attribute", "edits", "mean change", "interval", "falls", "turns its pair")
    for one in effects:
        table.add_row(
            one.attribute,
            str(one.edits),
            f"{one.change:+.3f}",
            f"{one.low:+.3f} to {one.high:+.3f}",
            f"{one.falls:.3f} ({one.falls_low:.3f} to {one.falls_high:.3f})",
            "-"
            if not one.compared
            else f"{one.flips:.3f} ({one.flips_low:.3f} to {one.flips_high:.3f})",
        )
    Console().print(table)
