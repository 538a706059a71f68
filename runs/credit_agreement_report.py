"""The page on agreement with people, from the tables of runs/credit_agreement.sh.

    python runs/credit_agreement_report.py --results docs/results/credit-agreement

Writes `docs/results/credit-agreement.md` and its figures. Sets that are not there yet are left out.
With `--models output/credit` the held-out accuracy of the reward models is kept beside the tables,
and the commit; without, the page says what was kept.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from tokencredit.evaluation.comparison_plots import plot_fraction_curves, plot_intervals
from tokencredit.evaluation.faithfulness import FRACTIONS
from tokencredit.recipes.run.run_folder import write_atomically

Row = dict[str, Any]
SETS = {
    "sst": "SST",
    "sst-phrases": "SST, model of phrases",
    "sst-last": "SST, model of whole texts",
    "dynasent": "DynaSent",
    "dynasent-phrases": "DynaSent, model of phrases",
    "sst-trees": "SST words",
    "sst-trees-phrases": "SST words, model of phrases",
    "cad-imdb": "CAD IMDb",
    "toxic": "toxic",
    "qa": "QA errors",
    "mqm": "MQM errors",
}
MODELS = ("sentiment", "sentiment-last", "phrases", "toxic", "qa", "mqm")
FAITHFULNESS = {
    "deletion": "deletion",
    "insertion": "insertion",
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency",
    "shapley_correlation": "Shapley corr.",
}
KINDS = ("people", "baseline", "credit")
Sets = list[list[str]]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def agreement_table(found: dict[str, dict[str, Row]], key: str, groups: Sets) -> str:
    """Methods by sets, the best credit of a set in bold; kinds together, best mean first.

    Each group of sets is a table of its own, all of them in one order.
    """
    kinds = {name: row["kind"] for rows in found.values() for name, row in rows.items()}
    best = {
        name: max(
            (row[key] for row in found[name].values() if row["kind"] == "credit" and row[key]),
            default=None,
        )
        for name in found
    }

    def order(method: str) -> tuple[int, float]:
        numbers = [rows[method][key] for rows in found.values() if method in rows]
        return KINDS.index(kinds[method]), -statistics.mean(n or 0 for n in numbers)

    tables = []
    for sets in groups:
        rows = []
        for method in sorted(kinds, key=order):
            cells = []
            for name in sets:
                value = found[name].get(method, {}).get(key)
                mark = "**" if value is not None and value == best[name] else ""
                cells.append(f"{mark}{number(value)}{mark}" if value is not None else "-")
            if any(cell != "-" for cell in cells):
                rows.append([method, *cells])
        tables.append(table(["method", *(SETS[name] for name in sets)], rows))
    return "\n\n".join(tables)


def sets_table(found: dict[str, dict[str, Any]], models: dict[str, float]) -> str:
    rows = []
    for name, content in found.items():
        summary, rows_of_set = content["summary"], content["rows"]
        model = Path(summary["reward_model"]).name
        rows.append(
            [
                SETS[name],
                str(summary["texts"]),
                str(next(row["documents"] for row in rows_of_set if row["kind"] == "credit")),
                model,
                number(models.get(model)),
                number(summary.get("label_accuracy")),
                str(summary["faithfulness_documents"]),
            ]
        )
    heads = [
        "set", "texts", "with words marked and not", "reward model", "its held-out accuracy",
        "its accuracy on the labels of the set", "texts asked again",
    ]  # fmt: skip
    return table(heads, rows)


def faithfulness_table(rows: dict[str, Row]) -> str:
    shown = [row for row in rows.values() if row.get("deletion") is not None]
    shown.sort(key=lambda row: row["deletion"])
    cells = [[row["method"], *(number(row[key]) for key in FAITHFULNESS)] for row in shown]
    return table(["method", *FAITHFULNESS.values()], cells)


def findings(found: dict[str, dict[str, Row]]) -> list[str]:
    """What the tables say, counted."""
    lines = []
    for name, rows in found.items():
        credit = {m: r["auroc"] for m, r in rows.items() if r["kind"] == "credit"}
        baselines = {
            m: r["auroc"] for m, r in rows.items() if r["kind"] == "baseline" and m != "random"
        }
        best, strongest = max(credit, key=credit.__getitem__), max(
            baselines, key=baselines.__getitem__
        )  # fmt: skip
        above = sum(value > baselines[strongest] for value in credit.values())
        lines.append(
            f"- *{SETS[name]}*: the best credit is {best} ({credit[best]:.3f}), the best baseline "
            f"{strongest} ({baselines[strongest]:.3f}); {above} of {len(credit)} rows of credit "
            "are above it."
        )
    return lines


def figures(found: dict[str, Any], docs: Path) -> list[str]:
    lines = []
    for name in found:
        rows = [
            (row["method"], row["kind"], row["auroc"], row["auroc_low"], row["auroc_high"])
            for row in found[name]["rows"]
        ]
        if name in ("sst", "sst-phrases", "dynasent", "mqm"):
            file, title = f"credit-agreement-{name}.png", f"Agreement with people: {SETS[name]}"
            plot_intervals(rows, docs / file, xlabel="AUROC, 95 % interval", title=title,
                           reference=0.5)  # fmt: skip
            lines += [f"![{title}]({file})", ""]
    if "sst" in found:
        curves = found["sst"]["curves"]
        names = ["terminal", "uniform", "attention, layer -1", "attention, layer 3",
                 "prefix-difference", "gradient-times-input", "integrated-gradients",
                 "leave-one-out", "shapley", "word length", "random"]  # fmt: skip
        title = "Deletion: SST"
        plot_fraction_curves(
            {name: curves[name]["deletion"] for name in names if name in curves},
            FRACTIONS,
            docs / "credit-agreement-deletion.png",
            xlabel="part of the words deleted, highest first",
            ylabel="score less that of the prompt (nats)",
            title=title,
            reference="random",
        )
        lines += [f"![{title}](credit-agreement-deletion.png)", ""]
    return lines


def width_table(results: Path) -> str:
    """Agreement of windows of other widths with the marks of SST."""
    rows = []
    for width in (1, 2, 3, 4, 5):
        file = results / ("sst-phrases.json" if width == 3 else f"sst-phrases-{width}.json")
        if file.exists():
            found = {row["method"]: row for row in json.loads(file.read_text())["rows"]}["window"]
            keys = ("auroc", "auroc_annotator", "average_precision", "token_f1")
            rows.append([str(width), *(number(found[key]) for key in keys)])
    heads = ["words at most", "AUROC", "against one annotator after the other", "AP", "F1"]
    return table(heads, rows)


def kept_models(results: Path, models: Path | None) -> tuple[dict[str, float], str]:
    """Held-out accuracies of the reward models, and the commit; kept where the models are here."""
    path = results / "models.json"
    known = json.loads(path.read_text()) if path.exists() else {"commit": "unknown"}
    for name in MODELS if models else ():
        metrics = models / name / "metrics.json"
        if metrics.exists():
            known[name] = round(json.loads(metrics.read_text())["held_out_accuracy"], 4)
    if models:
        described = ["git", "describe", "--always", "--dirty"]
        found = subprocess.run(described, capture_output=True, text=True, check=True)
        known["commit"] = found.stdout.strip()
        write_atomically(path, json.dumps(known, indent=1) + "\n")
    return known, known.pop("commit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    accuracies, commit = kept_models(arguments.results, arguments.models)
    files = {name: arguments.results / f"{name}.json" for name in SETS}
    contents = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    found = {
        name: {row["method"]: row for row in content["rows"]} for name, content in contents.items()
    }
    groups = [
        [name for name in found if name.startswith("sst")],
        [name for name in found if not name.startswith("sst")],
    ]
    several = [
        name for name, rows in found.items() if any(r["auroc_annotator"] for r in rows.values())
    ]
    faithfulness = [
        part
        for name in found
        if any(row.get("deletion") is not None for row in found[name].values())
        for part in (f"### {SETS[name]}", "", faithfulness_table(found[name]), "")
    ]
    page = (Path(__file__).parent / "credit_agreement_report.md").read_text().format(
        sets=sets_table(contents, accuracies),
        auroc=agreement_table(found, "auroc", groups),
        annotator=agreement_table({name: found[name] for name in several}, "auroc_annotator",
                                  [several]),
        average_precision=agreement_table(found, "average_precision", groups),
        token_f1=agreement_table(found, "token_f1", groups),
        findings="\n".join(findings(found)),
        widths=width_table(arguments.results),
        figures="\n".join(figures(contents, arguments.results.parent)),
        faithfulness="\n".join(faithfulness),
        commit=commit,
        missing=", ".join(SETS[name] for name in SETS if name not in found) or "none",
    )  # fmt: skip
    write_atomically(arguments.results.parent / "credit-agreement.md", page)
    print(f"{arguments.results.parent / 'credit-agreement.md'}: {len(found)} sets")


if __name__ == "__main__":
    main()
