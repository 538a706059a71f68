"""The page of objectives of reward models, from what is kept of them.

    python runs/objectives_report.py

The numbers in `docs/results/reward-models.json` are those of the runs whose commands stand on the
page, put there with three digits.
"""

import json
from pathlib import Path
from string import Template

from tokencredit.recipes.run.run_folder import write_atomically

PAGE = Path("docs/results/reward-models.md")
Row = dict[str, str | float]


def table(rows: list[Row]) -> str:
    """A table of settings and of numbers between 0 and 1."""
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)]]
    lines += [[shown(value) for value in row.values()] for row in rows]
    head, line, *others = lines
    texts = [f"| {' | '.join(cells)} |" for cells in (head, *others)]
    return "\n".join([texts[0], f"|{'|'.join(line)}|", *texts[1:]])


def shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3f}".removeprefix("0")


def main() -> None:
    kept = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    template = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    page = template.substitute({name: table(rows) for name, rows in kept.items()})
    write_atomically(PAGE, page)
    print(PAGE)


if __name__ == "__main__":
    main()
