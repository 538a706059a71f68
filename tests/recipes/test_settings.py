"""Settings in groups: found by their names, built from them, and known by those they had before."""

from dataclasses import dataclass, field

import pytest

from tokencredit.errors import ConfigError
from tokencredit.recipes.settings import (
    flat_settings,
    free_settings,
    group,
    moved_settings,
    setting,
    setting_meant_by,
    settings_from,
)


@dataclass(frozen=True)
class Speed:
    rate: float = setting(0.1, was="learning_rate")
    """How fast."""
    shown: bool = setting(True, free=True)
    """Whether it is shown."""


@dataclass(frozen=True)
class Place:
    folder: str = "here"
    """Where."""


@dataclass(frozen=True)
class Settings:
    name: str
    """Who."""
    steps: int = setting(3, free=True)
    """How often."""
    extra: dict[str, int] = field(default_factory=dict)
    """A setting that is a mapping itself."""
    speed: Speed = group(Speed)
    """How fast."""
    place: Place = group(Place, free=True)
    """Where."""


def test_values_come_by_dots_or_in_mappings_per_group():
    dotted = settings_from(Settings, {"name": "a", "speed.rate": 0.5, "extra": {"b": 1}})
    nested = settings_from(Settings, {"name": "a", "speed": {"rate": 0.5}, "extra": {"b": 1}})
    assert dotted == nested == Settings("a", extra={"b": 1}, speed=Speed(0.5))


def test_a_mapping_that_is_no_group_stays_whole():
    values = {"extra": {"b": 1}, "speed": {"rate": 1.0}, "place.folder": "x"}
    flat = {"extra": {"b": 1}, "speed.rate": 1.0, "place.folder": "x"}
    assert flat_settings(Settings, values) == flat


def test_free_settings_are_whole_groups_and_single_ones():
    assert set(free_settings(Settings)) == {"place", "steps", "speed.shown"}


def test_names_of_the_flat_layout_lead_to_the_new_ones():
    moved = moved_settings(Settings)
    assert moved["learning_rate"] == moved["speed_rate"] == moved["rate"] == "speed.rate"
    assert "steps" not in moved


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rate", "'learning_rate' is now 'speed.rate'"),
        ("speed.rte", "Did you mean 'speed.rate'?"),
        ("foldr", "Did you mean 'place.folder'?"),
        ("nothing_like_it", ""),
        ("steps", ""),
    ],
)
def test_what_a_word_was_meant_to_be(word, meant):
    found = setting_meant_by(Settings, word)
    assert found.endswith(meant)
    assert bool(found) == bool(meant)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1.0}, r"no setting 'learning_rate'.*now 'speed\.rate'"),
        ({"speed": 1.0}, r"no setting 'speed'"),
        ({"steps": 1}, "name"),
    ],
)
def test_settings_that_there_are_not(values, message):
    with pytest.raises(ConfigError, match=message):
        settings_from(Settings, values)
