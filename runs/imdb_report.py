"""The results page of the headline experiment, from the finished curves.

    python runs/imdb_report.py --curves docs/results/imdb --models output/imdb

Writes `docs/results/imdb.md` and the figures beside it. A method is shown at the tuning point with
its best mean score. With `--models` what the page says of the models is kept beside the curves, in
`docs/results/imdb-models.json`; without, it is read from there.
"""

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from imdb_study import (
    FIRST_LAMBDA,
    LAMBDAS,
    LEARNING_RATES,
    METHODS,
    NEAR_TARGET,
    STAGES,
    Run,
    best_points,
    rate_runs,
    stage_runs,
    tuning_runs,
    tuning_scores,
)
from learning_report import in_two, narrow

from tokencredit.evaluation.learning import (
    WINDOW,
    first_step_at,
    mean_and_deviation,
    mean_curve,
    running_means,
)
from tokencredit.evaluation.plots import (
    plot_frontier,
    plot_learning_curves,
    plot_prefix_accuracy,
)
from tokencredit.recipes.run.run_folder import write_atomically

Curve = dict[str, Any]
Point = tuple[float, float]


def curve_of(run: Run, folder: Path) -> Curve | None:
    file = folder / f"{run.name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def averaged(seeds: list[Curve]) -> list[float]:
    return mean_curve([seed["score"] for seed in seeds])


def curves_at(
    folder: Path, lengths: tuple[int, int], *, most_kl: float = math.inf, **settings: Any
) -> dict[str, tuple[Point, list[Curve]]]:
    """Finished seeds of every method, at the best tuning point that has any at these lengths."""
    found = {}
    tuned = tuning_scores(tuning_runs(folder), folder, most_kl=most_kl)
    for method, scores in tuned.items():
        for point in sorted(scores, key=scores.__getitem__, reverse=True):
            runs = [Run(method, *point, seed, lengths, **settings) for seed in range(5)]
            curves = [curve for run in runs if (curve := curve_of(run, folder)) is not None]
            if curves:
                found[method] = (point, curves)
                break
    return found


def table(curves: dict[str, tuple[Point, list[Curve]]]) -> list[str]:
    """Rows of methods: how fast, how far, and what the other reward model says."""
    terminal = averaged(curves["terminal"][1])
    level = max(running_means(terminal, WINDOW))
    terminal_step = first_step_at(terminal, level)
    assert terminal_step is not None
    rows = []
    for method, ((rate, lam), seeds) in curves.items():
        step = first_step_at(averaged(seeds), level)
        last = {
            name: mean_and_deviation([statistics.mean(c[name][-20:]) for c in seeds])
            for name in ("score", "held_out_score", "kl")
        }
        rows.append(
            {
                "method": method,
                "seeds": str(len(seeds)),
                "learning rate": f"{rate:g}",
                "gae_lambda": f"{lam:g}",
                "mean score": mean_and_deviation([statistics.mean(c["score"]) for c in seeds]),
                "last 20 steps": last["score"],
                "held-out model, last 20": last["held_out_score"],
                "KL, last 20": last["kl"],
                "terminal's best at step": "not reached" if step is None else str(step),
                "of terminal's steps": "-" if step is None else f"{step / terminal_step:.2f}",
            }
        )
    return in_two(rows)


def grid_table(folder: Path) -> list[str]:
    """Mean scores of the tuning runs: the learning rates, then three gae_lambda at the best."""
    rates = best_points(rate_runs(), folder)
    head = ["method", *(f"lr {rate:g}, λ {FIRST_LAMBDA:g}" for rate in LEARNING_RATES), "best lr"]
    by_rate, by_lambda = [], []
    for method, scores in tuning_scores(tuning_runs(folder), folder).items():
        better, _ = rates[method]
        shown = {point: f"{score:.2f}" for point, score in scores.items()}
        cells = [method, *(shown.get((rate, FIRST_LAMBDA), "-") for rate in LEARNING_RATES)]
        by_rate.append(dict(zip(head, [*cells, f"{better:g}"], strict=True)))
        others = {f"λ {lam:g}": shown.get((better, lam), "-") for lam in LAMBDAS}
        by_lambda.append({"method": method, **others})
    return [*narrow(by_rate, head), "", "At the best learning rate of each:", "",
            *narrow(by_lambda, list(by_lambda[0]))]  # fmt: skip


def price_figure(folder: Path, docs: Path) -> list[str]:
    """What each method reaches at which KL: one point per learning rate, all at one gae_lambda."""
    paths: dict[str, tuple[list[float], list[float]]] = {}
    lines = ["| method | " + " | ".join(f"lr {rate:g}" for rate in LEARNING_RATES) + " |"]
    lines.append("|---|" + "---:|" * len(LEARNING_RATES))
    for method in METHODS:
        curves = [curve_of(Run(method, rate, FIRST_LAMBDA, 0), folder) for rate in LEARNING_RATES]
        points = [
            curve and tuple(statistics.mean(curve[name][-20:]) for name in ("held_out_score", "kl"))
            for curve in curves
        ]
        cells = ["-" if point is None else "{:.2f} at {:.1f}".format(*point) for point in points]
        lines.append(f"| {method} | {' | '.join(cells)} |")
        reached = [point for point in points if point is not None]
        if reached:
            paths[method] = ([kl for _, kl in reached], [score for score, _ in reached])
    plot_frontier(
        paths,
        docs / "imdb-frontier.png",
        ylabel="held-out score, last 20 steps (nats)",
        title="8-16 new tokens, three learning rates",
    )
    return [*lines, "", "![Held-out score against KL](imdb-frontier.png)"]


