"""Settings that must lie in a range, checked where their dataclass is made."""

from typing import Any

from tokencredit.errors import ConfigError


def require_at_least(settings: Any, least: int, *names: str, room: str = "") -> None:
    """Raise ConfigError if one of these settings, of a group `room.`, is there and smaller."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{room}{name} is {value}; expected at least {least}")


def require_positive(settings: Any, *names: str, room: str = "") -> None:
    """Raise ConfigError if one of these settings, of a group `room.`, is there and not above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{room}{name} is {value}; expected more than 0")


def require_share(settings: Any, *names: str, room: str = "") -> None:
    """Raise ConfigError if one of these settings, of a group `room.`, lies outside [0, 1)."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < 1:
            raise ConfigError(f"{room}{name} is {value}; expected a share in [0, 1)")
