"""The folder of a run: what was asked, with which versions, and what happened."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from tokencredit.errors import RunFolderError

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
        free: settings that may differ from the last time (how long to go on, for example); those
            of a group by `group.setting`, or all of it by `group`.

    Raises:
        RunFolderError: the folder belongs to a run with other settings, holds files of something
            else, or cannot be written.
    """
    folder = Path(path)
    text = resolved_yaml(config)
    require_same_run(folder, config, free=free)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "versions.json", json.dumps(_versions(), indent=2) + "\n")
        write_atomically(folder / "config.yaml", text)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written ({error}); expected a folder with room and permission"
        ) from error
    return folder


def require_same_run(path: str | Path, config: Any, *, free: Iterable[str] = ()) -> None:
    """Look, without writing, whether a folder is new, empty or of this very run.

    Args:
        path: the folder.
        config: the dataclass of settings.
        free: settings that may differ.

    Raises:
        RunFolderError: the folder belongs to a run with other settings, or to something else.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    if (folder / "config.yaml").exists():
        settings = yaml.safe_load(resolved_yaml(config))
        _require_same_settings(folder, config, settings, set(free))
    elif any(folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty and holds no config.yaml of a run; expected an empty or "
            "new folder: choose another `output`"
        )


def _defaults(config: Any) -> dict[str, Any]:
    """What settings are where a folder, older than they, does not name them."""
    known = {}
    for field in fields(config):
        if field.default is not MISSING:
            known[field.name] = field.default
        elif field.default_factory is not MISSING:
            default = field.default_factory()
            known[field.name] = asdict(default) if is_dataclass(default) else default  # type: ignore[arg-type]
    return json.loads(json.dumps(known, default=str))


def _single_settings(config: Any, settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting by its own name, those of groups by `group.setting`."""
    single: dict[str, Any] = {}
    for name, value in settings.items():
        inner = getattr(config, name, None)
        if is_dataclass(inner) and isinstance(value, dict):
            single |= _single_settings(inner, value, f"{prefix}{name}.")
        else:
            single[f"{prefix}{name}"] = value
    return single


def _require_same_settings(
    folder: Path, config: Any, settings: dict[str, Any], free: set[str]
) -> None:
    written = yaml.safe_load((folder / "config.yaml").read_text()) or {}
    there = _single_settings(config, _defaults(config)) | _single_settings(config, written)
    now = _single_settings(config, settings)
    names = [n for n in {**there, **now} if not any(f"{n}.".startswith(f"{one}.") for one in free)]
    different = [n for n in names if there.get(n) != now.get(n)]
    if different:
        changes = ", ".join(f"{n}: {there.get(n)!r} -> {now.get(n)!r}" for n in different[:5])
        raise RunFolderError(
            f"{folder} holds another run ({changes}); expected the same settings to continue it: "
            "choose another `output` or delete the folder"
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees all of it or the file as it was."""
    beside = path.with_name(f".{path.name}.writing")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


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
