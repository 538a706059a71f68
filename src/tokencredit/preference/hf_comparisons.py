"""Judged answers to evaluate with: pairs, labelled pairs, one best of several; their subsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.cells import Row
from tokencredit.preference.hf_datasets import require_two_answers
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import PAIR_LAYOUTS, as_label, pair_columns, pair_of_row
from tokencredit.preference.pairs import PreferencePair

_WHOLE = DatasetSettings()


@dataclass(frozen=True)
class Comparison:
    """Answers to one prompt, some of them better than the others.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        chosen: the better answers, one in most data.
        rejected: the others.
        subset: part of the data that it belongs to; empty where there are no parts.
        name: what the data call it, or the number of its row from 0.
        ended: whether the better answers and the others ended; False where they were cut off.
    """

    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    subset: str = ""
    name: str | int = ""
    ended: tuple[bool, bool] = (True, True)


def load_comparisons(
    path_or_id: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    prompt_column: str | None = None,
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    label_column: str | None = None,
    label_values: tuple[str | int, str | int] | None = None,
    subset_column: str | None = None,
    name_column: str | None = None,
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[Comparison]:
    """Comparisons from the shapes that `load_pairs` reads, and two more.

    With `label_column`, two columns hold answers and the label says which is better. Where the
    columns hold lists of texts, as RewardBench 2 has them, each text is an answer.

    Args:
        path_or_id: as in `load_pairs`; or several of them, whose subsets are then their own names
            where no column says otherwise.
        split: of a folder or Hub id.
        prompt_column: as in `load_pairs`.
        chosen_column: of preferred answers; with `label_column` of the first answers.
        rejected_column: of the other answers; with `label_column` of the second ones.
        label_column: says which answer is better: the name of its column, or one of
            `label_values`. None where `chosen_column` always holds the better one.
        label_values: what the label holds where the first answer is better, and where the second
            is. None takes 1 and 2 where the data have a 2 and no 0, and what `PAIR_LAYOUTS` says of
            a label of this name.
        subset_column: of the parts of the data; None takes `subset` where it is there.
        name_column: of what rows are called; None takes `id` where it is there.
        limit: read only this many first rows of each; None reads all.
        dataset: as in `load_pairs`.
        left_out: as there.

    Raises:
        DataError: as in `load_pairs`, or a label is something else.
        ConfigError: as in `load_pairs`, or numbers 0 or 1 leave open which answer they mean.
    """
    several = not isinstance(path_or_id, str | Path)
    sources: Sequence[Any] = path_or_id if several else [path_or_id]  # type: ignore[assignment]
    comparisons: list[Comparison] = []
    for source in sources:
        rows = dataset_rows(source, split=split, limit=limit, dataset=dataset)
        values: Sequence[Any] | None = label_values
        if label_column is not None and label_values is None:
            rows = iter(kept := list(rows))
            values = _label_values(kept, chosen_column, rejected_column, label_column)

        def comparison(row: Row, source: Any = source, values: Any = values) -> Comparison:
            better, worse = _sides(row, chosen_column, rejected_column, label_column, values)
            pairs = _pairs(row, prompt_column, better, worse)
            for pair in pairs:
                require_two_answers(row, pair)
            subset = _optional(row, subset_column, "subset", _stem(source) if several else "")
            name = _optional(row, name_column, "id", row.number - 1)
            return _comparison(pairs, str(subset), name)

        comparisons += made_rows(comparison, rows, name=str(source), left_out=left_out)
    return comparisons


def _label_values(
    rows: Sequence[Row], first: str, second: str, label: str
) -> tuple[str, str] | None:
    """What a label holds for the first answer and for the second, where the data say it.

    Raises:
        ConfigError: the numbers may count from 0 or from 1, or be a yes and a no.
    """
    for layout in PAIR_LAYOUTS:
        if (layout.first, layout.second, layout.label) == (first, second, label):
            return layout.better
    found = {as_label(row.values.get(label)) for row in rows} - {as_label(first), as_label(second)}
    numbers = found & {"0", "1", "2"}
    if "2" in numbers and "0" not in numbers:
        return "1", "2"
    if numbers:
        raise ConfigError(
            f"the labels in {label!r} are {', '.join(sorted(numbers))}; expected to know which "
            "answer they mean: set columns.label_values (label_values) to what stands for the "
            f"first, {first!r}, and for the second, {second!r}: [0, 1] where 1 is the second "
            "(PKU-SafeRLHF), [1, 0] where 1 means that the first is better, [1, 2] where they are "
            "counted from 1"
        )
    return None


def _sides(
    row: Row, first: str, second: str, label: str | None, values: Sequence[Any] | None
) -> tuple[str, str]:
    """The column of the better answer and that of the other."""
    if label is None:
        return pair_columns(row, first, second)
    said = as_label(row.value(label))
    one, other = ("", "") if values is None else map(as_label, values)
    if said and said in (one, as_label(first)):
        return first, second
    if said and said in (other, as_label(second)):
        return second, first
    raise DataError(
        f"{row.place}, column {label!r}: {row.value(label)!r}; expected {one or first!r} where the "
        f"answer of {first!r} is better, {other or second!r} where that of {second!r} is: drop ties"
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
            "in columns.prompt (prompt_column)"
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
    return Comparison(pairs[0].prompt, chosen, rejected, subset, name, pairs[0].ended)


def _optional(row: Row, column: str | None, usual: str, otherwise: str | int) -> str | int:
    """What a named column holds, or that of the usual name where it is there."""
    value = row.value(column) if column is not None else row.values.get(usual, otherwise)
    return value if isinstance(value, str | int) else str(value)


def _stem(source: str | Path) -> str:
    return Path(source).name.split(".json")[0]
