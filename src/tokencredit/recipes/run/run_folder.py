"""The folder of a run: what was asked, with which versions, and what happened."""

import json
import os
import platform
import socket
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from tokencredit.errors import RunFolderError, TokenCreditWarning
from tokencredit.recipes.settings import all_settings, flat_settings, moved_settings

_LOCK = ".lock"
# What is there before the settings are; versions of an older run came before them.
_LEFT_BY_AN_OPENING = {_LOCK, ".config.yaml.writing", "versions.json", ".versions.json.writing"}
_PACKAGES = ("tokencredit", "torch", "transformers", "datasets", "accelerate", "peft", "trl")


def resolved_yaml(config: Any) -> str:
    """The settings of a recipe as YAML, paths and tuples as plain text and lists."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config), default=str)), sort_keys=False)


def open_run_folder(path: str | Path, config: Any, *, free: Iterable[str] = ()) -> Path:
    """Make or reopen the folder of a run.

    Writes `config.yaml` and `versions.json` on the first call; later calls with the same settings
    reopen it, so that an interrupted run goes on. A first call that was killed, or found the disk
    full, can be repeated: nothing that it leaves behind is in the way of the next. Where packages
    have another version than the last time, a warning names them.

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
    versions = _versions()
    _warn_of_other_versions(folder, versions)
    with writing(folder):
        folder.mkdir(exist_ok=True)
        # The settings first: a folder with nothing else is a run, one without them is not.
        write_atomically(folder / "config.yaml", text)
        write_atomically(folder / "versions.json", json.dumps(versions, indent=2) + "\n")
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
        there = _settings_in(folder / "config.yaml")
        _require_groups(folder, there, type(config))
        _require_same_settings(folder, there, config, tuple(free))
    elif any(one.name not in _LEFT_BY_AN_OPENING for one in folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty and holds no config.yaml of a run; expected an empty or "
            "new folder: choose another `output`"
        )


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings in a file that a run wrote.

    Raises:
        RunFolderError: it holds something else; no file of a run was ever cut short by a kill.
    """
    try:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        there = error
    if isinstance(there, dict):
        return there
    raise RunFolderError(
        f"{path} cannot be read as the settings of a run ({there!r:.200}); expected the file that "
        "the run wrote: put it back, or choose another `output`"
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


def _warn_of_other_versions(folder: Path, versions: dict[str, str]) -> None:
    """Name the packages that are not those with which the run was last opened."""
    try:
        before = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        names = [name for name in {**before, **versions} if before.get(name) != versions.get(name)]
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged: nothing known
        return
    if names:
        changes = ", ".join(f"{n} {before.get(n)} -> {versions.get(n)}" for n in names)
        warnings.warn(
            f"{folder} goes on with other versions than it had ({changes}): what follows need not "
            "be what would have followed",
            TokenCreditWarning,
            stacklevel=3,
        )


@contextmanager
def held(path: str | Path) -> Iterator[Path]:
    """Hold the folder of a run, so that no second process writes into it.

    The folder is made where there is none, and goes again if nothing else is put into it. The
    system lets go of it when the process ends, however it ends. Of several processes of one run
    the first one holds it for all.

    Args:
        path: the folder.

    Raises:
        RunFolderError: another process holds it, which the message names; or the folder cannot be
            written.
    """
    folder = Path(path)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    with writing(folder):
        folder.mkdir(exist_ok=True)
        lock = _locked(folder / _LOCK)
    try:
        yield folder
    finally:
        if lock is not None:
            with suppress(OSError):  # while it is locked, so that who opened it sees the name go
                (folder / _LOCK).unlink()
            lock.close()
        with suppress(OSError):  # they are not empty
            for one in made:
                one.rmdir()


def _locked(path: Path) -> IO[str] | None:
    """A file that is open and locked; None, with a warning, where the disk knows no locks."""
    import fcntl  # of systems like Unix alone

    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunFolderError(
                f"{path.parent} is in use by {holder}; expected one process at a time: wait for "
                "it, end it, or choose another `output`"
            ) from None
        except OSError as error:
            file.close()
            warnings.warn(
                f"{path.parent} cannot be locked ({error}): nothing keeps a second process from "
                "writing into it",
                TokenCreditWarning,
                stacklevel=5,
            )
            return None
        if _still_named(file, path):
            break
        file.close()  # the one who held it removed it after we had opened it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _still_named(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder around a path, and report what fails while the path is written.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except RunFolderError:
        raise
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
        flush(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink()


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, from the system's memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line; half characters of its texts are escaped.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    with writing(path), path.open("ab") as file:
        file.write(_json_line(row))


def jsonl_text(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON lines; half characters of their texts are escaped."""
    return b"".join(map(_json_line, rows)).decode()


def _json_line(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 has no bytes for
        return (json.dumps(row) + "\n").encode()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole JSON lines of a file; a last line that a kill cut short is left out.

    A line that is damaged otherwise is left out with a warning that names it.
    """
    if not path.exists():
        return []
    rows = []
    # Bytes, since a line may be cut inside a character.
    *whole, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            warnings.warn(
                f"line {number} of {path} is no JSON object and is left out",
                TokenCreditWarning,
                stacklevel=2,
            )
    return rows


def keep_rows_before(path: Path, step: int) -> None:
    """Drop the rows of steps that a resumed run will do again.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    rows = [row for row in read_jsonl(path) if row["step"] < step]
    with writing(path):
        write_atomically(path, jsonl_text(rows))
