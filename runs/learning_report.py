"""Keep what a comparison of learning found: its table, figures and curves, under docs/results.

    python runs/learning_report.py toy

Reads `output/learning/<task>` and writes `docs/results/learning/<task>.json`, the figures beside
it, and `docs/results/learning.md` from all tasks that are there.
"""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copyfile
from typing import Any

from tokencredit.recipes.run.run_folder import write_atomically

DOCS = Path("docs/results/learning")
TASKS = {
    "toy": "The built-in task by fourteen methods, judged by its true reward",
    "toy-high-rate": "The same at a learning rate of 0.01",
    "toy-training": "The built-in task by prefix differences of reward models trained in six ways",
    "hh": "HH dialogues, judged by a reward model that no policy saw",
}


def version() -> str:
    """The commit of this folder."""
    described = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def finished(comparison: Path) -> dict[str, Any]:
    """The curves of a comparison by the names of their runs."""
    files = sorted((comparison / "curves").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


RUN = ("method", "seeds", "learning rate", "gae_lambda", "terminal's best at step")
"""Columns of how a method was run; the others are what it reached."""


def markdown(rows: list[dict[str, str]]) -> list[str]:
    """A table, from its rows by the names of its columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def in_parts(rows: list[dict[str, str]], *, names: int = 1, most: int = 5) -> list[str]:
    """A table that is wide as several below each other, each with the names of its lines.

    Args:
        rows: of the table.
        names: how many columns say what a line is of.
        most: other columns of one part.
    """
    columns = list(rows[0])
    first, others = columns[:names], columns[names:]
    parts = [others[at : at + most] for at in range(0, len(others), most)]
    tables = [markdown([{name: row[name] for name in first + part} for row in rows])
              for part in parts]  # fmt: skip
    return [line for table in tables for line in (*table, "")][:-1]


def narrow(rows: list[dict[str, str]], columns: list[str]) -> list[str]:
    """A table of some of the columns, numbers on the right."""
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    cells += [[row[name] for name in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in cells]


def in_two(rows: list[dict[str, str]]) -> list[str]:
    """The table of a comparison as two narrow ones: what was reached, and how."""
    reached = [name for name in rows[0] if name == "method" or name not in RUN]
    how = [name for name in rows[0] if name in RUN]
    words = "How each was run, and when it reached terminal's best:"
    return [*narrow(rows, reached), "", words, "", *narrow(rows, how)]


def keep(task: str, commit: str) -> None:
    source = Path("output/learning") / task
    DOCS.mkdir(parents=True, exist_ok=True)
    found = {
        "commit": commit,
        "table": json.loads((source / "learning.json").read_text()),
        "curves": finished(source),
    }
    write_atomically(DOCS / f"{task}.json", json.dumps(found) + "\n")
    for figure in ("learning", "frontier"):
        copyfile(source / f"{figure}.png", DOCS / f"{task}-{figure}.png")


def section(task: str, title: str) -> list[str]:
    found = json.loads((DOCS / f"{task}.json").read_text())
    return [
        f"## {title}",
        "",
        f"    runs/credit_learning.sh {task}",
        "",
        f"{len(found['curves'])} finished runs, kept at commit {found['commit']}; settings in "
        f"`runs/learning/{task}.yaml` and `runs/learning/{task.split('-')[0]}-ppo.yaml`.",
        "",
        *in_two(found["table"]),
        "",
        f"![Learning curves](learning/{task}-learning.png)",
        "",
        f"![What was reached at which KL](learning/{task}-frontier.png)",
        "",
    ]


def main() -> None:
    tasks = sys.argv[1:]
    commit = version() if tasks else ""  # before the kept files make the tree dirty
    for task in tasks:
        keep(task, commit)
    page = [(Path(__file__).parent / "learning_report.md").read_text()]
    for task, title in TASKS.items():
        if (DOCS / f"{task}.json").exists():
            page += section(task, title)
    write_atomically(DOCS.parent / "learning.md", "\n".join(page).rstrip() + "\n")
    print(DOCS.parent / "learning.md")


if __name__ == "__main__":
    main()
