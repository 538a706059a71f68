"""Which versions of another trainer an adapter was tested with."""

import os
import re
from importlib.metadata import PackageNotFoundError, version

from tokencredit.errors import ConfigError

ANY_VERSION = "TOKENCREDIT_ANY_VERSION"
"""Environment variable that lets an untested version through."""


def require_version(package: str, *, at_least: str, below: str, extra: str) -> None:
    """Stop where the package is missing, or of a version that the adapter was not tested with.

    Adapters override methods that the package does not promise to keep, so that another version
    may train on something else than it seems to, in silence.

    Args:
        package: name of the distribution.
        at_least: first version that was tested.
        below: first version that was not.
        extra: of this package, that installs the other.

    Raises:
        ConfigError: it is not installed, or outside the range and `TOKENCREDIT_ANY_VERSION` is not
            set.

    >>> require_version("torch", at_least="1.0", below="99.0", extra="none")
    """
    wanted = f"{package}>={at_least},<{below}"
    try:
        found = version(package)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"{package} is not installed; expected {wanted}: pip install 'tokencredit[{extra}]'"
        ) from error
    tested = _numbers(at_least) <= _numbers(found) < _numbers(below)
    if not tested and not os.environ.get(ANY_VERSION):
        raise ConfigError(
            f"{package} is {found}; expected {wanted}, which this adapter was tested with: "
            f"pip install '{wanted}', or set {ANY_VERSION}=1 and check the first steps yourself"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*", text)[0].split(".") if part)  # type: ignore[index]
