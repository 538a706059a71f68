"""Write the page of the experiments on offline losses, with its figures, from what is kept.

    python runs/preference_report.py

Reads `docs/results/preferences/*.json`, which runs/token_weights.py, runs/preference_losses.py,
runs/distillation.py and runs/preference_rounds.py write, and what is said of them from
`runs/preference_report.md`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from learning_report import markdown
from offline_study import KEPT, Row

from tokencredit.evaluation.learning import mean_and_deviation
from tokencredit.evaluation.plots import plot_frontier
from tokencredit.recipes.run_folder import write_atomically

DOCS = KEPT
LEVELS = (5.0, 10.0, 20.0, 40.0)
Grouped = dict[str, dict[int, list[Row]]]


def grouped(rows: Sequence[Row], name: str) -> Grouped:
    """Rows by what a column says and by seed, in the order in which they came."""
    found: Grouped = {}
    for row in rows:
        found.setdefault(row[name], {}).setdefault(row["seed"], []).append(row)
    return found


def at_level(rows: Sequence[Row], level: float) -> float | None:
    """The true reward at a KL, on straight lines between runs; None outside of them."""
    kl, true = zip(*sorted((row["kl"], row["true"]) for row in rows), strict=True)
    return float(np.interp(level, kl, true)) if kl[0] <= level <= kl[-1] else None


def at_equal_kl(methods: Grouped) -> list[dict[str, str]]:
    """A line for each method: its true reward at each KL, its best run, and the range of its KL."""
    lines = []
    for method, seeds in methods.items():
        line = {"": method}
        for level in LEVELS:
            found = [at_level(rows, level) for rows in seeds.values()]
            reached = [value for value in found if value is not None]
            line[f"at KL {level:g}"] = mean_and_deviation(reached) if reached else "-"
        best = [max(row["true"] for row in rows) for rows in seeds.values()]
        kl = [row["kl"] for rows in seeds.values() for row in rows]
        lines.append(
            line
            | {
                "best": mean_and_deviation(best),
                "KL of its runs": f"{min(kl):.0f} to {max(kl):.0f}",
                "seeds": str(len(seeds)),
            }
        )
    return lines


def frontier(methods: Grouped, name: str, title: str) -> str:
    """A figure of true reward over KL, a line through the prices of each method."""
    paths = {}
    for method, seeds in methods.items():
        prices = list(zip(*seeds.values(), strict=False))
        points = sorted(
            (mean(row["kl"] for row in runs), mean(row["true"] for row in runs)) for runs in prices
        )
        paths[method] = tuple(zip(*points, strict=True))
    plot_frontier(paths, DOCS / f"{name}.png", ylabel="true reward (nats)", title=title)
    return f"![{title}](preferences/{name}.png)"


def read(name: str) -> list[Row]:
    path = DOCS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def weights() -> list[str]:
    lines = ["## Weights of tokens", "", "    python runs/token_weights.py", ""]
    for pairs in ("noisy judge", "30 % turned around"):
        methods = grouped(
            [row for row in read("token-weights") if row["pairs"] == pairs], "weights"
        )
        if methods:
            name = f"token-weights-{'flipped' if '%' in pairs else 'judge'}"
            lines += [f"### Pairs: {pairs}", "", *markdown(at_equal_kl(methods)), ""]
            lines += [frontier(methods, name, f"DPO with weights, pairs: {pairs}"), ""]
    return lines


def losses() -> list[str]:
    methods = grouped(read("losses"), "loss")
    compared = {loss: seeds for loss, seeds in methods.items() if len(seeds) > 1}
    return [
        "## Losses",
        "",
        "    python runs/preference_losses.py",
        "",
        *markdown(at_equal_kl(methods)),
        "",
        *([frontier(compared, "losses", "Losses with two seeds"), ""] if compared else []),
    ]


def distilled() -> list[str]:
    methods = grouped(read("distillation"), "method")
    return [
        "## Small students",
        "",
        "    python runs/distillation.py",
        "",
        *markdown(at_equal_kl(methods)),
        "",
        frontier(methods, "distillation", "A student of one layer"),
        "",
    ]


def rounds() -> list[str]:
    rows = read("rounds")
    last = [row for row in rows if row["part"] == "judged" and row["round"] == row["rounds"]]
    own = grouped([row for row in rows if row["part"] == "own"], "method")
    before = own.pop("before")[0][0]
    lines = []
    for method, seeds in own.items():
        line = {"": method, "before": f"{before['true']:.2f} (KL {before['kl']:.0f})"}
        for number in range(1, 5):
            found = [row for some in seeds.values() for row in some if row["round"] == number]
            true = mean_and_deviation([row["true"] for row in found])
            line[f"round {number}"] = f"{true} (KL {mean(row['kl'] for row in found):.0f})"
        lines.append(line)
    methods = grouped(last, "method")
    return [
        "## Rounds",
        "",
        "    python runs/preference_rounds.py",
        "",
        *(
            [
                *markdown(at_equal_kl(methods)),
                "",
                frontier(methods, "rounds", "After the last round"),
                "",
            ]
            if methods
            else []
        ),
        "True reward of a policy that judges itself:",
        "",
        *markdown(lines),
        "",
    ]


def main() -> None:
    page = [(Path(__file__).parent / "preference_report.md").read_text()]
    parts = {
        "token-weights": weights,
        "losses": losses,
        "distillation": distilled,
        "rounds": rounds,
    }
    for name, part in parts.items():
        if read(name):
            page += part()
    write_atomically(DOCS.parent / "preferences.md", "\n".join(page).rstrip() + "\n")
    print(DOCS.parent / "preferences.md")


if __name__ == "__main__":
    main()
