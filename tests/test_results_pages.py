"""Pages of results are what their scripts make of the kept results, word for word."""

import importlib
import json
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
    "imdb_report --curves docs/results/imdb": "imdb.md",
    "credit_agreement_report --results docs/results/credit-agreement": "credit-agreement.md",
    "real_report output/real docs/results": "real-models.md",
    "error_types_report": "error-types.md",
    "raters_report": "raters.md",
    "objectives_report": "reward-models.md",
}


@pytest.fixture
def copied(tmp_path):
    """The kept numbers alone, the page that costs are read from, and what only a model can draw."""
    docs = tmp_path / "docs"
    shutil.copytree(RESULTS, docs / "results", ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(RESULTS / "real" / "imdb-heatmap.png", docs / "results" / "real")
    shutil.copy(PROJECT / "docs" / "performance.md", docs)
    return docs / "results"


@pytest.mark.parametrize("call", PAGES)
def test_the_kept_results_make_the_page_again(call, copied, monkeypatch):
    script, *arguments = call.split()
    monkeypatch.syspath_prepend(str(PROJECT / "runs"))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    monkeypatch.chdir(PROJECT)  # one of them asks for the commit when it is imported
    report = importlib.import_module(script)
    monkeypatch.chdir(copied.parents[1])
    made = copied / PAGES[call]
    made.unlink()
    report.main()
    assert made.read_text() == (RESULTS / PAGES[call]).read_text()
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


def test_the_picture_of_the_readme_is_drawn_from_the_kept_answer(copied, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "runs"))
    readme_picture = importlib.import_module("readme_picture")
    kept = json.loads((copied / "real" / "imdb.json").read_text())
    answer = readme_picture.first_answer(kept)
    terminal, attention, uniform = (
        answer.token_scores[name] for name in ("terminal", "attention", "uniform")
    )
    assert terminal == [0.0] * 24 + [pytest.approx(answer.score, abs=1e-4)]
    assert sum(attention) == pytest.approx(answer.score, abs=1e-4)
    assert uniform == [pytest.approx(answer.score / 25, abs=1e-6)] * 25
    assert [len(paid) for paid in answer.token_scores.values()] == [25] * 4
    written = readme_picture.lines_of(answer.tokens)
    assert [number for line in written for _, _, number in line] == [*range(25)]
    assert max(at + len(text) for line in written for at, text, _ in line) <= 62
    monkeypatch.chdir(copied.parents[1])
    readme_picture.main()
    drawn = Path("real") / readme_picture.PICTURE
    assert (copied / drawn).stat().st_size > 10_000
    assert f"docs/results/{drawn}" in (PROJECT / "README.md").read_text()
    assert (RESULTS / drawn).exists()
