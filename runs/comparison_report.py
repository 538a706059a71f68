"""One page over all comparisons of credit: where each method stands, from the kept results.

    python runs/comparison_report.py

Reads what `runs/imdb_report.py`, `runs/learning_report.py` and `runs/credit_agreement_report.py`
work on and writes `docs/results/comparison.md`. Computes nothing anew but steps to a level.
"""

import json
import subprocess
from pathlib import Path
from statistics import mean

from imdb_report import averaged, curves_at
from imdb_study import NEAR_TARGET

from tokencredit.evaluation.learning import WINDOW, first_step_at, running_means
from tokencredit.recipes.run_folder import write_atomically

DOCS = Path("docs/results")
# Name on this page: in the study of IMDb, in the comparisons of learning, in those with people.
METHODS = {
    "terminal": ("terminal", "terminal", "terminal"),
    "terminal, critic from the scorer": (
        "terminal+critic",
        "terminal, critic from scorer",
        None,
    ),
    "uniform": ("uniform", "uniform", "uniform"),
    "attention (ABC)": ("abc", "attention", "attention, layer 3"),
    "generator's attention (ABC-D)": ("abc-d", None, None),
    "generator's last attention (ABC-D2)": ("abc-d2", None, None),
    "prefix differences": ("prefix-difference", "prefix differences", "prefix-difference"),
    "prefix differences, smoothed": (
        None,
        "prefix differences, smoothed",
        "smoothed-prefix-difference",
    ),
    "prefix differences, critic from the scorer": (
        None,
        "prefix differences, critic from scorer",
        None,
    ),
    "prefix differences, half left at the end": (None, "prefix differences, half terminal", None),
    "prefix differences, paid every 5 tokens": (None, "prefix differences, at 5-grams", None),
    "prefix differences, paid at sentences": (None, "prefix differences, at sentences", None),
    "segment rewards, 5 tokens each": (None, "segment rewards, 5-grams", None),
    "macro actions of 5 tokens, terminal": (None, "macro actions, terminal", None),
    "RTO": (None, "RTO", None),
    "RTO, shaping alone": (None, "RTO, shaping alone", None),
    "windows of 3 words": (None, None, "window"),
    "leave one out": (None, None, "leave-one-out"),
    "Shapley": (None, None, "shapley"),
    "gradient x input": (None, None, "gradient-times-input"),
    "integrated gradients": (None, None, "integrated-gradients"),
}
LENGTHS = ((8, 16), (40, 60), (140, 160))
SETS = {
    "sst": "SST",
    "sst-phrases": "SST, model of phrases",
    "dynasent": "DynaSent",
    "toxic": "toxic",
    "mqm": "MQM",
}


def imdb_cells(lengths: tuple[int, int]) -> dict[str, str]:
    """At the KL target: score of the last 20 steps by the held-out model, share of the steps."""
    curves = curves_at(DOCS / "imdb", lengths, most_kl=NEAR_TARGET, logprobs_of="sampled")
    terminal = averaged(curves["terminal"][1])
    level = max(running_means(terminal, WINDOW))
    own = first_step_at(terminal, level)
    assert own is not None
    cells = {}
    for name, (_, seeds) in curves.items():
        reached = first_step_at(averaged(seeds), level)
        score = mean(mean(seed["held_out_score"][-20:]) for seed in seeds)
        share = "never" if reached is None else f"{reached / own:.2f}"
        cells[name] = f"{score:.2f} ({share}) | {len(seeds)}"
    return cells


def learning_cells(task: str) -> dict[str, str]:
    file = DOCS / "learning" / f"{task}.json"
    rows = json.loads(file.read_text())["table"] if file.exists() else []
    score = "last 20" if task.startswith("toy") else "held-out, last 20"
    shares = [row["share of terminal's steps"].replace("-", "never") for row in rows]
    return {
        row["method"]: f"{row[score].split()[0]} ({share}) | {row['seeds']}"
        for row, share in zip(rows, shares, strict=True)
    }


def agreement_cells() -> dict[str, list[str]]:
    tables = [
        {
            row["method"]: f"{row['auroc']:.3f}"
            for row in json.loads((DOCS / "credit-agreement" / f"{name}.json").read_text())["rows"]
        }
        for name in SETS
    ]
    names = {name for table in tables for name in table}
    return {name: [table.get(name, "-") for table in tables] for name in names}


def main() -> None:
    imdb = [imdb_cells(lengths) for lengths in LENGTHS]
    toy, agreement = learning_cells("toy"), agreement_cells()
    hh = learning_cells("hh")
    lines = [
        "| method | built-in task | seeds "
        + "".join(f"| IMDb, {least}-{most} tokens | seeds " for least, most in LENGTHS)
        + ("| HH | seeds " if hh else "")
        + f"| {' | '.join(SETS.values())} |",
        "|---|" + "---:|" * (2 * len(LENGTHS) + (4 if hh else 2) + len(SETS)),
    ]
    for title, (in_imdb, in_learning, in_agreement) in METHODS.items():
        cells = [
            title,
            toy.get(in_learning or "", "- | -"),
            *(cells_of.get(in_imdb or "", "- | -") for cells_of in imdb),
            *([hh.get(in_learning or "", "- | -")] if hh else []),
            *agreement.get(in_agreement or "", ["-"] * len(SETS)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for title in ("word length", "people, one against others"):
        empty = ["- | -"] * (len(LENGTHS) + (2 if hh else 1))
        lines.append("| " + " | ".join([f"*{title}*", *empty, *agreement[title]]) + " |")
    template = (Path(__file__).parent / "comparison_report.md").read_text()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    page = template.format(table="\n".join(lines), commit=commit)
    write_atomically(DOCS / "comparison.md", page)
    print(DOCS / "comparison.md")


if __name__ == "__main__":
    main()
