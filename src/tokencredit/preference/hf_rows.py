"""Rows of a JSON-lines file, a table, a dataset folder or a Hub dataset, one after another.

Cells are read as what they should be, or an error names the place.
"""

import gzip
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tokencredit.batch import Prompt
from tokencredit.errors import DataError

_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}


# Of lists and objects inside each other; what is deeper cannot even be printed.
_MOST_LEVELS = 100


_TABLES = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Row:
    """One row of a dataset.

    Attributes:
        place: where it stands, for messages.
        values: by column.
    """

    place: str
    values: Mapping[str, Any]

    def value(self, column: str) -> Any:
        """What stands in a column.

        Raises:
            DataError: there is no such column, or a text in it has half a character, which no
                tokenizer reads.
        """
        if column not in self.values:
            raise DataError(
                f"{self.place} has no column {column!r}; expected it among {list(self.values)}: "
                "name the right one"
            )
        value = self.values[column]
        if _has_half_characters(value):
            raise DataError(
                f"{self.place}, column {column!r}: {value!r:.200} holds a lone surrogate, half of "
                "a character; expected Unicode text: mend or drop the row"
            )
        return value


def _has_half_characters(value: Any) -> bool:
    """Whether a text, or one inside lists and objects, cannot be written as UTF-8."""
    if isinstance(value, str):
        try:
            return not (value.isascii() or value.encode())
        except UnicodeEncodeError:
            return True
    parts = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(parts, list) and any(map(_has_half_characters, parts))


def dataset_rows(path_or_id: str | Path, *, split: str, limit: int | None) -> Iterator[Row]:
    """Rows of a dataset, read as they are asked for where it is a file.

    Args:
        path_or_id: a file (`.jsonl` or `.txt` with one text a line, `.json` with one list, or with
            one indented object that holds nothing but lists, these also `.gz` or `.xz`; `.csv`,
            `.parquet`, `.arrow`), a dataset folder, or a Hub id.
        split: of a folder or Hub id; a file has none.
        limit: read only this many first rows; None reads all.

    Raises:
        DataError: nothing is there, it cannot be read, has no such split or no rows, or a row is no
            JSON object.
    """
    path = Path(path_or_id).expanduser()
    if path.is_file():
        rows = _file_rows(path)
    elif path.is_dir() or not _looks_like_a_path(str(path_or_id)):
        rows = iter(_dataset(str(path if path.is_dir() else path_or_id), split))
    else:
        raise DataError(
            f"there is no file or folder {str(path_or_id)!r}; expected a .jsonl file (also .gz or "
            ".xz), a dataset folder or a Hub id"
        )
    number = 0
    for number, row in enumerate(islice(rows, limit), start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"{path_or_id}, row {number}: {row!r}; expected a JSON object")
        yield Row(f"{path_or_id}, row {number}", row)
    if number == 0:
        raise DataError(f"{path_or_id} has no rows; expected at least one")


def _looks_like_a_path(name: str) -> bool:
    suffixes = {".jsonl", ".json", ".txt", *_OPENERS, *_TABLES}
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).suffix in suffixes


def _file_rows(path: Path) -> Iterator[Any]:
    """Rows of one file, read line by line as the file has them.

    Never `str.splitlines`, which also breaks at characters that occur inside texts (U+0085,
    U+2028).
    """
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix not in _OPENERS]
    kind = suffixes[-1] if suffixes else ""
    if kind in _TABLES:
        yield from _read_by_datasets(str(path), _TABLES[kind], data_files=str(path), split="train")
        return
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            first = file.readline() if kind == ".json" else ""
            file.seek(0)
            if first.startswith("[") or first.strip() == "{":
                yield from _joined_lists(_parsed(file.read(), path, 1), path)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield {"text": line.strip()} if kind == ".txt" else _parsed(line, path, number)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; expected UTF-8 text lines") from error


def _joined_lists(value: Any, path: Path) -> list[Any]:
    """A list, or the lists that an object holds, one after another."""
    if isinstance(value, list):
        return value
    if not all(isinstance(part, list) for part in value.values()):
        raise DataError(
            f"{path} holds one object, and not all in it are lists; expected a list of rows, an "
            "object with nothing but lists of rows, or one object a line"
        )
    return [row for part in value.values() for row in part]


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        value = json.loads(line)
        if line.count("[") + line.count("{") > _MOST_LEVELS:
            _require_few_levels([value])
        return value
    except (ValueError, RecursionError) as error:  # also too many digits, too many brackets
        raise DataError(
            f"{path}, line {number} is not JSON that can be read: {error}; expected one object a "
            "line"
        ) from error


def _require_few_levels(value: Any) -> None:
    level = [value]
    for _ in range(_MOST_LEVELS):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [part for inner in parts for part in inner if isinstance(part, dict | list)]
    if level:
        raise ValueError(f"more than {_MOST_LEVELS} lists and objects inside each other")


def _dataset(path_or_id: str, split: str) -> Any:
    """A split of a folder written by `save_to_disk`, of a folder of data files, or of the Hub."""
    saved = [Path(path_or_id) / name for name in ("state.json", "dataset_dict.json")]
    if not any(file.is_file() for file in saved):
        return _read_by_datasets(path_or_id, path_or_id, split=split)
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(path_or_id)
    if isinstance(found, DatasetDict) and split not in found:
        raise DataError(f"{path_or_id} has the splits {list(found)}; expected {split!r} among them")
    return found[split] if isinstance(found, DatasetDict) else found


def _read_by_datasets(name: str, builder: str, **arguments: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(builder, **arguments)
    except Exception as error:  # its readers raise what they like
        raise DataError(
            f"cannot load a dataset from {name!r}: {type(error).__name__}: {error} (expected a "
            ".jsonl file, a dataset folder, or a Hub id that is in the local cache or can be "
            "reached, and one of its splits)"
        ) from error


def text_cell(row: Row, column: str) -> str:
    """Text of a column, not blank."""
    value = row.value(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected text that is not empty: drop the "
            "row"
        )
    return value


def messages_cell(row: Row, column: str) -> list[dict[str, str]]:
    """Messages of a column, without the empty fields that tables of messages carry."""
    value = row.value(column)
    good = all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    )
    if not value or not good:
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected messages with 'role' and "
            "'content'"
        )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def prompt_cell(row: Row, column: str) -> Prompt:
    """A prompt: a text, or a list of messages."""
    value = row.value(column)
    return messages_cell(row, column) if isinstance(value, list) else text_cell(row, column)


def label_cell(row: Row, column: str) -> int:
    """A label 0 or 1."""
    value = row.value(column)
    if value not in (0, 1):
        raise DataError(
            f"{row.place}, column {column!r}: {value!r}; expected a label 0 (bad) or 1 (good)"
        )
    return int(value)


def number_cell(row: Row, column: str) -> float:
    """A finite number."""
    value = row.value(column)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{row.place}, column {column!r}: {value!r}; expected a finite number")
    return number


def strength_cell(row: Row, column: str | None) -> float:
    """How much a preference counts; 1 where there is no column."""
    strength = 1.0 if column is None else number_cell(row, column)
    if strength <= 0:
        raise DataError(
            f"{row.place}, column {column!r}: {strength}; expected a strength above 0: exchange "
            "the answers of a preference the other way round, drop a pair without one"
        )
    return strength
