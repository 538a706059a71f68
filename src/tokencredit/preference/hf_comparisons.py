"""Judged answers to evaluate with: pairs, labelled pairs, one best of several; their subsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.preference.hf_datasets import fault_of_pair, pair_of_row
from tokencredit.preference.hf_rows import Row, dataset_rows
from tokencredit.preference.pairs import PreferencePair


@dataclass(frozen=True)
class Comparison:
    """Answers to one prompt, some of them better than the others.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        chosen: the better answers, one in most data.
        rejected: the others.
        subset: part of the data that it belongs to; empty where there are no parts.
        name: what the data call it, or the number of its row from 0.
    """

    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    subset: str = ""
    name: str | int = ""


def load_comparisons(
    path_or_id: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    prompt_column: str | None = None,
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    label_column: str | None = None,
    subset_column: str | None = None,
    name_column: str | None = None,
    unusable: Literal["error", "drop"] = "error",
    limit: int | None = None,
) -> list[Comparison]:
    """Comparisons from the shapes that `load_pairs` reads, and two more.

    With `label_column`, two columns hold answers and the label says which is better. Where the
    columns hold lists of texts, as RewardBench 2 has them, each text is an answer.

    Args:
        path_or_id: as in `load_pairs`; or several of them, whose subsets are then their own names
            where no column says otherwise.
        split: of a folder or Hub id.
        prompt_column: of texts or lists of chat messages; None takes `prompt` where it is there.
        chosen_column: of preferred answers; with `label_column` of the first answers.
        rejected_column: of the other answers; with `label_column` of the second ones.
        label_column: of 1 or 2, or the name of a column: the better answer. None where
            `chosen_column` always holds it.
        subset_column: of the parts of the data; None takes `subset` where it is there.
        name_column: of what rows are called; None takes `id` where it is there.
        unusable: what to do with a row that holds an empty answer, or the same as chosen and
            rejected.
        limit: read only this many first rows of each; None reads all.

    Raises:
        DataError: as in `load_pairs`, or a label is something else.
    """
    several = not isinstance(path_or_id, str | Path)
    sources: Sequence[Any] = path_or_id if several else [path_or_id]  # type: ignore[assignment]
    comparisons = []
    for source in sources:
        for number, row in enumerate(dataset_rows(source, split=split, limit=limit)):
            better, worse = _sides(row, chosen_column, rejected_column, label_column)
            pairs = _pairs(row, prompt_column, better, worse)
            fault = next(filter(None, map(fault_of_pair, pairs)), None)
            if fault is not None and unusable == "error":
                raise DataError(
                    f"{row.place}: {fault}; expected two different answers: mend the row, or drop "
                    "such rows (unusable='drop')"
                )
            if fault is None:
                subset = _optional(row, subset_column, "subset", _stem(source) if several else "")
                name = _optional(row, name_column, "id", number)
                comparisons.append(_comparison(pairs, str(subset), name))
    if not comparisons:
        raise DataError(f"{path_or_id}: no usable row; expected two different answers in each")
    return comparisons


def _sides(row: Row, first: str, second: str, label_column: str | None) -> tuple[str, str]:
    """The column of the better answer and that of the other."""
    if label_column is None:
        return first, second
    label = row.value(label_column)
    if label in (1, "1", first):
        return first, second
    if label in (2, "2", second):
        return second, first
    raise DataError(
        f"{row.place}, column {label_column!r}: {label!r}; expected 1 or {first!r} where the "
        f"answer of that column is better, 2 or {second!r} where the other one is: drop ties"
    )


def _pairs(row: Row, prompt_at: str | None, better: str, worse: str) -> list[PreferencePair]:
    """Every better answer with every other one."""
    sides = [_answers(row.value(column)) for column in (better, worse)]
    if not all(sides):
        raise DataError(
            f"{row.place}: {better!r} or {worse!r} is empty; expected an answer in each"
        )
    pairs = [
        pair_of_row(
            Row(row.place, {**row.values, better: chosen, worse: rejected}),
            prompt_at,
            better,
            worse,
            None,
        )
        for chosen, rejected in product(*sides)
    ]
    if any(pair.prompt != pairs[0].prompt for pair in pairs):
        raise DataError(
            f"{row.place}: several answers and no prompt; expected a column of prompts: name it "
            "in prompt_column"
        )
    return pairs


def _answers(value: Any) -> list[Any]:
    """The answers of a cell: the texts of a list of texts, or the one text or conversation."""
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if texts else [value]


def _comparison(pairs: list[PreferencePair], subset: str, name: str | int) -> Comparison:
    # A dictionary keeps the order and each answer once.
    chosen = tuple(dict.fromkeys(pair.chosen for pair in pairs))
    rejected = tuple(dict.fromkeys(pair.rejected for pair in pairs))
    return Comparison(pairs[0].prompt, chosen, rejected, subset, name)


def _optional(row: Row, column: str | None, usual: str, otherwise: str | int) -> str | int:
    """What a named column holds, or that of the usual name where it is there."""
    value = row.value(column) if column is not None else row.values.get(usual, otherwise)
    return value if isinstance(value, str | int) else str(value)


def _stem(source: str | Path) -> str:
    return Path(source).name.split(".json")[0]
