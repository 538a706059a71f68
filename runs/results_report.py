"""Results at a glance: every question with its figures, then its tables, from the kept results.

    python runs/results_report.py

Reads the JSON under `docs/results` and the table of costs in `docs/performance.md`; writes
`docs/results/index.md` and the figures in `docs/results/glance`. The words are in
`runs/results_report.md`. The same kept results give the same page.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from imdb_report import Curve, curves_at
from imdb_study import NEAR_TARGET

from tokencredit.evaluation.comparison_plots import plot_intervals
from tokencredit.evaluation.learning import WINDOW, first_step_at, mean_curve, running_means
from tokencredit.evaluation.plots import plot_frontier
from tokencredit.recipes.run.run_folder import write_atomically

DOCS = Path("docs/results")
WORDS = Path(__file__).with_suffix(".md")
LENGTHS = ((8, 16), (40, 60), (140, 160))
# Name on this page: in the study of IMDb, in the comparisons of learning.
FEW = {
    "terminal": ("terminal", "terminal"),
    "terminal, critic from the scorer": ("terminal+critic", "terminal, critic from scorer"),
    "uniform": ("uniform", "uniform"),
    "attention (ABC)": ("abc", "attention"),
    "prefix differences": ("prefix-difference", "prefix differences"),
}
ON_IMDB = {
    **{title: name for title, (name, _) in FEW.items()},
    "generator's attention (ABC-D)": "abc-d",
    "generator's last attention (ABC-D2)": "abc-d2",
}
# Name on this page, and in the comparisons with people.
CREDITS = {
    "terminal": "terminal",
    "uniform": "uniform",
    "attention, layer 3": "attention, layer 3",
    "prefix differences": "prefix-difference",
    "prefix differences, smoothed": "smoothed-prefix-difference",
    "windows of 3 words": "window",
    "leave one out": "leave-one-out",
    "Shapley": "shapley",
    "gradient x input": "gradient-times-input",
    "integrated gradients": "integrated-gradients",
    "*word length*": "word length",
    "*people, one against others*": "people, one against others",
}
SETS = {
    "sst": "SST",
    "sst-phrases": "SST, model of phrases",
    "dynasent": "DynaSent",
    "toxic": "toxic",
    "mqm": "MQM",
}
SELECTIONS = ("all", "best", "best and random", "best and worst", "best and worst, resampled")
DRAWN = ("one model", "mean", "worst case", "mean less deviation", "true reward")
END = 20


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(name: str) -> Any:
    return json.loads((DOCS / name).read_text())


def spread(shown: str) -> tuple[float, float, float]:
    """Mean, low and high end of `mean ± deviation`; of one number no width."""
    middle, _, width = shown.partition(" ± ")
    return float(middle), float(middle) - float(width or 0), float(middle) + float(width or 0)


def seeds_of(curves: Mapping[str, Curve], row: Mapping[str, str]) -> list[Curve]:
    """The runs of a row of a table of learning: those at its best point."""
    point = f"{row['method']}_lr{row['learning rate']}_lam{row['gae_lambda']}_seed"
    return [curve for name, curve in curves.items() if name.startswith(point)]


def along_kl(seeds: Sequence[Curve], judged: str) -> tuple[list[float], list[float]]:
    """KL and what was reached at it, step by step, as running means of the mean over seeds."""
    kl, reached = (
        running_means(mean_curve([seed[name] for seed in seeds]), WINDOW) for name in ("kl", judged)
    )
    return kl, reached


def imdb(lengths: tuple[int, int]) -> dict[str, list[Curve]]:
    """Finished seeds by method, at the learning rate that keeps the KL near its target."""
    found = curves_at(DOCS / "imdb", lengths, most_kl=NEAR_TARGET, logprobs_of="sampled")
    return {name: seeds for name, (_, seeds) in found.items()}


def at_the_end(seeds: Sequence[Curve], name: str = "held_out_score") -> list[float]:
    return [mean(seed[name][-END:]) for seed in seeds]


def imdb_row(title: str, seeds: Sequence[Curve]) -> tuple[str, str, float, float, float]:
    values = at_the_end(seeds)
    width = stdev(values) if len(values) > 1 else 0.0
    return title, "", mean(values), mean(values) - width, mean(values) + width


def imdb_cell(curves: Mapping[str, list[Curve]], name: str) -> str:
    """The score at the end, and in brackets the share of the steps of terminal reward."""
    if name not in curves:
        return "-"
    scores = {one: mean_curve([seed["score"] for seed in seeds]) for one, seeds in curves.items()}
    level = max(running_means(scores["terminal"], WINDOW))
    own, reached = (first_step_at(scores[one], level) for one in ("terminal", name))
    assert own is not None
    share = "never" if reached is None else f"{reached / own:.2f}"
    return f"{mean(at_the_end(curves[name])):.2f} ({share})"


def learning_table(rows: Sequence[Mapping[str, str]], score: str) -> str:
    head = ["method", "score at the end", "KL at the end", "share of terminal's steps", "seeds"]
    shown = [
        [
            row["method"],
            row[score],
            row["KL, last 20"],
            row["share of terminal's steps"].replace("-", "never"),
            row["seeds"],
        ]
        for row in rows
    ]
    return table(head, shown)


def bars(rows: Sequence[Mapping[str, str]], score: str) -> list[tuple[str, str, Any, Any, Any]]:
    return [(row["method"], "", *spread(row[score])) for row in rows]


def which_credit(folder: Path) -> dict[str, str]:
    toy, hh, real = read("learning/toy.json"), read("learning/hh.json"), read("real/imdb.json")
    inside = {length: imdb(length) for length in LENGTHS}
    plot_intervals(
        bars(toy["table"], "last 20"),
        folder / "credit-toy.png",
        xlabel="true reward at the end (nats), mean and one deviation over 5 seeds",
        title="Built-in task",
    )
    middle = inside[40, 60]
    plot_intervals(
        [imdb_row(title, middle[name]) for title, (name, _) in FEW.items()],
        folder / "credit-imdb.png",
        xlabel="score by a model that no policy saw (nats), mean and one deviation over 3 seeds",
        title="IMDb, 40 to 60 tokens",
    )
    for name, found, judged, title in (
        ("hh", hh, "held_out_score", "HH, small models"),
        ("real", real, "held_out_score", "Film reviews, SmolLM2-135M"),
        ("toy", toy, "true_reward", "Built-in task"),
    ):
        rows = [row for row in found["table"] if row["method"] in [few for _, few in FEW.values()]]
        plot_frontier(
            {row["method"]: along_kl(seeds_of(found["curves"], row), judged) for row in rows},
            folder / f"credit-{name}-kl.png",
            ylabel="true reward (nats)" if name == "toy" else "held-out score (nats)",
            title=title,
        )
    plot_frontier(
        {title: along_kl(middle[name], "held_out_score") for title, (name, _) in FEW.items()},
        folder / "credit-imdb-kl.png",
        ylabel="held-out score (nats)",
        title="IMDb, 40 to 60 tokens",
    )
    head = ["method", *(f"{least}-{most} tokens" for least, most in LENGTHS)]
    counts = [str(len(curves["terminal"])) for curves in inside.values()]
    cells = [
        [title, *(imdb_cell(curves, name) for curves in inside.values())]
        for title, name in ON_IMDB.items()
    ]
    return {
        "toy": learning_table(toy["table"], "last 20"),
        "toy_commit": toy["commit"],
        "imdb": table(head, [*cells, ["*seeds*", *counts]]),
        "hh": learning_table(hh["table"], "held-out, last 20"),
        "hh_commit": hh["commit"],
        "real": learning_table(real["table"], "held-out, last 20"),
    }


def which_training(folder: Path) -> dict[str, str]:
    found = read("learning/toy-training.json")
    plot_intervals(
        bars(found["table"], "last 20"),
        folder / "training.png",
        xlabel="true reward at the end (nats), mean and one deviation over 3 seeds",
        title="Prefix differences of reward models trained in six ways",
    )
    shown = learning_table(found["table"], "last 20")
    return {"training": shown, "training_commit": found["commit"]}


def which_defence(folder: Path) -> dict[str, str]:
    selection, draws = read("honest/selection.json"), read("honest/best-of-n.json")
    curves = selection["curves"]
    plot_frontier(
        {
            name: along_kl([one for run, one in curves.items() if run.startswith(f"{name}_lr")],
                           "true_reward")
            for name in SELECTIONS
        },
        folder / "selection-kl.png",
        ylabel="true reward (nats)",
        title="Which of four responses the policy learns from, no price of KL",
    )  # fmt: skip
    columns = [name for name in draws[0] if name != "chosen by"]
    by_name = {row["chosen by"]: [spread(row[column])[0] for column in columns] for row in draws}
    plot_frontier(
        {name: (by_name["KL is at most"], by_name[name]) for name in DRAWN},
        folder / "best-of-n.png",
        xlabel="bound of the KL (nats), best of 1 to 256",
        ylabel="true reward of the best (nats)",
        title="Best of n, chosen by one or five reward models",
    )
    levels = ["at KL 20", "at KL 40", "highest", "fall after it"]
    chosen = [[row["method"], *(row[level] for level in levels)] for row in selection["table"]]
    few = ["best of 4", "best of 16", "best of 64", "best of 256"]
    drawn = [[row["chosen by"], *(row[one] for one in few)] for row in draws]
    return {
        "selection": table(["learns from", *levels], chosen),
        "selection_commit": selection["commit"],
        "draws": table(["chosen by", *few], drawn),
    }


def where_credit_falls(folder: Path) -> dict[str, str]:
    found = {name: {row["method"]: row for row in read(f"credit-agreement/{name}.json")["rows"]}
             for name in SETS}  # fmt: skip
    for name in ("sst", "sst-phrases"):
        rows = found[name]
        plot_intervals(
            [
                (title.strip("*"), "credit" if title[0] != "*" else "to compare with",
                 *(rows[one][key] for key in ("auroc", "auroc_low", "auroc_high")))
                for title, one in CREDITS.items()
                if one in rows
            ],
            folder / f"agreement-{name}.png",
            xlabel="AUROC against the words that people marked, 95 % interval",
            title=SETS[name],
            reference=0.5,
        )  # fmt: skip
    cells = [
        [title, *(f"{rows[one]['auroc']:.3f}" if one in rows else "-" for rows in found.values())]
        for title, one in CREDITS.items()
    ]
    return {"agreement": table(["method", *SETS.values()], cells)}


def what_it_costs(folder: Path) -> dict[str, str]:
    """The rows of 1024 tokens of the page on speed."""
    text = (DOCS.parent / "performance.md").read_text()
    section = text.split("## What each credit method costs\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" |")][1:]
        for line in section.splitlines()
        if line.startswith("| 1024 |")
    ]
    commit = re.search(r"at commit (\w+)", section)
    assert commit is not None
    one_pass = [row for row in rows if row[1] == "one pass"]
    plot_intervals(
        [(row[0], "", float(row[2]), *map(float, row[3].split(" to "))) for row in one_pass],
        folder / "costs.png",
        xlabel="processor time over that of plain scoring, median and quartiles of 7",
        title="Credit of 1024 tokens in one pass",
        reference=1.0,
    )
    shown = [[row[0], row[1], row[2], row[3], row[5]] for row in rows]
    head = ["method", "needs", "time / plain", "quartiles", "memory / plain"]
    return {"costs": table(head, shown), "costs_commit": commit[1]}


def token_weights(folder: Path) -> dict[str, str]:  # noqa: ARG001
    """What the page of offline losses says first, with its figures, once there is one."""
    page = DOCS / "preferences.md"
    if not page.exists():
        said = "`runs/token_weights.py` makes the comparison; no results are kept yet."
        return {"weights": said, "weights_short": "Not measured yet."}
    figures = [
        f"![DPO with weights, {pairs}](preferences/token-weights-{name}.png)"
        for name, pairs in {"judge": "pairs of a noisy judge", "flipped": "30 % flipped"}.items()
    ]
    said = page.read_text().split("\n\n")[1]
    shown = "\n\n".join([said, *figures, "[Everything on it](preferences.md)."])
    short = "Only if the credit is right: no credit that was learnt here helps within a KL of 10."
    return {"weights": shown, "weights_short": short}


QUESTIONS: tuple[Callable[[Path], dict[str, str]], ...] = (
    which_credit,
    which_training,
    which_defence,
    where_credit_falls,
    what_it_costs,
    token_weights,
)


def page(figures: Path) -> str:
    """The page; its figures are drawn into a folder."""
    figures.mkdir(parents=True, exist_ok=True)
    said: dict[str, str] = {}
    for question in QUESTIONS:
        said |= question(figures)
    return WORDS.read_text().format(**said)


def main() -> None:
    write_atomically(DOCS / "index.md", page(DOCS / "glance"))
    print(DOCS / "index.md")


if __name__ == "__main__":
    main()
