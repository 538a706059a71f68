"""The folder of a run: what was asked, with which versions, and what happened."""

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from tokencredit.errors import RunFolderError
from tokencredit.recipes.settings import all_settings, flat_settings, moved_settings

_PACKAGES = ("tokencredit", "torch", "transformers", "datasets", "accelerate", "peft", "trl")


def resolved_yaml(config: Any) -> str:
    """The settings of a recipe as YAML, paths and tuples as plain text and lists."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config), default=str)), sort_keys=False)


def open_run_folder(path: str | Path, config: Any, *, free: Iterable[str] = ()) -> Path:
    """Make or reopen the folder of a run.

    Writes `config.yaml` and `versions.json` on the first call; later calls with the same settings
    reopen it, so that an interrupted run goes on.

    Args:
        path: the folder.
        config: the dataclass of settings.
        free: settings that may differ from the last time, how long to go on for example;
            `group.setting`, or whole groups.

    Raises:
        RunFolderError: the folder belongs to a run with other settings, holds files of something
            else, or cannot be written.
    """
    folder = Path(path)
    text = resolved_yaml(config)
    require_same_run(folder, config, free=free)
    with writing(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "versions.json", json.dumps(_versions(), indent=2) + "\n")
        write_atomically(folder / "config.yaml", text)
    return folder


def require_same_run(path: str | Path, config: Any, *, free: Iterable[str] = ()) -> None:
    """Look, without writing, whether a folder is new, empty or of this very run.

    Args:
        path: the folder.
        config: the dataclass of settings.
        free: settings that may differ, `group.setting` or whole groups.

    Raises:
        RunFolderError: the folder belongs to a run with other settings, or to something else.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    if (folder / "config.yaml").exists():
        there = yaml.safe_load((folder / "config.yaml").read_text()) or {}
        _require_groups(folder, there, type(config))
        _require_same_settings(folder, there, config, tuple(free))
    elif any(folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty and holds no config.yaml of a run; expected an empty or "
            "new folder: choose another `output`"
        )


def _require_groups(folder: Path, there: dict[str, Any], settings_class: type) -> None:
    """Refuse settings of version 0.1.0, which had no groups."""
    moved, known = moved_settings(settings_class), dict(all_settings(settings_class))
    old = [name for name in flat_settings(settings_class, there) if name not in known]
    if any(name in moved for name in old):
        raise RunFolderError(
            f"{folder} holds a run whose settings have no groups ({', '.join(old[:3])}, ...), as "
            "version 0.1.0 wrote them; expected a run of this version: choose another `output`, "
            'and find the new names under "From flat settings to groups" in CHANGELOG.md'
        )


def _require_same_settings(
    folder: Path, there: dict[str, Any], config: Any, free: tuple[str, ...]
) -> None:
    settings_class = type(config)
    before = _defaults(settings_class) | flat_settings(settings_class, there)
    now = flat_settings(settings_class, yaml.safe_load(resolved_yaml(config)))
    different = [
        name
        for name in {**before, **now}
        if before.get(name) != now.get(name)
        and not any(name == one or name.startswith(f"{one}.") for one in free)
    ]
    if different:
        changes = ", ".join(f"{n}: {before.get(n)!r} -> {now.get(n)!r}" for n in different[:5])
        raise RunFolderError(
            f"{folder} holds another run ({changes}); expected the same settings to continue it: "
            "choose another `output` or delete the folder"
        )


def _defaults(settings_class: type) -> dict[str, Any]:
    """What settings are where a folder, older than they, does not name them."""
    known = {}
    for one in fields(settings_class):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if default is not MISSING:
            known[one.name] = asdict(default) if is_dataclass(default) else default  # type: ignore[arg-type]
    return flat_settings(settings_class, json.loads(json.dumps(known, default=str)))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder around a path, and report what fails while the path is written.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error}); expected a folder with room and permission"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file that takes its name once it is whole: a reader, or a kill, sees all or nothing.

    If anything goes wrong, what was there before stays.
    """
    beside = path.with_name(f".{path.name}.writing")
    try:
        with beside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole JSON lines of a file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def keep_rows_before(path: Path, step: int) -> None:
    """Drop the rows of steps that a resumed run will do again."""
    rows = [row for row in read_jsonl(path) if row["step"] < step]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
