"""Python functions that settings name as `module:function`."""

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from tokencredit.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def names_function(text: str) -> bool:
    """Whether a text has the form `module:function`.

    >>> names_function("my.rewards:brevity"), names_function("http://localhost:8000")
    (True, False)
    """
    return _NAME.fullmatch(text) is not None


def named_function(path: str) -> Callable[..., Any]:
    """The function at `module:function`, from the working folder or what is installed.

    Args:
        path: as settings name it.

    Raises:
        ConfigError: there is no such module, or nothing in it of this name that can be called.

    >>> named_function("math:floor")(2.5)
    2
    """
    module, _, name = path.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"there is no function {path} ({error}); expected `module:function` of a module in the "
            "working folder or an installed one"
        ) from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ConfigError(f"{path} is {found!r:.80}; expected a function")
    return found
