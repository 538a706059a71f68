"""Write the page of the experiments on offline losses, with its figures, from what is kept.

    python runs/preference_report.py

Reads `docs/results/preferences/*.json`, which runs/token_weights.py, runs/preference_losses.py,
runs/distillation.py and runs/preference_rounds.py write, and what is said of them from
`runs/preference_report.md`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from learning_report import markdown

from tokencredit.evaluation.learning import mean_and_deviation
from tokencredit.evaluation.plots import plot_frontier
from tokencredit.recipes.run.run_folder import write_atomically

DOCS = Path("docs/results/preferences")
Row = dict[str, Any]
LEVELS, FARTHEST = (5.0, 10.0, 20.0), 60.0
Curve = list[Row]
Grouped = dict[str, dict[Any, dict[int, Curve]]]


def grouped(rows: Sequence[Row], name: str) -> Grouped:
    """Curves by what a column says, by price and by seed, in the order in which they came."""
    found: Grouped = {}
    for row in rows:
        prices = found.setdefault(row[name], {})
        prices.setdefault(row["price"], {})[row["seed"]] = row["points"]
    return found


def best(points: Sequence[Row]) -> Row:
    return max(points, key=lambda point: point["true"])


def of_seeds(prices: dict[Any, dict[int, Curve]]) -> dict[int, list[Curve]]:
    """The curves of each seed at all prices, of seeds that have as many as the first one."""
    seeds: dict[int, list[Curve]] = {}
    for curves in prices.values():
        for seed, curve in curves.items():
            seeds.setdefault(seed, []).append(curve)
    return {seed: curves for seed, curves in seeds.items() if len(curves) == len(prices)}


def within_kl(methods: Grouped) -> list[dict[str, str]]:
    """A line for each method: the best true reward of all its policies within a KL."""
    lines = []
    for method, prices in methods.items():
        seeds = of_seeds(prices)
        policies = [[point for curve in curves for point in curve] for curves in seeds.values()]
        line = {"": method}
        for level in LEVELS:
            near = [[one for one in some if one["kl"] <= level] for some in policies]
            found = [best(some)["true"] for some in near if some]
            line[f"within KL {level:g}"] = mean_and_deviation(found) if found else "-"
        highest = [best(some) for some in policies]
        line["highest"] = mean_and_deviation([point["true"] for point in highest])
        line["KL there"] = f"{mean(point['kl'] for point in highest):.0f}"
        line["runs, seeds"] = f"{len(prices)}, {len(seeds)}"
        lines.append(line)
    return lines


def frontier(methods: Grouped, name: str, title: str) -> str:
    """A figure of the best true reward within a KL, as the mean of seeds."""
    paths = {}
    for method, prices in methods.items():
        seeds = [
            [point for curve in curves for point in curve] for curves in of_seeds(prices).values()
        ]
        nearest = max(min(point["kl"] for point in some) for some in seeds)
        farthest = max(point["kl"] for some in seeds for point in some)
        levels = [level for level in np.geomspace(0.5, FARTHEST, 200) if level >= nearest]
        levels = [level for level in levels if level <= farthest] or [nearest]
        reached = [
            mean(best([one for one in some if one["kl"] <= level])["true"] for some in seeds)
            for level in levels
        ]
        paths[method] = (levels, reached)
    plot_frontier(
        paths,
        DOCS / f"{name}.png",
        xlabel="KL to the start, at most (nats)",
        ylabel="true reward (nats)",
        title=title,
    )
    return f"![{title}](preferences/{name}.png)"


def read(name: str) -> list[Row]:
    path = DOCS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def section(title: str, script: str, rows: Sequence[Row], name: str, by: str) -> list[str]:
    methods = grouped(rows, by)
    return [
        f"## {title}",
        "",
        f"    python runs/{script}.py",
        "",
        *markdown(within_kl(methods)),
        "",
        frontier(methods, name, title),
        "",
    ]


def weights(rows: list[Row]) -> list[str]:
    rate = max(row["rate"] for row in rows)  # a lower one was tried for some of them
    rows = [{**row, "price": row["beta"]} for row in rows if row["rate"] == rate]
    lines = []
    for pairs, name in {"noisy judge": "judge", "30 % turned around": "flipped"}.items():
        some = [row for row in rows if row["pairs"] == pairs]
        if some:
            title = f"Weights of tokens, pairs: {pairs}"
            lines += section(title, "token_weights", some, f"token-weights-{name}", "weights")
    return lines


def losses(rows: list[Row]) -> list[str]:
    runs = Counter(row["loss"] for row in rows)
    compared = [row for row in rows if runs[row["loss"]] > 1]
    others = [row for row in rows if runs[row["loss"]] == 1]
    return [
        *section("Six losses", "preference_losses", compared, "losses", "loss"),
        *(
            ["All others, at the default:", "", *markdown(within_kl(grouped(others, "loss"))), ""]
            if others
            else []
        ),
    ]


def distilled(rows: list[Row]) -> list[str]:
    return section("Small students", "distillation", rows, "distillation", "method")


def rounds(rows: list[Row]) -> list[str]:
    own = [row for row in rows if row["part"] == "own"]
    judged = [row for row in rows if row["part"] == "judged"]
    lines = []
    if judged:
        title = "Own responses in rounds"
        lines += section(title, "preference_rounds", judged, "rounds", "method")
    if own:
        lines += [
            "## Rounds in which a policy judges itself",
            "",
            "    python runs/preference_rounds.py",
            "",
        ]
        table = []
        for method, prices in grouped(own, "method").items():
            (seeds,) = prices.values()
            curves = list(seeds.values())
            line = {"": method, "before": f"{curves[0][0]['true']:.2f}"}
            # a point each ten steps, and one at the end
            for share in (0.25, 0.5, 0.75, 1.0):
                at = [curve[round(share * (len(curve) - 1))] for curve in curves]
                true = mean_and_deviation([point["true"] for point in at])
                line[f"after {share:.0%}"] = f"{true} (KL {mean(p['kl'] for p in at):.0f})"
            table.append(line)
        lines += [*markdown(table), ""]
    return lines


def main() -> None:
    page = [(Path(__file__).parent / "preference_report.md").read_text()]
    parts = {
        "token-weights": weights,
        "losses": losses,
        "distillation": distilled,
        "rounds": rounds,
    }
    for name, part in parts.items():
        if rows := read(name):
            page += part(rows)
    write_atomically(DOCS.parent / "preferences.md", "\n".join(page).rstrip() + "\n")
    print(DOCS.parent / "preferences.md")


if __name__ == "__main__":
    main()
