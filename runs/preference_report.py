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

from learning_report import markdown
from offline_study import KEPT, Row

from tokencredit.evaluation.learning import mean_and_deviation, value_at
from tokencredit.evaluation.plots import plot_frontier
from tokencredit.recipes.run_folder import write_atomically

DOCS = KEPT
LEVELS = (2.0, 5.0, 10.0, 20.0)
Curve = list[Row]
Grouped = dict[str, dict[float, dict[int, Curve]]]


def grouped(rows: Sequence[Row], name: str) -> Grouped:
    """Curves by what a column says, by price and by seed, in the order in which they came."""
    found: Grouped = {}
    for row in rows:
        prices = found.setdefault(row[name], {})
        prices.setdefault(row["price"], {})[row["seed"]] = row["points"]
    return found


def at_level(curve: Curve, level: float) -> float | None:
    """The true reward where the KL first reaches a level; None if it never does, or at once."""
    if curve[0]["kl"] > level:
        return None
    return value_at(
        [point["kl"] for point in curve], [point["true"] for point in curve], level, window=1
    )


def highest(curve: Curve) -> Row:
    return max(curve, key=lambda point: point["true"])


def of_seeds(prices: dict[float, dict[int, Curve]]) -> dict[int, list[Curve]]:
    """The curves of each seed at all prices, of seeds that have as many as the first one."""
    seeds: dict[int, list[Curve]] = {}
    for curves in prices.values():
        for seed, curve in curves.items():
            seeds.setdefault(seed, []).append(curve)
    return {seed: curves for seed, curves in seeds.items() if len(curves) == len(prices)}


def at_equal_kl(methods: Grouped) -> list[dict[str, str]]:
    """A line for each method: what it reaches at each KL and at most, at the best of its prices."""
    lines = []
    for method, prices in methods.items():
        seeds = of_seeds(prices)
        line = {"": method}
        for level in LEVELS:
            found = [
                [value for curve in curves if (value := at_level(curve, level)) is not None]
                for curves in seeds.values()
            ]
            reached = [max(values) for values in found if values]
            line[f"at KL {level:g}"] = mean_and_deviation(reached) if reached else "-"
        best = [
            max((highest(curve) for curve in curves), key=lambda point: point["true"])
            for curves in seeds.values()
        ]
        line["highest"] = mean_and_deviation([point["true"] for point in best])
        line["KL there"] = f"{mean(point['kl'] for point in best):.0f}"
        line["prices, seeds"] = f"{len(prices)}, {len(seeds)}"
        lines.append(line)
    return lines


def frontier(methods: Grouped, name: str, title: str) -> str:
    """A figure of true reward over KL along training, at the price that reaches most."""
    paths = {}
    for method, prices in methods.items():
        seeds = max(
            prices.values(),
            key=lambda curves: mean(highest(curve)["true"] for curve in curves.values()),
        )
        steps = list(zip(*seeds.values(), strict=False))
        paths[method] = (
            [mean(point["kl"] for point in points) for points in steps],
            [mean(point["true"] for point in points) for points in steps],
        )
    plot_frontier(paths, DOCS / f"{name}.png", ylabel="true reward (nats)", title=title)
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
        *markdown(at_equal_kl(methods)),
        "",
        frontier(methods, name, title),
        "",
    ]


def weights(rows: list[Row]) -> list[str]:
    rows = [{**row, "price": row["beta"]} for row in rows]
    lines = []
    for pairs, name in {"noisy judge": "judge", "30 % turned around": "flipped"}.items():
        some = [row for row in rows if row["pairs"] == pairs]
        if some:
            title = f"Weights of tokens, pairs: {pairs}"
            lines += section(title, "token_weights", some, f"token-weights-{name}", "weights")
    return lines


def losses(rows: list[Row]) -> list[str]:
    several = {row["loss"] for row in rows if row["seed"] > 0}
    compared = [row for row in rows if row["loss"] in several]
    others = [row for row in rows if row["loss"] not in several]
    return [
        *section("Six losses", "preference_losses", compared, "losses", "loss"),
        "All others, one seed:",
        "",
        *markdown(at_equal_kl(grouped(others, "loss"))),
        "",
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
