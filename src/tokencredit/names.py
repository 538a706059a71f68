"""Names looked up in a table; an unknown one is answered with those there are and the nearest."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tokencredit.errors import ConfigError

Row = TypeVar("Row")


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The name that was probably meant; None where no name is like it.

    Args:
        name: as it was written.
        names: those there are.
        cutoff: how like it must be, from 0 to 1, where 1 is the name itself.

    >>> nearest("atention", ["terminal", "attention"])
    'attention'
    """
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return near[0] if near else None


def meant_by(name: str, names: Iterable[str]) -> str:
    """The end of an error message: the name that was probably meant; empty if none is like it.

    >>> meant_by("atention", ["terminal", "attention"])
    "; did you mean 'attention'?"
    """
    near = nearest(name, names)
    return f"; did you mean {near!r}?" if near else ""


def named(kind: str, name: str, table: Mapping[str, Row]) -> Row:
    """The row of this name in a table.

    Args:
        kind: what the table holds, as the user knows the setting: "credit", "estimator".
        name: as the user wrote it.
        table: by name.

    Raises:
        ConfigError: no row has this name; the message has all names, and the nearest one.

    >>> named("credit", "terminal", {"terminal": 1, "attention": 2})
    1
    """
    require_named(kind, name, table)
    return table[name]


def require_named(kind: str, name: str, names: Iterable[str]) -> None:
    """Raise ConfigError if this is none of the names."""
    known = list(names)
    if name not in known:
        raise ConfigError(
            f"{kind} is {name!r}; expected one of {', '.join(map(repr, known))}"
            f"{meant_by(str(name), known)}"
        )
