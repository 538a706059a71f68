"""Rows of one file: JSON lines, JSON, text lines or CSV, also compressed.

A row that cannot be read stands among the others as the error that says why, so that whoever reads
decides what becomes of it. Damage to the file as a whole is raised.
"""

import ast
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from tokencredit.errors import DataError

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
"""What opens a compressed file, by the end of its name."""

# Of lists and objects inside each other; what is deeper cannot even be printed.
_MOST_LEVELS = 100

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def kind_of_file(path: Path) -> str:
    """The end of its name, that of the compression left out."""
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix not in OPENERS]
    return suffixes[-1] if suffixes else ""


def file_rows(path: Path) -> Iterator[Any]:
    """Rows of one file, read line by line as the file has them; a bad one is a `DataError`.

    Never `str.splitlines`, which also breaks at characters that occur inside texts (U+0085,
    U+2028). A byte order mark is no part of the first text. Cells of a CSV file are texts, whatever
    they look like, and messages where one holds a list of them.

    Raises:
        DataError: the file cannot be opened, is damaged, or is a JSON file without rows.
    """
    opener = OPENERS.get(path.suffix, open)
    done = 0
    try:
        with opener(path, "rb") as file:
            for row in _rows(path, _lines(file)):
                yield row
                done += 1
    except (OSError, EOFError, lzma.LZMAError, zlib.error, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read after row {done}: {error}; expected a whole file that may be "
            "opened: copy it again"
        ) from error


def _rows(path: Path, lines: Iterator[bytes]) -> Iterator[Any]:
    kind = kind_of_file(path)
    if kind == ".csv":
        yield from _table(path, lines)
        return
    first = next(lines, b"")
    if kind == ".json" and (first.lstrip().startswith(b"[") or first.strip() == b"{"):
        value = _parsed(first + b"".join(lines), path, 1)
        if isinstance(value, DataError):
            raise value
        yield from _joined_lists(value, path)
        return
    for number, line in enumerate(chain([first], lines), start=1):
        yield from _line(line, path, number, kind)


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(_BYTE_ORDER_MARK)


def _line(line: bytes, path: Path, number: int, kind: str) -> Iterator[Any]:
    """The row of a line; none where it is blank."""
    if not line.strip():
        return
    if kind != ".txt":
        yield _parsed(line, path, number)
        return
    text = _decoded(line, path, number)
    if isinstance(text, DataError):
        yield text
    elif text.strip():
        yield {"text": text.strip()}


def _decoded(line: bytes, path: Path, number: int) -> str | DataError:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return DataError(
            f"{path}, line {number} cannot be read: {error}; expected UTF-8 text: save the file as "
            "UTF-8, or drop the line"
        )


def _parsed(line: bytes, path: Path, number: int) -> Any:
    text = _decoded(line, path, number)
    if isinstance(text, DataError):
        return text
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > _MOST_LEVELS:
            _require_few_levels([value])
        return value
    except (ValueError, RecursionError) as error:  # also too many digits, too many brackets
        return DataError(
            f"{path}, line {number} is not JSON that can be read: {error}; expected one object a "
            "line"
        )


def _require_few_levels(value: Any) -> None:
    level = [value]
    for _ in range(_MOST_LEVELS):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [part for inner in parts for part in inner if isinstance(part, dict | list)]
    if level:
        raise ValueError(f"more than {_MOST_LEVELS} lists and objects inside each other")


def _joined_lists(value: Any, path: Path) -> list[Any]:
    """A list, or the lists that an object holds, one after another."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not all(isinstance(part, list) for part in value.values()):
        raise DataError(
            f"{path} holds one object, and not all in it are lists; expected a list of rows, an "
            "object with nothing but lists of rows, or one object a line"
        )
    return [row for part in value.values() for row in part]


def _table(path: Path, lines: Iterator[bytes]) -> Iterator[Any]:
    """Rows of a CSV file."""
    csv.field_size_limit(2**31 - 1)  # the module's own limit is shorter than many a document
    # A byte that is no UTF-8 becomes half a character, which is refused in the cell that has it.
    reader = csv.DictReader(line.decode(errors="surrogateescape") for line in lines)
    for cells in reader:
        if None in cells:
            yield DataError(
                f"{path}, line {reader.line_num} has more cells than the first line has names; "
                'expected as many: put a cell that holds a comma into quotes (")'
            )
        else:
            yield {name: _cell(value) for name, value in cells.items()}


def _cell(text: str | None) -> Any:
    """A text, or the messages that it holds as JSON or as Python prints them."""
    if text is None or not _looks_like_messages(text):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            return value
    return text


def _looks_like_messages(text: str) -> bool:
    named = ("role", "content"), ("from", "value")
    return text.lstrip()[:1] == "[" and any(
        all(f'"{name}"' in text or f"'{name}'" in text for name in both) for both in named
    )
