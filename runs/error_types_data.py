"""Texts with errors of several types: how many of each, and where.

    python runs/error_types_data.py output/error-types

Reads `../shared/data` (or $TOKENCREDIT_DATA). For answers (`qa`) and translations (`mqm`) it writes

  <set>-train.jsonl   a rating of each text for each type of error: minus how many errors of it
                      there are, three at most, by the mean of the raters
  <set>-test.jsonl    the same of texts of other questions and other documents
  <set>-marked.jsonl  those of them with errors

and in every row what each rater marked of each type.

Answers are those to the questions of qa_feedback, without the passages; translations those of
mqm from Chinese to English with three raters, without the source. Texts of the two kinds are kept
apart by question and by document.
"""

import csv
import json
import lzma
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from credit_data import DATA, Row, Span, chosen_by_hash, lines, shuffled, write

QA = {
    "irrelevant": ("Irrelevant",),
    "wrong": ("Wrong-Grounding",),
    "unverifiable": ("Unverifiable",),
    "redundant": ("Redundant",),
}
MQM = {
    "mistranslation": ("Accuracy/Mistranslation", "Accuracy/Gender Mismatch"),
    "awkward": ("Style/",),
    "punctuation": ("Fluency/Punctuation",),
    "grammar": ("Fluency/Grammar",),
    "spelling": ("Fluency/Spelling",),
    "terminology": ("Terminology/",),
    "locale": ("Locale convention/",),
}
MOST_WORDS = 60
MOST_HELD = 450
MOST_ERRORS = 3  # of a type that count: few texts have more, and would weigh most
Marks = dict[str, list[Span]]


def type_of(said: str, types: Mapping[str, tuple[str, ...]]) -> str | None:
    """The type that an error of the data counts for, if any."""
    return next((name for name, begun in types.items() if said.startswith(begun)), None)


def answers() -> Iterator[tuple[bool, Row, list[Marks]]]:
    """Whether a question is held out, its first answer, and the marks of its one rater."""
    with lzma.open(DATA / "qa_feedback/dev_feedback.json.xz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    for row in rows:
        text, marks = row["prediction 1"], {name: [] for name in QA}
        for error in row["feedback"]["errors"]:
            name, end = type_of(error["error type"], QA), min(error["end"], len(text))
            if name and error["start"] < end:
                marks[name].append((error["start"], end))
        held = chosen_by_hash(row["question"], 0.4)
        yield held, {"prompt": f"{row['question']}\n", "text": text}, [marks]


def translations() -> Iterator[tuple[bool, Row, list[Marks]]]:
    """Whether a document is held out, a translation from it, and the marks of its three raters."""
    file = lines("mqm/mqm_generalMT2023_zhen.sxs.3ratings.nometa.tsv.xz")
    found: dict[tuple[str, str, str], dict[str, Marks]] = defaultdict(dict)
    texts: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
        if row["severity"] == "HOTW-test":
            continue
        key, target = (row["doc"], row["globalSegId"], row["system"]), row["target"]
        texts[key].add(target.replace("<v>", "").replace("</v>", ""))
        marks = found[key].setdefault(row["rater"], {name: [] for name in MQM})
        start, end = target.find("<v>"), target.find("</v>") - len("<v>")
        if (name := type_of(row["category"], MQM)) and 0 <= start < end:
            marks[name].append((start, end))
    for key, raters in found.items():
        (text, *others) = texts[key]
        if len(raters) == 3 and not others and 5 <= len(text.split()) <= MOST_WORDS:
            yield chosen_by_hash(key[0], 0.3), {"text": text}, list(raters.values())


def ratings(raters: list[Marks], end: int) -> Row:
    """Minus the mean number of errors of each type that end before a character."""
    found = {}
    for name in raters[0]:
        counts = [sum(stop <= end for _, stop in marks[name]) for marks in raters]
        found[name] = -sum(min(count, MOST_ERRORS) for count in counts) / len(raters)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("qa", answers()), ("mqm", translations())):
        sides: dict[bool, list[Row]] = {False: [], True: []}
        for is_held, text, raters in texts:
            row = text | ratings(raters, len(text["text"])) | {"raters": raters}
            sides[is_held].append(row)
        write(folder / f"{name}-train.jsonl", sides[False])
        held = write(folder / f"{name}-test.jsonl", shuffled(sides[True], MOST_HELD))
        marked = (
            row for row in held if any(spans for marks in row["raters"] for spans in marks.values())
        )
        write(folder / f"{name}-marked.jsonl", marked)


if __name__ == "__main__":
    main()
