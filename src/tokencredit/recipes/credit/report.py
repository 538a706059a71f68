"""What `compare-credit` writes: the table in four forms, figures, heat maps of a few texts."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from tokencredit.evaluation.comparison_plots import plot_fraction_curves, plot_intervals
from tokencredit.evaluation.faithfulness import FRACTIONS
from tokencredit.evaluation.heatmap import heatmap_html
from tokencredit.evaluation.report import ReportFigure, ReportTable, report_html
from tokencredit.evaluation.token_display import full_scale
from tokencredit.preference.marked_texts import MarkedText, marks_of_annotators, words_of
from tokencredit.recipes.credit.agreement import Row
from tokencredit.recipes.credit.compare_settings import CompareCreditConfig
from tokencredit.recipes.credit.words import WordScores
from tokencredit.recipes.run.run_folder import write_atomically

AGREEMENT = {
    "auroc": "AUROC",
    "interval": "95 %",
    "auroc_annotator": "each",
    "average_precision": "AP",
    "token_f1": "F1",
    "span_iou": "IoU",
    "documents": "texts",
}
FAITHFULNESS = {
    "deletion": "deletion",
    "insertion": "insertion",
    "comprehensiveness": "compr.",
    "sufficiency": "suff.",
    "shapley_correlation": "Shapley",
}
AGREEMENT_NOTE = (
    "Means over texts of how well the scores of words find the marked ones. AUROC: the chance that "
    "a marked word scores above one that is not, 0.5 by luck; 95 %: its bootstrap interval over "
    "texts; AP: average precision; F1 and IoU: of as many words as are marked. A word counts as "
    "marked if at least half of the annotators marked it; `each` is the AUROC against one of them "
    "after the other. The row of people is one annotator against half of the others, and in the "
    "column `each` the share of the others against one."
)
FAITHFULNESS_NOTE = (
    "On a sample of texts: words are taken away or put back in the order of their scores, and the "
    "reward model's score, in nats, is read on the side of the prompt's own score where the text "
    "stands. Deletion: mean score as words go, small if faithful. Insertion: as words come, large. "
    "Compr. (comprehensiveness): what is lost without the first words, large. Suff. (sufficiency): "
    "what they lack alone, small. Shapley: correlation per text with sampled Shapley values, drawn "
    "apart from those of the method of that name."
)


@dataclass(frozen=True)
class Comparison:
    """Everything that the report is made from.

    Attributes:
        config: the settings.
        texts: the marked texts.
        credit: name of a credit method to its word scores, in nats.
        rows: the table.
        curves: name of a method to its curves of `deletion` and `insertion`.
        shown: which texts to show word by word.
    """

    config: CompareCreditConfig
    texts: Sequence[MarkedText]
    credit: Mapping[str, WordScores]
    rows: Sequence[Row]
    curves: Mapping[str, Mapping[str, list[float]]]
    shown: Sequence[int]


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Print the table and write it, with its figures and heat maps, into the folder.

    Args:
        folder: of the run.
        comparison: what was found.

    Returns:
        The folder.
    """
    columns, cells = table_cells(comparison.rows)
    console = Console()
    for part, title in ((AGREEMENT, "Agreement with marked words"), (FAITHFULNESS, "Faithfulness")):
        heads = [head for head in columns[1:] if head in part.values()]
        if heads:
            console.print(_rich_table(title, [columns[0], *heads], cells, columns))
    rows = [{key: _none(value) for key, value in row.items()} for row in comparison.rows]
    content = {"summary": _summary(comparison), "rows": rows, "curves": comparison.curves}
    write_atomically(folder / "comparison.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / "comparison.md", markdown_table(columns, cells))
    write_atomically(folder / "comparison.csv", _csv(comparison.rows))
    write_atomically(folder / "comparison.html", _page(folder, comparison, columns, cells))
    console.print(f"report: {folder / 'comparison.html'}", soft_wrap=True, highlight=False)
    return folder


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table; columns in which nobody has a number are left out.

    Args:
        rows: of `agreement_row`, some with the numbers of faithfulness.
    """
    keys = {
        key: head
        for key, head in (AGREEMENT | FAITHFULNESS).items()
        if any(_cell(row, key) != "-" for row in rows)
    }
    ordered = sorted(rows, key=lambda row: -row["auroc"] if isfinite(row["auroc"]) else 1.0)
    cells = [[row["method"], *(_cell(row, key) for key in keys)] for row in ordered]
    return ["method", *keys.values()], cells


def markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The table as Markdown."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (columns, rule, *cells))


def _cell(row: Row, key: str) -> str:
    if key == "interval":
        low, high = row["auroc_low"], row["auroc_high"]
        return "-" if isnan(low) else f"{low:.3f}-{high:.3f}"
    value = row.get(key, float("nan"))
    if isnan(value):
        return "-"
    return str(value) if key == "documents" else f"{value:.3f}"


def _none(value: object) -> object:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and isnan(value) else value


def _csv(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: "" if _none(row.get(key)) is None else row[key] for key in keys} for row in rows
    )
    return file.getvalue()


def _rich_table(
    title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], columns: Sequence[str]
) -> Table:
    # No lines between columns: with them the rows do not fit into 80 columns.
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    at = [columns.index(head) for head in heads]
    for row in cells:
        if any(row[index] != "-" for index in at[1:]):
            table.add_row(*(row[index] for index in at))
    return table


def _summary(comparison: Comparison) -> dict[str, object]:
    config, texts = comparison.config, comparison.texts
    found: dict[str, object] = {
        "reward_model": config.reward_model,
        "marked": config.marked,
        "texts": len(texts),
        "direction": config.direction,
        "faithfulness_documents": min(config.faithfulness_documents, len(texts)),
        "shapley_samples": config.credit.probe.samples,
        "credit_beta": config.credit.beta,
        "smoothing_decay": config.credit.decay,
        "gradient_steps": config.credit.probe.steps,
        "window_width": config.credit.probe.width,
        "seed": config.seed,
    }
    uniform = comparison.credit.get("uniform")
    if config.direction == "label" and uniform:
        # Every share of a score has its sign.
        right = [(sum(row) > 0) == bool(t.label) for row, t in zip(uniform, texts, strict=True)]
        found["label_accuracy"] = sum(right) / len(right)
    return found


def _page(
    folder: Path, comparison: Comparison, columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
    summary = _summary(comparison)
    note = ", ".join(f"{key} {value}" for key, value in summary.items())
    notes = [AGREEMENT_NOTE, *([FAITHFULNESS_NOTE] if comparison.curves else []), note]
    return report_html(
        "Credit against marked words",
        notes=notes,
        tables=[ReportTable("Methods", columns, cells)],
        figures=list(_figures(folder, comparison)),
        heatmaps=[_heatmap(comparison, row) for row in comparison.shown if comparison.credit],
        heatmaps_title="Word by word",
    )


def _figures(folder: Path, comparison: Comparison) -> Iterator[ReportFigure]:
    rows = [
        (row["method"], row["kind"], row["auroc"], row["auroc_low"], row["auroc_high"])
        for row in comparison.rows
    ]
    if any(isfinite(row[2]) for row in rows):
        agreement = plot_intervals(
            rows,
            folder / "agreement.png",
            xlabel="AUROC, mean over texts with 95 % interval",
            title="Agreement with marked words",
            reference=0.5,
        )
        yield ReportFigure("Agreement with marked words", agreement)
    names = [row["method"] for row in comparison.rows if row["kind"] == "credit"] + ["random"]
    curves = {name: comparison.curves[name] for name in names if name in comparison.curves}
    for kind, done in (("deletion", "deleted"), ("insertion", "inserted")) if curves else ():
        path = plot_fraction_curves(
            {name: curve[kind] for name, curve in curves.items()},
            FRACTIONS,
            folder / f"{kind}.png",
            xlabel=f"part of the words {done}, highest first",
            ylabel="score less that of the prompt (nats)",
            title=kind.capitalize(),
            reference="random",
        )
        yield ReportFigure(kind.capitalize(), path)


def _heatmap(comparison: Comparison, row: int) -> Markup:
    """A text once per credit method, and first with the share of people who marked each word."""
    text = comparison.texts[row]
    ends = [end for _, end in words_of(text.response)]
    pieces = [text.response[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    scores = {name: credit[row] for name, credit in comparison.credit.items()}
    full = full_scale(pieces, scores, scale=None)
    marks = marks_of_annotators(text)
    shares = [full * sum(votes) / len(marks) for votes in zip(*marks, strict=True)]
    label = "" if text.label is None else f", label {text.label}"
    return heatmap_html(
        pieces,
        {"marked (full colour: by all)": shares} | scores,
        caption=f"text {row}{label}",
        scale=full,
    )
