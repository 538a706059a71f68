"""Where a model lies, and whether its files are whole: asked before any of them is read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from tokencredit.errors import ModelError
from tokencredit.names import nearest

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SECONDS_FOR_THE_HUB = 5.0
_POINTER = b"version https://git-lfs"


class Place(NamedTuple):
    """Where a model or tokenizer lies.

    Attributes:
        name: a folder or a Hub id, as transformers takes it.
        local_only: whether the Hub is not asked: for folders, offline, and where it is silent.
    """

    name: str
    local_only: bool

    @property
    def folder(self) -> Path | None:
        """The folder; None for a Hub id."""
        return Path(self.name) if Path(self.name).is_dir() else None


def found_place(name_or_path: str | Path, *, what: str) -> Place:
    """The folder or the Hub id that is meant, decided at once.

    A name that cannot be a Hub id is a folder, and so is one whose first part is a folder here. The
    Hub is asked a single time, for a few seconds; where it does not answer, the local cache is
    taken.

    Args:
        name_or_path: as the user gave it.
        what: shall be loaded, for messages.

    Raises:
        ModelError: there is no such folder, or no such Hub id in reach.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        _require_no_pointers(path)
        return Place(str(path), local_only=True)
    if path.is_file():
        raise ModelError(
            f"{name!r} is a file; expected the folder that holds it, as `save_pretrained` writes it"
        )
    if _means_a_folder(name, path):
        raise ModelError(
            f"there is no folder {name!r}{_near_folder(path)}; expected a {what} as "
            "`save_pretrained` writes it, or a Hub id"
        )
    if constants.HF_HUB_OFFLINE:
        return Place(name, local_only=True)
    return Place(name, local_only=_hub_is_silent(name, what))


def _means_a_folder(name: str, path: Path) -> bool:
    if path.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1:
        return True
    try:
        hf_hub_url(name, "config.json")
    except HFValidationError:
        return True
    return "/" in name and Path(path.parts[0]).is_dir()


def _near_folder(path: Path) -> str:
    """What may have been meant: a folder beside it with a like name."""
    beside = path.parent
    if not beside.is_dir():
        return ""
    near = nearest(path.name, [entry.name for entry in beside.iterdir() if entry.is_dir()])
    return "" if near is None else f" (there is {str(beside / near)!r})"


def _hub_is_silent(name: str, what: str) -> bool:
    """Ask the Hub for the model a single time; True where the cache has to do."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=SECONDS_FOR_THE_HUB)
    except EntryNotFoundError:  # a tokenizer or an adapter alone
        return False
    except Exception as error:
        if any(_in_cache(name, file) for file in ("config.json", ADAPTER_CONFIG, "tokenizer.json")):
            return True
        unknown = isinstance(error, RepositoryNotFoundError)
        said = "the Hub knows none that you may read" if unknown else "the Hub cannot be reached"
        raise ModelError(
            f"cannot load a {what} from {name!r}: there is no such folder, it is not in the local "
            f"cache, and {said} ({type(error).__name__}: {_first_line(error)}); expected a folder "
            "as `save_pretrained` writes it, or a Hub id that is in the local cache or can be "
            "reached"
        ) from error
    return False


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _in_cache(name: str, file: str) -> bool:
    return isinstance(try_to_load_from_cache(name, file), str)


def file_of(place: Place, file: str) -> Path | None:
    """A file of a model on this machine, brought from the Hub if need be; None if it has none."""
    folder = place.folder
    if folder is not None:
        return folder / file if (folder / file).is_file() else None
    found = cached_file(
        place.name,
        file,
        local_files_only=place.local_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _require_no_pointers(folder: Path) -> None:
    """No file that would be read is a placeholder of git-lfs.

    Raises:
        ModelError: one is.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".json", ".safetensors", ".model", ".txt") or not file.is_file():
            continue
        with file.open("rb") as opened:
            start = opened.read(len(_POINTER))
        if start == _POINTER:
            raise ModelError(
                f"{str(file)!r} is a pointer of git-lfs and not the file itself; expected its "
                "content: run `git lfs pull` in the repository it was cloned from"
            )


def weight_files(place: Place) -> list[Path]:
    """The safetensors files that hold the weights of a model, each readable to its end.

    Raises:
        ModelError: there are none, an index names a file that is absent or of another kind, or a
            file is empty, cut off or damaged.
    """
    single = file_of(place, SAFE_WEIGHTS_NAME)
    if single is not None:
        return [readable(single)]
    index = file_of(place, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        raise ModelError(
            f"{place.name!r} holds neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; "
            "expected a folder as `save_pretrained` writes it, weights as safetensors, or a Hub id "
            "that is in the local cache or can be reached"
        )
    names = _names_in_index(index)
    files = {name: file_of(place, name) for name in names}
    absent = [name for name, file in files.items() if file is None]
    if absent:
        raise ModelError(
            f"{str(index)!r} names {absent[0]!r}, which is not beside it; expected all "
            f"{len(names)} files of the model"
        )
    return [readable(file) for file in files.values() if file is not None]


def _names_in_index(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{str(index)!r} is no index of weights ({type(error).__name__}: {error}); expected "
            "JSON with a `weight_map`, as `save_pretrained` writes it"
        ) from error
    # Other kinds are pickles, which are not opened.
    other = [name for name in names if not str(name).endswith(".safetensors") or "/" in str(name)]
    if other:
        raise ModelError(
            f"{str(index)!r} names {other[0]!r}; expected files that end in .safetensors, in the "
            "same folder: nothing is unpickled"
        )
    return names


def readable(file: Path) -> Path:
    """The file, if it is safetensors and whole.

    Raises:
        ModelError: it is empty, cut off or damaged.
    """
    try:
        with safe_open(file, framework="pt"):
            return file
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{str(file)!r} cannot be read as safetensors ({str(error).strip()}); it has "
            f"{file.stat().st_size:,} bytes and is empty, cut off or damaged; expected the whole "
            "file: copy or download it again"
        ) from error


def stored_weights(files: Iterable[Path], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Those of the named weights that stand in the files, in their own precision."""
    wanted, found = set(names), {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in wanted & set(opened.keys()):
                found[name] = opened.get_tensor(name)
    return found
