"""The report of the quickstart: one table, two figures, heat maps, one HTML file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float
from markupsafe import Markup
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tokencredit.evaluation.agreement import pearson_correlation
from tokencredit.evaluation.heatmap import heatmap_html
from tokencredit.evaluation.learning import WINDOW, first_step_at, running_means
from tokencredit.evaluation.plots import plot_credit_by_position, plot_learning_curves
from tokencredit.evaluation.report import ReportFigure, ReportTable, report_html
from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically
from tokencredit.toy.truth import split_words, true_reward


@dataclass(frozen=True)
class CreditOfReviews:
    """Held-out reviews and what each credit, and the two truths, pay their tokens.

    Attributes:
        prompts: openings of the reviews.
        pieces: text of every response token.
        scores: name of a credit or truth to its token scores.
        mask: True on response tokens.
    """

    prompts: list[str]
    pieces: list[list[str]]
    scores: dict[str, Float[Tensor, "batch time"]]
    mask: Bool[Tensor, "batch time"]


COLUMNS = (
    "credit",
    "true, mean",
    "true, end",
    "model, end",
    "KL, end",
    "at step",
    "causal",
    "Shapley",
)
TABLE_NOTE = (
    "True reward, score of the reward model and KL in nats per response; `end` is the mean of the "
    "last 5 steps. `at step`: where the running mean of the true reward first reaches the best one "
    "of the terminal run. `causal` and `Shapley`: mean correlation per review of the credit "
    "with the two true credits of the grammar, on 200 held-out reviews (- where the credit is "
    "constant). One seed of a small task: it shows how the pieces work, not which method is best "
    "on your data."
)
STORY = (
    "Film reviews of a small grammar, whose true reward and true token credit are known. A "
    "language model was trained from scratch, a reward model on noisy pairs at every prefix, then "
    "PPO with four ways to pay tokens from the same reward model."
)


def true_rewards_by_step(run: Path) -> list[float]:
    """Mean true reward of the responses of each step of a run, in nats."""
    by_step: dict[int, list[float]] = {}
    for sample in read_jsonl(run / "samples.jsonl"):
        by_step.setdefault(sample["step"], []).append(true_reward(split_words(sample["response"])))
    return [sum(rewards) / len(rewards) for _, rewards in sorted(by_step.items())]


def credit_rows(runs: Mapping[str, Path], credit: CreditOfReviews) -> list[list[str]]:
    """One row per credit: how it learnt, and where its credit fell."""
    curves = {name: true_rewards_by_step(run) for name, run in runs.items()}
    best = max(running_means(curves["terminal"], WINDOW))
    rows = []
    for name, curve in curves.items():
        metrics = read_jsonl(runs[name] / "metrics.jsonl")
        reached = first_step_at(curve, best)
        agreement = [
            pearson_correlation(credit.scores[name], credit.scores[truth], credit.mask).nanmean()
            for truth in ("truth (causal)", "truth (Shapley)")
        ]
        rows.append(
            [
                name,
                f"{sum(curve) / len(curve):.2f}",
                f"{running_means(curve, WINDOW)[-1]:.2f}",
                f"{running_means([row['score'] for row in metrics], WINDOW)[-1]:.2f}",
                f"{running_means([row['kl'] for row in metrics], WINDOW)[-1]:.1f}",
                "-" if reached is None else str(reached),
                *(  # adding 0 takes the sign off a zero
                    "-" if value.isnan() else f"{round(float(value), 2) + 0.0:.2f}"
                    for value in agreement
                ),
            ]
        )
    return rows


def write_report(
    folder: Path,
    runs: Mapping[str, Path],
    credit: CreditOfReviews,
    settings: str,
    console: Console,
) -> Path:
    """Print the table, draw the figures and put all on one page.

    Args:
        folder: to write into.
        runs: name of a credit to the folder of its PPO run.
        credit: of held-out reviews.
        settings: what was run, in a sentence.
        console: to print the table on.

    Returns:
        The page.
    """
    rows = credit_rows(runs, credit)
    console.print(_rich_table(rows), TABLE_NOTE, sep="\n")
    curves = plot_learning_curves(
        {name: [true_rewards_by_step(run)] for name, run in runs.items()},
        folder / "learning-curves.png",
        ylabel="true reward (nats)",
        title="What the policies write, by the grammar's own reward",
        window=WINDOW,
    )
    positions = plot_credit_by_position(
        {name: value for name, value in credit.scores.items() if name != "truth (Shapley)"},
        credit.mask,
        folder / "credit-by-position.png",
        title="When the credit of a response is paid",
        reference="truth (causal)",
    )
    page = report_html(
        "tokencredit quickstart",
        notes=[STORY, settings],
        tables=[ReportTable("Four credits, one budget", COLUMNS, rows, TABLE_NOTE)],
        figures=[
            ReportFigure("Learning curves", curves, f"Mean of {WINDOW} steps; one seed."),
            ReportFigure("Credit by position", positions, "Mean over held-out reviews."),
        ],
        heatmaps=list(_heatmaps(credit, count=3)),
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _heatmaps(credit: CreditOfReviews, *, count: int) -> Iterable[Markup]:
    for index in range(count):
        mask = credit.mask[index]
        yield heatmap_html(
            credit.pieces[index],
            {name: value[index][mask].tolist() for name, value in credit.scores.items()},
            caption=credit.prompts[index] + " ...",
        )


def _rich_table(rows: list[list[str]]) -> Table:
    table = Table(title="Four credits, one budget", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table
