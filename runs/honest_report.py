"""Keep what the experiments against overoptimisation found, and write their page.

    python runs/honest_report.py ensembles transforms
    python runs/honest_report.py --restore transforms    # go on with an experiment that was begun

Reads `output/honest/<experiment>` and writes `docs/results/honest/<experiment>.json`, the figures
beside it, and `docs/results/honest.md` from all experiments that are there, and from the tables of
`runs/honest_draws.py`. An experiment that is not complete keeps the runs that are finished;
`--restore` puts them back into `output/honest`, so that `runs/honest.sh` runs what is missing.
"""

import json
import re
import sys
from pathlib import Path
from shutil import copyfile
from statistics import mean, stdev
from typing import Any

import yaml
from learning_report import finished, in_parts, markdown, version

from tokencredit.evaluation.learning import WINDOW, running_means, value_at
from tokencredit.evaluation.plots import plot_frontier
from tokencredit.recipes.policy.learning_report import KL_LEVELS
from tokencredit.recipes.run.run_folder import write_atomically

DOCS = Path("docs/results/honest")
WITHOUT_TABLE = {"objectives"}  # the weights make scores that cannot be compared
EXPERIMENTS = {
    "ensembles": "Five reward models, combined before prefix differences",
    "combinations": "A price of the KL and several reward models",
    "ensembles-terminal": "Five reward models, combined and paid at the end",
    "transforms": "Scores bounded before they are spread",
    "divergences": "Four prices of leaving the reference",
    "selection": "Which of four responses the policy learns from",
    "constraints": "Thresholds of two scores",
    "objectives": "Two rewards, weighed or mixed",
}
TABLES = {
    "best-of-n": "Best of n, without training",
    "reliability": "What selections keep, without training",
    "safety-tests": "How often the safety test errs",
}
MOST = {"best-of-n": 5, "reliability": 7, "safety-tests": 7}  # columns that stand side by side
LAST = 5
Curves = dict[str, dict[str, list[float]]]


def keep(experiment: str) -> None:
    source = Path("output/honest") / experiment
    DOCS.mkdir(parents=True, exist_ok=True)
    complete = source / "at-equal-kl.json"
    table = json.loads(complete.read_text()) if complete.exists() else None
    found = {"commit": version(), "table": table, "curves": finished(source)}
    write_atomically(DOCS / f"{experiment}.json", json.dumps(found) + "\n")
    if table is not None and experiment not in WITHOUT_TABLE:
        copyfile(source / "frontier.png", DOCS / f"{experiment}.png")
        copyfile(source / "held-out-frontier.png", DOCS / f"{experiment}-held-out.png")


def restore(experiment: str) -> None:
    """Put kept curves where a comparison of these settings, begun there, finds them."""
    folder = Path("output/honest") / experiment / "curves"
    if not folder.is_dir():
        raise SystemExit(
            f"there is no {folder}; begin the comparison (runs/honest.sh {experiment}), stop it, "
            "restore, and start it again"
        )
    for name, curve in json.loads((DOCS / f"{experiment}.json").read_text())["curves"].items():
        write_atomically(folder / f"{name}.json", json.dumps(curve) + "\n")


def finished_rows(curves: Curves) -> list[dict[str, str]]:
    """What each run of a comparison that is not complete has reached."""
    rows = []
    for run, curve in sorted(curves.items()):
        true = running_means(curve["true_reward"], WINDOW)
        at = {
            f"at KL {level:g}": value_at(curve["kl"], curve["true_reward"], level)
            for level in KL_LEVELS
        }
        rows.append(
            {
                "run": run.replace("_lr0.0003_lam0.95", "").replace("_", " "),
                **{name: "-" if value is None else f"{value:.2f}" for name, value in at.items()},
                "highest": f"{max(true):.2f}",
                "fall after it": f"{max(true) - true[-1]:.2f}",
                "KL, last 5": f"{end(curve, 'kl'):.1f}",
            }
        )
    return rows


