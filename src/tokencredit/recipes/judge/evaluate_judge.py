"""Evaluate a judge by labelled pairs: `tokencredit evaluate-judge`.

    tokencredit evaluate-judge --model my/judge --judge.setup pairwise-rl --data pairs.jsonl \
        --output judged

Every pair is shown in both orders, if the set-up shows two responses at all. A judge whose verdict
turns with the order says nothing of that pair: the share of these stands beside its accuracy.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tokencredit.errors import ConfigError, NumericError
from tokencredit.evaluation.pair_scores import pair_outcomes, wilson_interval
from tokencredit.judge.agreement import PairVerdicts, pair_verdicts
from tokencredit.judge.comparisons import both_orders
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.hf_comparisons import Comparison, load_comparisons
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_positive
from tokencredit.recipes.policy.models import reward_server_of
from tokencredit.recipes.policy.setting_groups import ServerSettings
from tokencredit.recipes.reward_model.evaluate_reward_model import ComparisonColumns
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.run_folder import (
    jsonl_text,
    open_run_folder,
    require_same_run,
    write_atomically,
)
from tokencredit.recipes.settings import LoadingSettings, free_settings, group, setting
from tokencredit.scorers.hf_judges import loaded_judge
from tokencredit.scorers.judge_settings import AskingSettings
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class EvaluateJudgeConfig:
    """One evaluation."""

    model: str
    """The judge: a causal language model by Hub id or folder, or `http(s)://.../v1#name`."""
    data: str | list[str]
    """JSON-lines file, dataset folder or dataset id, of pairs; or a list of them."""
    output: str = setting(free=True)
    """Folder for `evaluation.json` and `pairs.jsonl`."""
    judge: AskingSettings = group(AskingSettings)
    """How it is asked."""
    columns: ComparisonColumns = group(ComparisonColumns)
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows of each data set; None uses all."""
    batch_size: int = setting(16, free=True)
    """Questions per forward pass of a local judge."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    reading: ReadingSettings = group(ReadingSettings)
    """How a local judge reads texts, where its configuration does not say."""
    server: ServerSettings = group(ServerSettings, free=True)
    """How an endpoint is asked."""
    loading: LoadingSettings = group(LoadingSettings)
    device: str | None = setting(None, free=True)
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "batch_size")
        if not self.judge.setup:
            raise ConfigError(
                "judge.setup is empty; expected a name that `tokencredit methods --kind judge` "
                "lists, or `module:function`"
            )


@quiet_transformers()
def evaluate_judge(config: EvaluateJudgeConfig) -> Path:
    """Evaluate one judge; an earlier evaluation in the folder is replaced.

    Args:
        config: the settings.

    Returns:
        The folder: `evaluation.json`, and `pairs.jsonl` with both verdicts of every pair.

    Raises:
        DataError: the data are not there, or no row can be used.
        ModelError, ServerError: the judge is not there or does not answer.
        ConfigError: the set-up lacks what it asks for.
        NumericError: more verdicts than `judge.most_unreadable` cannot be read.
        RunFolderError: the folder holds something else, or cannot be written.
    """
    require_same_run(config.output, config, free=free_settings(type(config)))
    setup = config.judge.row()
    left_out = config.dataset.collecting()
    pairs = _pairs(config, left_out)
    judge, _, _ = loaded_judge(
        config.model,
        config.judge,
        server=lambda address: reward_server_of(address, config.server),
        reading=config.reading,
        loading={**vars(config.loading), "device": config.device},
        micro_batch_size=config.batch_size,
    )
    said = pair_verdicts(
        judge,
        setup,
        [one.prompt for one, _, _ in pairs],
        [better for _, better, _ in pairs],
        [worse for _, _, worse in pairs],
        principle=config.judge.principle,
        rubric=config.judge.rubric,
        ask_again=config.judge.ask_again,
    )
    failed = sum(said.unreadable.values())
    if failed > config.judge.most_unreadable * said.verdicts:
        raise NumericError(
            f"{failed} of {said.verdicts} verdicts cannot be read: {said.unreadable}; expected at "
            f"most {config.judge.most_unreadable:.0%}: look at the replies of the judge, or allow "
            "more with judge.most_unreadable"
        )
    folder = open_run_folder(config.output, config, free=free_settings(type(config)))
    tell_left_out(left_out, folder / "skipped.jsonl")
    subsets = [one.subset for one, _, _ in pairs]
    found = {"judge": config.model, "setup": config.judge.setup, **judged(said, subsets, config)}
    rows = (
        {"name": one.name, "subset": one.subset, "first": first, "second": second}
        for (one, _, _), first, second in zip(
            pairs, said.first.tolist(), said.second.tolist(), strict=True
        )
    )
    write_atomically(folder / "pairs.jsonl", jsonl_text(map(_without_nan, rows)))
    write_atomically(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
    _print_table(found)
    print(f"evaluation: {folder}")
    return folder


def _pairs(config: EvaluateJudgeConfig, left_out: Any) -> list[tuple[Comparison, str, str]]:
    """Every better answer with every worse one to the same prompt."""
    columns = config.columns
    comparisons = load_comparisons(
        config.data,
        split=config.split,
        prompt_column=columns.prompt,
        chosen_column=columns.chosen,
        rejected_column=columns.rejected,
        label_column=columns.label,
        label_values=columns.label_values,
        subset_column=columns.subset,
        name_column=columns.name,
        limit=config.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    return [
        (one, better, worse)
        for one in comparisons
        for better in one.chosen
        for worse in one.rejected
    ]


def judged(said: PairVerdicts, subsets: list[str], config: EvaluateJudgeConfig) -> dict[str, Any]:
    """The numbers of `evaluation.json`.

    Args:
        said: verdicts on pairs.
        subsets: of each pair.
        config: the settings.
    """
    both = both_orders(said.first, -said.second)
    there = both.isfinite()
    found: dict[str, Any] = {
        "pairs": len(both),
        "verdicts": said.verdicts,
        "unreadable": dict(said.unreadable),
        "accuracy": _right(both, config.confidence),
        "shown_in_both_orders": said.ordered,
    }
    if said.ordered:
        turns = said.first[there] * said.second[there] <= 0
        # The first response is preferred where the better one stands first, or where it does not
        # and loses.
        prefers_first = torch.cat([said.first[there], -said.second[there]])
        found |= {
            "accuracy_better_first": _right(said.first, config.confidence),
            "accuracy_better_second": _right(said.second, config.confidence),
            "turns_with_the_order": _share(turns.double(), config.confidence),
            "prefers_what_stands_first": _right(prefers_first, config.confidence),
            "bias_to_the_first": float(prefers_first.double().mean())
            if bool(there.any())
            else None,
        }
    names = list(dict.fromkeys(subsets))
    if names != [""]:
        inside = {name: torch.tensor([one == name for one in subsets]) for name in names}
        found["subsets"] = {
            name: _right(both[rows], config.confidence) for name, rows in inside.items()
        }
    return found


def _right(leads: Float[Tensor, "pairs"], confidence: float) -> dict[str, Any]:
    """The share of pairs with a lead above 0, one of 0 counting half; NaN is left out."""
    there = leads[leads.isfinite()]
    return _share(pair_outcomes(there, torch.zeros_like(there)).double(), confidence)


def _share(outcomes: Float[Tensor, "pairs"], confidence: float) -> dict[str, Any]:
    count = len(outcomes)
    if not count:
        return {"share": None, "low": None, "high": None, "count": 0}
    right = float(outcomes.sum())
    low, high = wilson_interval(right, count, confidence=confidence)
    return {"share": right / count, "low": low, "high": high, "count": count}


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row.items()}


def _print_table(found: dict[str, Any]) -> None:
    table = Table("", "share", "interval", "rows", title=f"{found['judge']} as {found['setup']}")
    named = {"accuracy": found["accuracy"]}
    for key in ("accuracy_better_first", "accuracy_better_second", "turns_with_the_order",
                "prefers_what_stands_first"):  # fmt: skip
        if key in found:
            named[key.replace("_", " ")] = found[key]
    named |= found.get("subsets", {})
    for name, row in named.items():
        if row["share"] is None:
            table.add_row(name, "-", "-", "0")
            continue
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(name, f"{row['share']:.3f}", interval, str(row["count"]))
    failed = sum(found["unreadable"].values())
    table.caption = f"{failed} of {found['verdicts']} verdicts could not be read"
    Console().print(table)
