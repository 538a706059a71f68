"""Every error and warning this package raises on purpose.

TokenCreditError
├── ConfigError          a setting is unknown, misspelt or contradicts another
├── DataError            a file, dataset, prompt or response cannot be used as it is
├── ModelError           a model or tokenizer is missing or lacks what a method needs
├── ShapeError           tensors do not fit each other (also a ValueError)
├── NumericError         a score, loss or gradient is NaN or infinite
├── ProcessError         another process of a training died or fell silent
├── ServerError          a reward or vLLM server is not there, or does not answer as it should
└── RunFolderError       a run folder holds another run, or cannot be written

TokenCreditWarning       something works, but probably not as hoped

Each message says what was received, what was expected, and how to mend it.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Row = TypeVar("Row")


class TokenCreditError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(TokenCreditError, ValueError):
    """A setting is unknown, misspelt or contradicts another."""


class DataError(TokenCreditError, ValueError):
    """A file, dataset, prompt or response cannot be used as it is."""


class ModelError(TokenCreditError, ValueError):
    """A model or tokenizer is missing or lacks what a method needs."""


class ShapeError(TokenCreditError, ValueError):
    """Tensors do not fit each other."""


class NumericError(TokenCreditError, ArithmeticError):
    """A score, loss or gradient is NaN or infinite."""


class ProcessError(TokenCreditError, RuntimeError):
    """Another process of a training died or fell silent."""


class ServerError(TokenCreditError, ConnectionError):
    """A server of rewards or of responses is not there, or does not answer as it should."""


class RunFolderError(TokenCreditError, OSError):
    """A run folder holds another run, or cannot be written."""


class TokenCreditWarning(UserWarning):
    """Something works, but probably not as hoped."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A question that ends a message about an unknown name; empty if no known one is near.

    >>> nearest("atention", ["attention", "uniform"])
    "; did you mean 'attention'?"
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def named(kind: str, name: str, table: Mapping[str, Row]) -> Row:
    """The row of a table of methods that has this name.

    Args:
        kind: what the table lists, for the message.
        name: of the row.
        table: rows by name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    >>> named("shape", "round", {"round": 1, "square": 4})
    1
    """
    if name not in table:
        raise ConfigError(
            f"{kind} is {name!r}; expected one of {', '.join(map(repr, table))}"
            f"{nearest(name, table)}"
        )
    return table[name]