def beta_table(folder: Path) -> list[str]:
    """Attention credit by the share of the score that it spreads, at its best point."""
    shares: dict[float, list[Curve]] = {}
    for run in stage_runs("beta", folder):
        for beta in (run.credit_beta, Run.credit_beta):
            curve = curve_of(replace(run, credit_beta=beta), folder)
            if curve is not None and curve not in shares.setdefault(beta, []):
                shares[beta].append(curve)
    lines = ["| credit_beta | seeds | mean score | last 20 steps | held-out model | KL |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for beta, seeds in sorted(shares.items()):
        numbers = [mean_and_deviation([statistics.mean(c["score"]) for c in seeds])]
        for name in ("score", "held_out_score", "kl"):
            numbers.append(mean_and_deviation([statistics.mean(c[name][-20:]) for c in seeds]))
        lines.append(f"| {beta:g} | {len(seeds)} | {' | '.join(numbers)} |")
    return lines


def progress_table(folder: Path) -> list[str]:
    """How much of each stage is done; later stages build on the best points so far."""
    lines = ["| stage | finished | of |", "|---|---:|---:|"]
    for stage in (*STAGES, "beta"):
        runs = stage_runs(stage, folder)
        done = sum(curve_of(run, folder) is not None for run in runs)
        lines.append(f"| {stage} | {done} | {len(runs)} |")
    return lines


def section(
    title: str, curves: dict[str, tuple[Point, list[Curve]]], figure: str, docs: Path
) -> list[str]:
    plot_learning_curves(
        {method: [curve["score"] for curve in seeds] for method, (_, seeds) in curves.items()},
        docs / figure,
        ylabel="score of the guiding reward model (nats)",
        title=title,
        window=WINDOW,
    )
    return [f"## {title}", "", *table(curves), "", f"![{title}]({figure})", ""]


def kept_models(docs: Path, models: Path | None) -> dict[str, Any]:
    """What the page says of the models, as it is shown; kept where the models are here."""
    file = docs / "imdb-models.json"
    if models is None:
        return json.loads(file.read_text())
    accuracy = {
        name: json.loads((models / name / "prefix_accuracy.json").read_text())
        for name in ("reward-model", "held-out-reward-model")
    }
    plot_prefix_accuracy(accuracy, docs / "imdb-prefix-accuracy.png", title="Held-out accuracy")
    language_model = json.loads((models / "language-model" / "metrics.json").read_text())
    found = {
        "perplexity": f"{language_model['held_out_perplexity']:.1f}",
        "million_tokens": f"{language_model['train_tokens'] / 1e6:.2f}",
        "accuracy": {
            name: [f"{point['accuracy']:.3f}" for point in points]
            for name, points in accuracy.items()
        },
    }
    write_atomically(file, json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    docs, folder = arguments.curves.parent, arguments.curves
    finished = len(list(folder.glob("*.json")))
    commits = sorted({json.loads(file.read_text())["commit"] for file in folder.glob("*.json")})
    template = (Path(__file__).parent / "imdb_report.md").read_text()
    near = curves_at(folder, (8, 16), most_kl=NEAR_TARGET, logprobs_of="sampled")
    parts = section("8-16 new tokens, KL near its target", near, "imdb-8-16-target.png", docs)
    for lengths in ((8, 16), (20, 30), (40, 60), (90, 110), (140, 160)):
        for logprobs_of in ("sampled", "unmasked"):
            most_kl = math.inf if lengths == (8, 16) else NEAR_TARGET
            curves = curves_at(folder, lengths, most_kl=most_kl, logprobs_of=logprobs_of)
            if "terminal" in curves:
                kl = "any KL, " if lengths == (8, 16) else ""
                title = f"{lengths[0]}-{lengths[1]} new tokens, {kl}log-probs {logprobs_of}"
                name = f"imdb-{lengths[0]}-{lengths[1]}-{logprobs_of}.png"
                parts += section(title, curves, name, docs)
    models = kept_models(docs, arguments.models)
    rows = [f"| {name} | {' | '.join(of_parts)} |" for name, of_parts in models["accuracy"].items()]
    page = template.format(
        finished=finished,
        commits=", ".join(commits),
        perplexity=models["perplexity"],
        tokens=models["million_tokens"],
        accuracy="\n".join(rows),
        grid="\n".join(grid_table(folder)),
        prices="\n".join(price_figure(folder, docs)),
        betas="\n".join(beta_table(folder)),
        progress="\n".join(progress_table(folder)),
        sections="\n".join(parts),
    )
    write_atomically(docs / "imdb.md", page)
    print(f"{docs / 'imdb.md'}: {finished} curves")


if __name__ == "__main__":
    main()
