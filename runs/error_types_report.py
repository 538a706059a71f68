"""Write the page on heads for types of errors from what is kept.

    python runs/error_types_report.py

Reads `docs/results/error-types/*.json`, which `runs/error_types.py` writes, and what is said of
them from `runs/error_types_report.md`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from error_type_probes import LABELS
from error_types import ALL, ATTENTION, BAYES, LESS, OTHERS, OWN, TOKENS
from learning_report import in_parts

from tokencredit.recipes.run.run_folder import write_atomically

RESULTS = Path("docs/results/error-types")
PAGE = Path("docs/results/error-types.md")
SETS = {"mqm": "translations (mqm)", "qa": "answers (qa_feedback)"}
HEADS = (OWN, OTHERS, LESS, ALL)
BESIDE = ("position, late", "position, early", "word length", TOKENS, ATTENTION, BAYES, "random")
MOST = 4  # columns of numbers that fit beside the names of the lines
Found = dict[str, Any]


def markdown(rows: Iterator[dict[str, str]]) -> str:
    """A table of some lines; one that is wide as several, each with the names of the lines."""
    lines = list(rows)
    names = sum(name in ("", "type") for name in lines[0])
    return "\n".join(in_parts(lines, names=names, most=MOST))


def interval(numbers: list[float] | None) -> str:
    """A mean and the ends of its interval."""
    return "-" if numbers is None else f"{numbers[0]:.3f} [{numbers[1]:.3f}, {numbers[2]:.3f}]"


def learnt(found: dict[str, Found]) -> Iterator[dict[str, str]]:
    """A line for each head of each model."""
    for model, one in found.items():
        for name in one["types"]:
            yield {
                "": SETS[model],
                "type": name,
                "training texts with it": str(one["rated"][name]),
                "held-out accuracy": f"{one['metrics'][f'held_out_accuracy/{name}']:.3f}",
            }


def found_words(found: dict[str, Found], people: Found, measure: str) -> Iterator[dict[str, str]]:
    """A line for each type: what finds its words."""
    for model, one in found.items():
        for name, of_type in one["types"].items():
            words = of_type["words"]
            rows = {key: row[measure] for key, row in words["rows"].items()}
            best = max(BESIDE, key=lambda key: rows[key][0])
            yield {
                "": SETS[model],
                "type": name,
                "texts": str(words["texts"]),
                "marked": f"{words['marked']:.3f}",
                OWN: interval(rows[OWN]),
                OTHERS: f"{rows[OTHERS][0]:.3f}",
                LESS: f"{rows[LESS][0]:.3f}",
                ALL: f"{rows[ALL][0]:.3f}",
                "best without a head": f"{rows[best][0]:.3f} {best}",
                "one person": interval(people[model][name]) if measure == "auroc" else "-",
            }


def without_heads(found: dict[str, Found]) -> Iterator[dict[str, str]]:
    """A line for each type: the AUROC of what needs no head of a type."""
    for model, one in found.items():
        for name, of_type in one["types"].items():
            rows = of_type["words"]["rows"]
            yield {"": SETS[model], "type": name} | {
                key: f"{rows[key]['auroc'][0]:.3f}" for key in BESIDE
            }


def leads(found: dict[str, Found], part: str) -> Iterator[dict[str, str]]:
    """A line for each type: how far its own head is ahead, in AUROC."""
    for model, one in found.items():
        for name, of_type in one["types"].items():
            measured = of_type[part]
            lead = measured["lead"]
            yield {
                "": SETS[model],
                "type": name,
                "texts": str(measured["texts"]),
                OWN: interval(measured["rows"][OWN]["auroc"]),
                "ahead of the other heads": interval(lead[OTHERS]),
                "of position, late": interval(lead["position, late"]),
                "of word length": interval(lead["word length"]),
                "of naive Bayes": interval(lead[BAYES]),
            }


def crossed(one: Found) -> Iterator[dict[str, str]]:
    """A line for each head, a column for each type: AUROC, its own in bold."""
    for head in one["types"]:
        line = {"head": head}
        for name, of_type in one["types"].items():
            rows = of_type["words"]["rows"]
            own = head == name
            number = f"{rows[OWN if own else f'head {head}']['auroc'][0]:.3f}"
            line[f"on {name}"] = f"**{number}**" if own else number
        yield line


def counted(found: dict[str, Found], part: str) -> str:
    """In how many types the own head is ahead of the others, as a sentence for each model."""
    said = []
    for model, one in found.items():
        lead = [of_type[part]["lead"][OTHERS] for of_type in one["types"].values()]
        ahead, behind = sum(low > 0 for _, low, _ in lead), sum(high < 0 for *_, high in lead)
        said.append(f"{SETS[model]}: ahead in {ahead}, behind in {behind} of {len(lead)}")
    return "; ".join(said)


def labelled(probes: dict[str, Found]) -> Iterator[dict[str, str]]:
    """A line for each type: what heads on frozen states find, by what they were told."""
    for model, of_labels in probes.items():
        for name in of_labels[LABELS[0]]:
            line = {"": SETS[model], "type": name}
            for said in LABELS:
                row = of_labels[said][name]
                line[said] = interval(row["auroc"])
                line[f"{said}: ahead of the other heads"] = interval(row["lead"])
            yield line


def main() -> None:
    found = {kind: json.loads((RESULTS / f"{kind}.json").read_text()) for kind in SETS}
    probes = {"mqm": json.loads((RESULTS / "mqm-probes.json").read_text())}
    people = json.loads((RESULTS / "people.json").read_text())
    template = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    matrices = (f"### {SETS[model]}\n\n{markdown(crossed(one))}" for model, one in found.items())
    text = template.substitute(
        learnt=markdown(learnt(found)),
        auroc=markdown(found_words(found, people, "auroc")),
        precision=markdown(found_words(found, people, "average_precision")),
        without=markdown(without_heads(found)),
        leads=markdown(leads(found, "words")),
        among=markdown(leads(found, "errors")),
        matrices="\n\n".join(matrices),
        probes=markdown(labelled(probes)),
        counted=counted(found, "words"),
        counted_among=counted(found, "errors"),
        texts=", ".join(f"{one['texts']} {SETS[kind]}" for kind, one in found.items()),
    )
    write_atomically(PAGE, text)
    print(PAGE)


if __name__ == "__main__":
    main()
