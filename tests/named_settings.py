"""Settings of groups by short names, for tests that change one or two of them."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from tokencredit.recipes.settings import all_settings, moved_settings


def configured(kind: type, /, **settings: Any) -> Any:
    """A configuration from settings by their last name, or that of version 0.1.0.

    What belongs to a group changes that group's own defaults.
    """
    now = {one.name for one in fields(kind)}
    moved = {name.rpartition(".")[2]: name for name, _ in all_settings(kind)} | moved_settings(kind)
    whole, parts = {}, {}
    for name, value in settings.items():
        room, _, inner = (name if name in now or "." in name else moved[name]).partition(".")
        if inner:
            parts.setdefault(room, {})[inner] = value
        elif is_dataclass(get_type_hints(kind)[room]) and not is_dataclass(value):
            parts.setdefault(room, {})[moved[name].partition(".")[2]] = value
        else:
            whole[room] = value
    groups = {one.name: one.default_factory for one in fields(kind) if one.name in parts}
    return kind(**whole, **{room: replace(groups[room](), **parts[room]) for room in parts})
