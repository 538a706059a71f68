"""How strong preferences are by the votes of several reward models: `tokencredit vote-on-pairs`.

    tokencredit vote-on-pairs --data pairs.jsonl --reward_models '[rm-1, rm-2]' --output votes

Models that were trained on the same pairs in another order, or from other seeds, agree on most of
them; where their mean lead is negative the label is probably wrong (Wang et al. 2024, arXiv
2401.06080). The pairs are written with what was found, in columns that `train-reward-model` reads.
Leads are kept in the folder as they come, so that a run that was stopped goes on, and another
`flip`, `drop` or `soft_label` asks no model again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.cells import Row
from tokencredit.preference.hf_datasets import require_two_answers
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import pair_of_row
from tokencredit.preference.pairs import PreferencePair
from tokencredit.preference.votes import SoftLabel, Votes, require_shares, votes_on_pairs
from tokencredit.ranges import require_positive
from tokencredit.recipes.policy.models import reward_server_of
from tokencredit.recipes.policy.setting_groups import ServerSettings
from tokencredit.recipes.reward_model.pair_columns import PairColumns
from tokencredit.recipes.run.left_out import require_some, tell_left_out, usable
from tokencredit.recipes.run.run_folder import (
    append_jsonl,
    held,
    jsonl_text,
    open_run_folder,
    read_jsonl,
    write_atomically,
)
from tokencredit.recipes.settings import LoadingSettings, free_settings, group, setting
from tokencredit.scorers.named_texts import TextScorer, named_text_scorer
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings

_BATCHES_PER_CHUNK = 8  # of which the leads are written together


@dataclass(frozen=True)
class VoteOnPairsConfig:
    """One vote."""

    data: str
    """JSON-lines file, dataset folder or dataset id, of pairs."""
    reward_models: tuple[str, ...]
    """The models that vote: Hub ids or folders of reward models, `folder#objective` for one with
    several objectives, language models trained by DPO that name their reference, addresses of
    `tokencredit serve` or `vllm+http(s)://...`, or functions `module:function`."""
    output: str = setting(free=True)
    """Folder for `pairs.jsonl`, `votes.json` and `leads.jsonl`, which has the lead by each
    model."""
    flip: float = setting(0.0, free=True)
    """Share of the pairs whose answers are swapped: those with the lowest mean lead."""
    drop: float = setting(0.0, free=True)
    """Share of the pairs that are left out: those with the lowest mean lead after the swapped
    ones."""
    soft_label: SoftLabel = setting("probabilities", free=True)
    """What `preferred` is: `probabilities`, the mean of the probability that each model gives the
    preference, or `votes`, the share of models with a positive lead."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How models read texts, where their configuration does not say."""
    max_length: int | None = None
    """Most tokens of prompt and response; None takes what each model can read."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first: `prompt-start` and then the end of the response, or
    `response-end`. A row that a server refuses is left out."""
    batch_size: int = setting(16, free=True)
    """Responses per forward pass."""
    columns: PairColumns = group(PairColumns)
    server: ServerSettings = group(ServerSettings, free=True)
    """How to reach models that other processes serve."""
    loading: LoadingSettings = group(LoadingSettings)
    device: str | None = setting(None, free=True)
    """Device to compute on, such as `cuda`; None for the CPU."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "batch_size", "max_length")
        require_shares(self.flip, self.drop)
        if not self.reward_models or len(set(self.reward_models)) < len(self.reward_models):
            raise ConfigError(
                f"reward_models is {list(self.reward_models)}; expected at least one, each once"
            )


@dataclass(frozen=True)
class _Voted:
    """A pair of the data: the number of its row, and what its leads are kept under."""

    number: int
    pair: PreferencePair
    key: str


@quiet_transformers()
def vote_on_pairs(config: VoteOnPairsConfig) -> Path:
    """Score pairs with several models and write them with what the models say together.

    Args:
        config: the settings.

    Returns:
        The folder. `pairs.jsonl` has a row of each pair that stays: `row`, its number in the data,
        `prompt`, `chosen`, `rejected`, `chosen_ended`, `rejected_ended`, `lead_mean`, `lead_std`,
        `margin`, `preferred`, `flipped`.

    Raises:
        DataError: the data are not there, no row can be scored, or one cannot where that is an
            error.
        ModelError, ServerError: a model is not there or lacks what is needed.
        NumericError: a score is NaN or infinite.
        RunFolderError: the folder holds another vote, is in use, or cannot be written.
    """
    with held(config.output):
        folder = open_run_folder(config.output, config, free=free_settings(type(config)))
        left_out = config.dataset.collecting()
        rows = _rows(config, left_out)
        leads = _leads(config, rows, left_out, folder / "leads.jsonl")
        rows = [row for row in rows if all(row.key in found for found in leads)]
        require_some(rows, left_out)
        tell_left_out(left_out, folder / "skipped.jsonl")
        table = torch.tensor([[found[row.key] for row in rows] for found in leads])
        votes = votes_on_pairs(
            table, flip=config.flip, drop=config.drop, soft_label=config.soft_label
        )
        kept = list(_voted_rows(rows, votes))
        write_atomically(folder / "pairs.jsonl", jsonl_text(kept))
        found = _summary(config, table, votes, len(kept), len(left_out or ()))
        write_atomically(folder / "votes.json", json.dumps(found, indent=2) + "\n")
    _print_table(found)
    print(f"{len(kept)} pairs with votes: {folder / 'pairs.jsonl'}")
    return folder


def _rows(config: VoteOnPairsConfig, left_out: list[LeftOut] | None) -> list[_Voted]:
    """The pairs of the data."""
    columns = config.columns

    def voted(row: Row) -> _Voted:
        pair = pair_of_row(row, columns.prompt, columns.chosen, columns.rejected, "")
        require_two_answers(row, pair)
        text = json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.ended])
        return _Voted(row.number, pair, hashlib.sha256(text.encode()).hexdigest()[:24])

    rows = dataset_rows(config.data, split=config.split, limit=config.limit, dataset=config.dataset)
    return list(made_rows(voted, rows, name=config.data, left_out=left_out))


def _leads(
    config: VoteOnPairsConfig, rows: list[_Voted], left_out: list[LeftOut] | None, path: Path
) -> list[dict[str, float]]:
    """The lead of each pair by each model; those that an earlier run wrote are not asked for.

    A pair that one model cannot read is asked of no model after it.
    """
    before = read_jsonl(path)
    write_atomically(path, jsonl_text(before))  # without a line that a kill cut short
    leads: list[dict[str, float]] = []
    with Progress(console=Console(stderr=True), disable=not config.progress) as bar:
        task = bar.add_task("voting", total=len(rows) * len(config.reward_models))
        for model in config.reward_models:
            known = {one["pair"]: one["lead"] for one in before if one["model"] == model}
            asked = list({row.key: row for row in rows if row.key not in known}.values())
            bar.advance(task, len(rows) - len(asked))
            refused: list[LeftOut] | None = None if left_out is None else []
            for found in _asked_leads(config, model, asked, refused):
                known |= dict(found)
                for key, lead in found:
                    append_jsonl(path, {"model": model, "pair": key, "lead": lead})
                bar.advance(task, len(found))
            if left_out is not None and refused:
                left_out += refused
            rows = [row for row in rows if row.key in known]
            leads.append(known)
    return leads


def _asked_leads(
    config: VoteOnPairsConfig, model: str, rows: list[_Voted], left_out: list[LeftOut] | None
) -> Iterator[list[tuple[str, float]]]:
    """Leads by one model, chunk by chunk; it is loaded if there is anything to ask."""
    if not rows:
        return
    scores = named_text_scorer(
        model,
        server=lambda address: reward_server_of(address, config.server),
        reading=config.reading,
        batch_size=config.batch_size,
        max_length=config.max_length,
        truncation=config.truncation,
        device=config.device,
        **vars(config.loading),
    )
    waiting = iter(rows)
    while chunk := list(islice(waiting, _BATCHES_PER_CHUNK * config.batch_size)):
        yield usable(lambda some: _leads_of(scores, some), chunk, left_out)


def _leads_of(scores: TextScorer, rows: list[_Voted]) -> list[tuple[str, float]]:
    """Scores of preferred answers less those of the others."""
    pairs = [row.pair for row in rows]
    texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ended = [pair.ended[0] for pair in pairs] + [pair.ended[1] for pair in pairs]
    chosen, rejected = scores([pair.prompt for pair in pairs] * 2, texts, ended).double().chunk(2)
    return [(row.key, lead) for row, lead in zip(rows, (chosen - rejected).tolist(), strict=True)]


def _voted_rows(rows: list[_Voted], votes: Votes) -> Iterator[dict[str, Any]]:
    """The rows of the pairs that are not dropped."""
    for at, row in enumerate(rows):
        if bool(votes.dropped[at]):
            continue
        flipped, pair = bool(votes.flipped[at]), row.pair
        sides = list(zip((pair.chosen, pair.rejected), pair.ended, strict=True))
        (chosen, chosen_ended), (rejected, rejected_ended) = sides[::-1] if flipped else sides
        yield {
            "row": row.number,
            "prompt": pair.prompt,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_ended": chosen_ended,
            "rejected_ended": rejected_ended,
            "lead_mean": float(votes.mean[at]),
            "lead_std": float(votes.std[at]),
            "margin": float(votes.margin[at]),
            "preferred": float(votes.preferred[at]),
            "flipped": flipped,
        }


def _summary(
    config: VoteOnPairsConfig, leads: torch.Tensor, votes: Votes, kept: int, left_out: int
) -> dict[str, Any]:
    """The numbers of `votes.json`."""
    against = leads.mean(0) < 0
    return {
        "pairs": leads.shape[1],
        "left_out": left_out,
        "flipped": int(votes.flipped.sum()),
        "dropped": int(votes.dropped.sum()),
        "written": kept,
        "share_of_negative_mean_leads": float(against.float().mean()),
        "mean_standard_deviation": float(votes.std.mean()),
        "models": {
            model: {
                "accuracy": float(((row.sign() + 1) / 2).mean()),
                "mean_lead": float(row.mean()),
                "sides_with_the_mean": float(((row < 0) == against).float().mean()),
            }
            for model, row in zip(config.reward_models, leads, strict=True)
        },
    }


def _print_table(found: dict[str, Any]) -> None:
    table = Table("model", "accuracy", "mean lead", "sides with the mean", title="votes")
    for model, row in found["models"].items():
        table.add_row(model, *(f"{row[name]:.3f}" for name in row))
    share = found["share_of_negative_mean_leads"]
    table.caption = f"{share:.1%} of {found['pairs']} pairs have a negative mean lead"
    Console().print(table)
