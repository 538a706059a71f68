"""Rows of a file, a dataset folder or a Hub dataset, one after another, and those left out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.cells import Row
from tokencredit.preference.files import OPENERS, file_rows, kind_of_file

Made = TypeVar("Made")


@dataclass(frozen=True)
class DatasetSettings:
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""

    config: str | None = None
    """Configuration of a dataset folder or id that has several; None for its only or default
    one."""
    revision: str | None = None
    """Branch, tag or commit of a dataset id; None for the newest."""
    streaming: bool = False
    """Read the rows of a folder or id one by one, without a copy of the dataset on the disk; for
    large datasets with `limit`."""
    bad_rows: Literal["skip", "error"] = field(default="skip", metadata={"was": "unusable"})
    """What happens to a row that cannot be used: `skip` leaves it out, counts it and writes the
    reason beside the output; `error` ends the job."""

    def collecting(self) -> "list[LeftOut] | None":
        """Where rows are put that are left out; None where a bad row is an error."""
        return [] if self.bad_rows == "skip" else None


_WHOLE = DatasetSettings()


@dataclass(frozen=True)
class LeftOut:
    """A row that could not be used.

    Attributes:
        row: its number, from 1; None where it was read and could not be encoded.
        reason: why, with the place or the beginning of the row.
    """

    row: int | None
    reason: str


def made_rows(
    make: Callable[[Row], Made],
    rows: Iterable[Row],
    *,
    name: str | Path,
    left_out: list[LeftOut] | None = None,
) -> Iterator[Made]:
    """What is made of each row.

    Args:
        make: from a row to what is wanted; raises `DataError` for a bad row.
        rows: as `dataset_rows` yields them.
        name: of the data, for messages.
        left_out: takes the bad rows; None makes the first of them an error.

    Raises:
        DataError: of a bad row, where all are bad or `left_out` is None.
    """
    first: DataError | None = None
    good = False
    for row in rows:
        try:
            if row.fault is not None:
                raise row.fault
            made = make(row)
        except DataError as error:
            if left_out is None:
                raise
            first = first or error
            left_out.append(LeftOut(row.number, str(error)))
            continue
        good = True
        yield made
    if not good and first is not None:
        raise DataError(f"no row of {name} can be used; the first: {first}") from first


def of_one_kind(
    rows: Sequence[Made],
    *,
    prompt: Callable[[Made], Prompt],
    place: Callable[[Made], tuple[int | None, str]],
    left_out: list[LeftOut] | None,
) -> list[Made]:
    """The rows whose prompts are what most prompts are: texts, or conversations.

    Args:
        rows: of the data.
        prompt: of a row; an empty text is of either kind.
        place: of a row, its number if that is known, and its name for messages.
        left_out: takes the others; None makes the first of them an error.

    Raises:
        DataError: there are some of both kinds, and `left_out` is None or as many of one as of the
            other.
    """
    counts = Counter(type(prompt(row)) for row in rows if prompt(row))
    if len(counts) < 2:
        return list(rows)
    (usual, most), (rare, least) = counts.most_common()
    names = {str: "a text", list: "a conversation"}
    kept = []
    for row in rows:
        if not prompt(row) or type(prompt(row)) is usual:
            kept.append(row)
            continue
        number, name = place(row)
        reason = (
            f"{name} is {names[rare]}, as {least} of {least + most} prompts are, and the others "
            f"are each {names[usual]}; expected one kind only: make each text a message of the user"
        )
        if left_out is None or least == most:
            raise DataError(reason)
        left_out.append(LeftOut(number, reason))
    return kept


def dataset_rows(
    path_or_id: str | Path, *, split: str, limit: int | None, dataset: DatasetSettings = _WHOLE
) -> Iterator[Row]:
    """Rows of a dataset, read as they are asked for where it is a file or streamed.

    Args:
        path_or_id: a file (`.jsonl` or `.txt` with one text a line, `.json` with one list, or with
            one indented object that holds nothing but lists, `.csv`, these also `.gz` or `.xz`;
            `.parquet`, `.arrow`), a dataset folder, or a Hub id.
        split: of a folder or Hub id, or a slice of one such as `train[:1000]`; a file has none.
        limit: read only this many first rows; None reads all.
        dataset: which configuration and revision, and whether rows are streamed.

    Yields:
        Rows; one that cannot be read or is no JSON object has its fault instead of values.

    Raises:
        DataError: nothing is there, it cannot be read, has no such split or configuration, or no
            rows.
        ConfigError: `limit` is below 1, or a file is given with a slice, a configuration or a
            revision.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1 row, or None for all")
    path = Path(path_or_id).expanduser()
    if path.is_file():
        part = split if "[" in split or "+" in split else None
        parts = {"dataset_config": dataset.config, "dataset_revision": dataset.revision}
        _refuse(str(path), "a file", split=part, **parts)
        rows = _file_rows(path, dataset)
    elif path.is_dir() or not _looks_like_a_path(str(path_or_id)):
        rows = iter(_dataset(str(path if path.is_dir() else path_or_id), split, dataset))
    else:
        raise DataError(
            f"there is no file or folder {str(path_or_id)!r}; expected a .jsonl file (also .gz or "
            ".xz), a dataset folder or a Hub id"
        )
    number = 0
    for number, row in enumerate(islice(rows, limit), start=1):
        place = f"{path_or_id}, row {number}"
        if isinstance(row, Mapping):
            yield Row(place, row, number)
        elif isinstance(row, DataError):
            yield Row(place, {}, number, row)
        else:
            fault = DataError(f"{place}: {row!r:.500}; expected a JSON object")
            yield Row(place, {}, number, fault)
    if number == 0:
        raise DataError(f"{path_or_id} has no rows; expected at least one")


