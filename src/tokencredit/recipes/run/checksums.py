"""Whether the files of a folder are still what they were when it was written.

A folder that is sealed holds `checksums.json`, the SHA-256 of every other file in it, written last.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokencredit.recipes.run.run_folder import flush, write_atomically

_SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Bring every file of a folder to the disk, and write down what they are.

    Args:
        folder: to which nothing is added any more.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    seal_file = folder / _SEAL
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != seal_file)
    for file in files:
        flush(file)
    sums = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    write_atomically(folder / _SEAL, json.dumps(sums, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None if every file is as it was written.

    Files that were added later are not looked at. Every byte is read.

    Args:
        folder: that `seal` has seen.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "state.json").write_text("{}") > 0
    True
    >>> seal(folder)
    >>> damage(folder)
    >>> (folder / "state.json").write_text("[]") > 0
    True
    >>> damage(folder)
    'state.json is not what was written'
    """
    try:
        sums = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if _sha256(folder / name) != expected:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or _SEAL).name}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{_SEAL} is not what was written"
    return None


def digest(value: Any) -> str:
    """The SHA-256 of a value that JSON can hold.

    Args:
        value: of lists, texts and numbers.

    >>> digest([[1, 2], [3]]) == digest([[1, 2, 3]])
    False
    """
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
