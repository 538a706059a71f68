"""Pages of results are what their scripts make of the kept results, word for word."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "docs" / "results"
PAGES = {
    "results_report": "index.md",
    "learning_report": "learning.md",
    "honest_report": "honest.md",
    "decoding_report": "decoding.md",
    "preference_report": "preferences.md",
    "error_types_report": "error-types.md",
}


@pytest.fixture
def copied(tmp_path):
    """The kept numbers alone, and the page that costs are read from."""
    docs = tmp_path / "docs"
    shutil.copytree(RESULTS, docs / "results", ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(PROJECT / "docs" / "performance.md", docs)
    return docs / "results"


@pytest.mark.parametrize("script", PAGES)
def test_the_kept_results_make_the_page_again(script, copied, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "runs"))
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    monkeypatch.chdir(PROJECT)  # one of them asks for the commit when it is imported
    report = importlib.import_module(script)
    monkeypatch.chdir(copied.parents[1])
    made = copied / PAGES[script]
    made.unlink()
    report.main()
    assert made.read_text() == (RESULTS / PAGES[script]).read_text()
    for drawn in copied.rglob("*.png"):
        assert (RESULTS / drawn.relative_to(copied)).exists()


def test_every_figure_at_a_glance_is_drawn_and_shown():
    shown = re.findall(r"\]\(glance/(.+?\.png)\)", (RESULTS / "index.md").read_text())
    assert sorted(shown) == sorted(file.name for file in (RESULTS / "glance").iterdir())


def test_tables_at_a_glance_are_narrow():
    lines = (RESULTS / "index.md").read_text().splitlines()
    columns = [line.count(" | ") + 1 for line in lines if line.startswith("| ")]
    assert len(columns) > 50
    assert max(columns) <= 6