def end(curve: dict[str, list[float]], name: str) -> float:
    """Mean of the last steps."""
    return mean(curve[name][-LAST:])


def distances(curves: Curves) -> list[dict[str, str]]:
    """How far the scores of each run end from their thresholds."""
    settings = yaml.safe_load((Path(__file__).parent / "honest" / "constraints.yaml").read_text())
    wanted = settings["methods"]["mu-PPO"]["constraints.thresholds"]
    rows = []
    for run, curve in curves.items():
        if "score/sentiment" not in curve:
            continue
        row = {"run": run.replace("_lr0.0003_lam0.95", "").replace("_", " ")}
        row |= {
            f"{name} less {level:g}": f"{end(curve, f'score/{name}') - level:+.2f}"
            for name, level in wanted.items()
        }
        rows.append(
            row | {"true": f"{end(curve, 'true_reward'):.2f}", "KL": f"{end(curve, 'kl'):.1f}"}
        )
    return rows


def hypervolume(points: list[tuple[float, float]], origin: tuple[float, float]) -> float:
    """The area between the origin and what one of the points is at least as good as in both."""
    area, best = 0.0, origin[1]
    for x, y in sorted(points, reverse=True):
        if x > origin[0] and y > best:
            area += (x - origin[0]) * (y - best)
            best = y
    return area


def parts(run: str) -> tuple[str, str, str]:
    """The mix of a run of two objectives with its scale, the weight of the first, and the seed."""
    name, weight, tenfold, seed = re.match(
        r"(.*?)(?: (0\.\d))?(, plainness times 10)?_lr.*seed(\d+)$", run
    ).groups()
    return name + (tenfold or ""), weight or "0.5", seed


def volumes(curves: Curves) -> list[dict[str, str]]:
    """Where the runs of each mix end, and the area that they cover from the reference on.

    The area is that of the runs with one seed, and means and deviations are over seeds.
    """
    names = ("score/sentiment", "score/plainness")
    origin = tuple(mean(curve[name][0] for curve in curves.values()) for name in names)
    mixes: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for run, curve in curves.items():
        mix, weight, seed = parts(run)
        point = (end(curve, names[0]), end(curve, names[1]))
        mixes.setdefault(mix, {}).setdefault(seed, {})[weight] = point
    all_points = [points for seeds in mixes.values() for points in seeds.values()]
    weights = sorted({weight for points in all_points for weight in points})
    return [
        {
            "mix": mix,
            "area": shown(
                [hypervolume(list(points.values()), origin) for points in seeds.values()]
            ),
            **{
                weight: place([p[weight] for p in seeds.values() if weight in p])
                for weight in weights
            },
        }
        for mix, seeds in sorted(mixes.items())
    ]


