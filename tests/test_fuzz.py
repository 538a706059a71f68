"""The law of `runs/fuzz.py` on a few inputs of every surface; its 100,000 are run by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tokencredit.errors import DataError

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def fuzz():
    path = Path(__file__).parents[1] / "runs" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    kept = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = kept
    return module


INPUTS = {"configuration": 5, "texts": 60}


@pytest.mark.parametrize("name", ["data", "spans", "chats", "requests", "texts", "configuration"])
def test_every_input_succeeds_or_is_refused_by_name(fuzz, name, monkeypatch, unchecked):
    monkeypatch.setattr(fuzz, "SECONDS", 60.0)
    tally = fuzz.fuzzed(fuzz.SURFACES[name], inputs=INPUTS.get(name, 100), seed=0)
    assert tally.inputs >= INPUTS.get(name, 100)
    assert 0 < tally.succeeded <= tally.inputs


def test_every_surface_is_tried(fuzz):
    assert sum(surface.share for surface in fuzz.SURFACES.values()) == pytest.approx(1.0)
    assert set(fuzz.SURFACES) >= set(INPUTS)


def test_what_breaks_the_law_is_shown_as_small_as_it_can_be(fuzz):
    def attempt(number: int) -> None:
        if number > 9:
            raise KeyError(number)
        if number > 5:
            raise DataError("too large")

    surface = fuzz.Surface(1.0, lambda draws: draws.below(100), attempt)
    with pytest.raises(KeyError) as caught:
        fuzz.fuzzed(surface, inputs=200, seed=0)
    assert "input: 10" in caught.value.__notes__


def test_what_takes_too_long_breaks_it_too(fuzz):
    def attempt(_: int) -> None:
        while True:
            pass

    surface = fuzz.Surface(1.0, lambda draws: draws.below(2), attempt)
    with pytest.raises(AssertionError, match=r"more than 0\.05 seconds"):
        fuzz.succeeds(surface, 0, seconds=0.05)
