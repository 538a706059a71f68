"""The scripts that make the published results call commands and settings that there are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tokencredit.cli import _parsed, recipe_of
from tokencredit.recipes.policy.compare_learning import CompareLearningConfig, tuning_runs

RUNS = Path(__file__).resolve().parents[1] / "runs"
CALLS = {
    "credit_agreement.sh": "",
    "credit_learning.sh": "toy toy-high-rate toy-training hh",
    "decoding_results.sh": "imdb hh",
    "error_types.sh": "",
    "hh_models.sh": "",
    "honest.sh": "",
    "imdb_headline.sh": "full",
    "raters.sh": "output/quickstart output/raters",
    "real_models.sh": "",
}
"""Arguments with which a script does all it can."""

COMMAND = """#!/bin/sh
# Writes down what it is asked; what others read of its output is there.
for argument; do printf '%s\\0' "$argument"; done >> "$RECORD"
printf '\\001' >> "$RECORD"
output=
while [ $# -gt 0 ]; do [ "$1" = --output ] && output=$2; shift; done
[ -z "$output" ] || { mkdir -p "$output"; echo '{}' > "$output/comparison.json"; }
"""
PYTHON = """#!/bin/sh
# No script runs, but the command that one of them measures does.
[ "$1" != runs/costed.py ] || { shift 3; exec "$@"; }
"""


def commands_of(script: str, folder: Path) -> list[list[str]]:
    """Name and arguments of every command that a script calls, with stand-ins for programs."""
    shutil.copytree(RUNS, folder / "runs")
    (folder / "docs" / "results" / "credit-agreement").mkdir(parents=True)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("tokencredit", COMMAND), ("python", PYTHON)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    record = folder / "record"
    subprocess.run(
        ["bash", f"runs/{script}", *CALLS[script].split()],
        cwd=folder,
        env=os.environ | {"RECORD": str(record), "PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    return [line.split("\0")[:-1] for line in record.read_text().split("\1")[:-1]]


def test_every_script_is_called():
    assert sorted(CALLS) == sorted(path.name for path in RUNS.glob("*.sh"))


@pytest.mark.parametrize("script", CALLS)
def test_commands_of_a_script_parse(script, tmp_path, monkeypatch):
    commands = commands_of(script, tmp_path)
    assert commands
    monkeypatch.chdir(tmp_path)
    known: set[str] = set()
    for name, *arguments in commands:
        # Loops call a command many times: what has no option and no choice that is new is left out.
        words = {f"{name} {word}" for word in arguments if re.fullmatch(r"--[\w.]+|[a-z-]+", word)}
        if words <= known:
            continue
        known |= words
        _, kind = recipe_of(name)
        config = _parsed(name, kind, arguments)
        if isinstance(config, CompareLearningConfig):
            assert tuning_runs(config)  # the settings of train-policy in its files
