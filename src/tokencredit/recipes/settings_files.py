"""YAML files of settings, looked at before they are read: what unfolds without end is refused."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from tokencredit.errors import ConfigError

# Of values in all, repeated ones counted as often as they stand there. Settings have a hundred.
_MOST_VALUES = 10_000
_MOST_BYTES = 1_000_000


def require_small_file(path: str | Path) -> None:
    """Raise ConfigError if a YAML file is larger than settings are, as it stands or unfolded.

    A file that is not there or is no text is left to its reader.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        return
    try:
        size = file.stat().st_size
        text = file.read_text(encoding="utf-8-sig") if size <= _MOST_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return
    if size > _MOST_BYTES:
        raise ConfigError(
            f"{path} has {size:,} bytes; expected a file of settings of {_MOST_BYTES:,} at most"
        )
    require_few_aliases(text, str(path))


def require_few_aliases(text: str, name: str) -> None:
    """Raise ConfigError if YAML repeats itself by aliases (`&a`, `*a`) beyond all settings.

    Args:
        text: YAML, or anything else.
        name: of the text, for the message.

    Raises:
        ConfigError: it unfolds to more than 10,000 values, or into itself.
    """
    if "&" not in text or "*" not in text:
        return
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return  # its reader says what is wrong
    if node is not None and _unfolded(node, {}, frozenset()) > _MOST_VALUES:
        raise ConfigError(
            f"{name} repeats parts of itself by YAML aliases (&, *) until they are more than "
            f"{_MOST_VALUES:,} values; expected settings: write them out, or fewer"
        )


def _unfolded(node: yaml.Node, known: dict[int, int], above: frozenset[int]) -> int:
    """How many values a part of a YAML text is, every alias written out."""
    if id(node) in above:
        return _MOST_VALUES + 1  # holds itself
    if id(node) not in known:
        inside = above | {id(node)}
        known[id(node)] = 1 + sum(_unfolded(one, known, inside) for one in _parts(node))
    return known[id(node)]


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
