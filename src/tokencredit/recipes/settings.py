"""What settings of recipes have in common: how a field is marked, and groups that many share.

A settings class is a frozen dataclass whose groups are frozen dataclasses. The words of a setting
stand below its field, from where the command line takes them. On the command line and in YAML a
setting of a group is `group.setting`.
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from tokencredit.errors import ConfigError


def setting(default: Any = MISSING, *, was: str = "", free: bool = False) -> Any:
    """A field of a settings class.

    Args:
        default: its value where nobody gives one; none makes it needed.
        was: its name in the flat layout of version 0.1.0, where that is neither its own name nor
            its group and its name.
        free: whether an interrupted run may go on with another value.
    """
    return field(default=default, metadata={"was": was, "free": free})


def group(kind: type, *, free: bool = False) -> Any:
    """A field that holds a group of settings, by default with all its defaults."""
    return field(default_factory=kind, metadata={"free": free})


def all_settings(settings_class: type) -> Iterator[tuple[str, Field[Any]]]:
    """Every single setting of a class, those of groups by `group.setting`."""
    kinds = get_type_hints(settings_class)
    for one in fields(settings_class):
        kind = kinds[one.name]
        if is_dataclass(kind):
            for name, inner in all_settings(kind):  # type: ignore[arg-type]
                yield f"{one.name}.{name}", inner
        else:
            yield one.name, one


def free_settings(settings_class: type) -> tuple[str, ...]:
    """Names of the settings that an interrupted run may change, as `open_run_folder` takes them."""
    whole = [one.name for one in fields(settings_class) if one.metadata.get("free")]
    single = [name for name, one in all_settings(settings_class) if one.metadata.get("free")]
    return (*whole, *single)


def moved_settings(settings_class: type) -> dict[str, str]:
    """Names of the flat layout of version 0.1.0, each with the name that it has now."""
    moved: dict[str, str] = {}
    for name, one in all_settings(settings_class):
        if one.metadata.get("was"):
            moved[one.metadata["was"]] = name
        if "." in name:
            moved.setdefault(name.replace(".", "_"), name)
            moved.setdefault(name.rpartition(".")[2], name)
    now = {one.name for one in fields(settings_class)}
    return {old: new for old, new in moved.items() if old not in now or old == new.split(".")[0]}


def require_at_least(settings: Any, least: int, *names: str) -> None:
    """Raise ConfigError if one of these settings is smaller."""
    for name in names:
        if getattr(settings, name) < least:
            raise ConfigError(f"{name} is {getattr(settings, name)}; expected at least {least}")


@dataclass(frozen=True)
class LoadingSettings:
    """How models and tokenizers are loaded."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Of the weights of frozen models."""
    attn_implementation: str | None = None
    """Of transformers; None for its default."""
    pad_token: str | None = None
    """Token to pad with, where the tokenizer names none."""
    trust_remote_code: bool = False
    """Run code that comes with a model; off unless you trust its author."""


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank adapter that is trained in the place of all weights."""

    rank: int = 0
    """Of the adapter; 0 trains all weights."""
    alpha: int = 32
    """Scale of the adapter."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "rank")