_TABLES = {".parquet": "parquet", ".arrow": "arrow"}


def _looks_like_a_path(name: str) -> bool:
    suffixes = {".jsonl", ".json", ".txt", ".csv", *OPENERS, *_TABLES}
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).suffix in suffixes


def _refuse(name: str, what: str, **settings: str | None) -> None:
    """A setting that names a part which this kind of data does not have is a mistake."""
    for setting, value in settings.items():
        if value is not None:
            raise ConfigError(
                f"{setting.replace('_', '.')} is {value!r}, and {name} is {what}, which has no "
                "such part; expected data that have it, or no such setting (limit takes first rows)"
            )


def _file_rows(path: Path, dataset: DatasetSettings) -> Iterator[Any]:
    kind = kind_of_file(path)
    if kind not in _TABLES:
        return file_rows(path)
    files = {"data_files": str(path), "split": "train", "streaming": dataset.streaming}
    return _read(str(path), _TABLES[kind], **files)


def _dataset(name: str, split: str, dataset: DatasetSettings) -> Iterator[Any]:
    """A split of a folder written by `save_to_disk`, of a folder of data files, or of the Hub."""
    if Path(name).is_dir():
        _refuse(name, "a folder", dataset_revision=dataset.revision)
    saved = [Path(name) / file for file in ("state.json", "dataset_dict.json")]
    if any(file.is_file() for file in saved):
        _refuse(name, "a folder of `save_to_disk`", dataset_config=dataset.config)
        return _saved_rows(name, split)
    if dataset.streaming and "[" in split:
        raise ConfigError(
            f"split is {split!r} and dataset.streaming true; expected the name of a split, whose "
            "first rows limit takes, or dataset.streaming false"
        )
    texts = _csv_files(name, split, dataset)
    if texts:
        return chain.from_iterable(map(file_rows, texts))
    parts = {"revision": dataset.revision, "streaming": dataset.streaming}
    return _read(name, name, name=dataset.config, split=split, **parts)


def _csv_files(name: str, split: str, dataset: DatasetSettings) -> list[Path]:
    """The CSV files of a folder's split, whose cells `datasets` would turn into numbers and None.

    None where the split is none of whole files.
    """
    if not Path(name).is_dir() or not next(Path(name).rglob("*.csv*"), None):
        return []
    from datasets import load_dataset_builder

    with _explained(name):
        found = load_dataset_builder(name, name=dataset.config).config.data_files or {}
    files = [Path(str(file)) for file in found.get(split, ())]
    whole = all(kind_of_file(file) == ".csv" and file.is_file() for file in files)
    return files if whole else []


def _saved_rows(folder: str, split: str) -> Iterator[Any]:
    """Rows of a folder that `save_to_disk` wrote."""
    from datasets import DatasetDict, ReadInstruction, load_from_disk

    with _explained(folder):
        found = load_from_disk(folder)
    if not isinstance(found, DatasetDict):
        found = DatasetDict({split.partition("[")[0]: found})
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({n: len(d) for n, d in found.items()})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{folder} has the splits {list(found)}; expected {split!r} among them, or a slice of "
            f"one such as train[:100] ({error})"
        ) from error
    for part in parts:
        rows = found[part.splitname]
        yield from rows.select(range(part.from_ or 0, len(rows) if part.to is None else part.to))


def _read(of: str, builder: str, /, **arguments: Any) -> Iterator[Any]:
    """Rows that `load_dataset` finds."""
    from datasets import load_dataset

    with _explained(of):
        rows = iter(load_dataset(builder, **arguments))
    while True:
        with _explained(of):  # a stream reads here
            row = next(rows, None)
        if row is None:
            return
        yield row


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of `datasets` as one of this package: its readers raise what they like."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"cannot load a dataset from {name!r}: {type(error).__name__}: {error} (expected a "
            ".jsonl file, a dataset folder, or a Hub id that is in the local cache or can be "
            "reached; its configuration is dataset.config, its part is split)"
        ) from error