def shown(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def place(points: list[tuple[float, float]]) -> str:
    """The means of two scores over seeds."""
    return ", ".join(f"{mean(values):.2f}" for values in zip(*points, strict=True)) or "-"


MORE: dict[str, tuple[str, Any]] = {
    "divergences": ("All runs, the choice of a price among them:", finished_rows),
    "constraints": ("Where the scores end, less their thresholds:", distances),
    "objectives": (
        "Sentiment and plainness at the end, by the weight of sentiment, and the area that they "
        "cover together, from the scores of the reference on:",
        volumes,
    ),
}


def table(name: str, title: str) -> list[str]:
    rows = json.loads((DOCS / f"{name}.json").read_text())
    command = "    python runs/honest_draws.py output/honest docs/results/honest"
    return [f"## {title}", "", command, "", *in_parts(rows, most=MOST[name]), ""]


def section(experiment: str, title: str) -> list[str]:
    found = json.loads((DOCS / f"{experiment}.json").read_text())
    more: list[str] = []
    if experiment in MORE:
        said, rows_of = MORE[experiment]
        more = [said, "", *markdown(rows_of(found["curves"])), ""]
    return [
        f"## {title}",
        "",
        f"    runs/honest.sh {experiment}",
        "",
        f"{len(found['curves'])} finished runs, kept at commit {found['commit']}; settings in "
        f"`runs/honest/{experiment}.yaml` and the file that it names.",
        "",
        *([] if experiment in WITHOUT_TABLE else [*results(experiment, found), ""]),
        *more,
    ]


def results(experiment: str, found: dict[str, Any]) -> list[str]:
    """The table and figure of a comparison, or its finished runs."""
    if found["table"] is None:
        words = "The comparison is not complete. The runs that are finished, one seed each:"
        return [words, "", *markdown(finished_rows(found["curves"]))]
    true = f"![True reward over KL](honest/{experiment}.png)"
    held_out = f"![Score of the held-out reward model over KL](honest/{experiment}-held-out.png)"
    return [*in_parts(found["table"]), "", true, "", held_out]


def merges() -> list[str]:
    """What merging after training, stopping early and a price of the KL keep, with its figure."""
    rows = json.loads((DOCS / "merging.json").read_text())
    paths: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["by"] not in ("start", "trained"):
            paths.setdefault(row["by"], []).append((row["nll"], row["true"]))
    figure = plot_frontier(
        {name: tuple(zip(*sorted(points), strict=True)) for name, points in paths.items()},
        DOCS / "merging.png",
        xlabel="negative log-likelihood of new reviews (nats per token)",
        ylabel="true reward (nats)",
        title="What was reached at which tax",
    )
    table = [
        {
            "policy": f"{row['by']} {row['setting']}".strip(),
            "true": f"{row['true']:.2f} ± {row['true_error']:.2f}",
            "NLL of new reviews": f"{row['nll']:.3f}",
            "KL": f"{row['kl']:.1f}",
        }
        for row in rows
    ]
    return [
        "## Merging after training",
        "",
        "    python runs/merging.py",
        "",
        *markdown(table),
        "",
        f"![True reward over the tax](honest/{figure.name})",
        "",
    ]


def safety() -> list[str]:
    """What training by a mean of costs or by its upper bound leaves for the safety test."""
    rows = json.loads((DOCS / "safety.json").read_text())
    table = [
        {
            "multiplier by": row["looks_at"],
            "seed": str(row["seed"]),
            "mean cost": f"{row['cost']:.3f} ± {row['cost_error']:.3f}",
            "test on 800 prompts": "passed" if row["safe"] else "no solution",
            "passed of tests on 200": f"{row['passed']:.3f}",
            "true": f"{row['true']:.2f}",
            "KL": f"{row['kl']:.1f}",
        }
        for row in rows
    ]
    lines = ["## Pessimism before the safety test", "", "    python runs/safety.py", ""]
    return [*lines, *markdown(table), ""]


def main() -> None:
    asked = sys.argv[1:]
    if asked[:1] == ["--restore"]:
        for experiment in asked[1:]:
            restore(experiment)
        return
    if unknown := set(asked) - set(EXPERIMENTS):
        raise SystemExit(f"there is no {sorted(unknown)}; expected some of {list(EXPERIMENTS)}")
    for experiment in asked:
        keep(experiment)
    page = [(Path(__file__).parent / "honest_report.md").read_text()]
    for name, title in TABLES.items():
        if (DOCS / f"{name}.json").exists():
            page += table(name, title)
    for experiment, title in EXPERIMENTS.items():
        if (DOCS / f"{experiment}.json").exists():
            page += section(experiment, title)
    for name, part in {"safety": safety, "merging": merges}.items():
        if (DOCS / f"{name}.json").exists():
            page += part()
    write_atomically(DOCS.parent / "honest.md", "\n".join(page).rstrip() + "\n")
    print(DOCS.parent / "honest.md")


if __name__ == "__main__":
    main()
