"""Where the token credit of a head for each type of error falls, beside what is no credit.

    python runs/error_types.py output/error-types docs/results/error-types

Reads what `runs/error_types.sh` trained, and `<set>-marked.jsonl` of `runs/error_types_data.py`. A
JSON file for each model says, for each type of error, how well the words are found that a rater
marked for it: by the prefix differences of its own head, of every other head and of all together,
and by what needs no head. Credit is turned so that it is high where a head sees an error.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from error_types_data import MQM, QA
from jaxtyping import Float
from torch import Tensor

from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.evaluation.agreement import token_auroc, token_average_precision
from tokencredit.evaluation.baselines import naive_bayes_weights
from tokencredit.evaluation.bootstrap import mean_interval
from tokencredit.preference.marked_texts import MarkedText, marked_words, words_of
from tokencredit.recipes.credit.agreement import (
    padded,
    people_row,
    surface_baselines,
    weight_baselines,
)
from tokencredit.recipes.credit.words import WordScores, encoded_words, scores_of_words
from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.texts import loaded_reward_model

SETS = {"mqm": MQM, "qa": QA}
OWN, OTHERS, LESS, ALL = "own head", "other heads, mean", "own head less others", "all heads"
ATTENTION, TOKENS, BAYES = "attention, last layer", "tokens of a word", "naive Bayes"
WHOLE = (LESS, ALL, ATTENTION, TOKENS, "position, early", "random")  # not asked among errors alone
Row = dict[str, Any]
Marks = list[list[bool]]


def credit_of_heads(
    folder: Path, names: Sequence[str], texts: Sequence[MarkedText]
) -> dict[str, WordScores]:
    """The credit of every word by each head, and what attention and how many tokens it has."""
    weights = ",".join(f"{name}=1" for name in names)  # of a sum, which keeps its parts
    model, reading = loaded_reward_model(f"{folder}#{weights}", device="cpu")
    credit: dict[str, WordScores] = {
        name: [[]] * len(texts) for name in (*names, ATTENTION, TOKENS)
    }
    for rows, batch in encoded_words(reading, texts, batch_size=16):
        inputs = batch.encoded.batch
        mask = inputs.response_mask
        scores = score_responses(
            model, inputs, attention_mask=batch.encoded.attention_mask, attention_layer=-1
        )
        found = {ATTENTION: scores.attention, TOKENS: mask.float()}
        for name in names:
            prefixes = scores.objectives[name].scores.prefix_scores
            found[name] = -prefix_difference_credit(
                prefixes, mask
            )  # a rating counts errors below 0
        for name, values in found.items():
            for row, of_text in zip(rows, scores_of_words(values, batch, name=name), strict=True):
                credit[name][row] = of_text
    return credit


def combined(parts: Sequence[tuple[float, WordScores]]) -> WordScores:
    """Weighted sums of the scores of every word, each set of scores in its standard deviations."""
    added = [[0.0] * len(row) for row in parts[0][1]]
    for weight, scores in parts:
        deviation = float(torch.tensor([one for row in scores for one in row]).std())
        added = [
            [old + weight * new / deviation for old, new in zip(sums, row, strict=True)]
            for sums, row in zip(added, scores, strict=True)
        ]
    return added


def candidates(
    name: str,
    credit: Mapping[str, WordScores],
    names: Sequence[str],
    beside: Mapping[str, WordScores],
) -> dict[str, WordScores]:
    """Scores of the words of all texts that may find the marks of one type of error."""
    others = [other for other in names if other != name]
    less = [(-1 / len(others), credit[other]) for other in others]
    return {
        OWN: credit[name],
        **{f"head {other}": credit[other] for other in others},
        LESS: combined([(1.0, credit[name]), *less]),
        ALL: combined([(1.0, credit[one]) for one in names]),
        ATTENTION: credit[ATTENTION],
        TOKENS: credit[TOKENS],
        **beside,
    }


def summary(values: Float[Tensor, "texts"]) -> list[float]:
    """Mean over texts and the ends of its bootstrap interval."""
    return [float(values.nanmean()), *mean_interval(values)]


def measured(
    found: Mapping[str, WordScores], marks: Marks, among: Marks | None, others: Sequence[str]
) -> Row:
    """How well each of some scores finds the marked words, in means over texts.

    Args:
        found: scores of all words, by name.
        marks: the words to find.
        among: words that count; None for all.
        others: names of other heads, of which a mean over heads is taken text by text.
    """
    labels, mask = padded(marks)
    mask = mask if among is None else padded(among)[0].bool()
    auroc, precision = {}, {}
    for name, scores in found.items():
        values, _ = padded(scores)
        auroc[name] = token_auroc(values, labels.bool(), mask)
        precision[name] = token_average_precision(values, labels.bool(), mask)
        precision[name][auroc[name].isnan()] = torch.nan  # the same texts
    for numbers in (auroc, precision):
        numbers[OTHERS] = torch.stack([numbers[f"head {other}"] for other in others]).mean(0)
    there = ~auroc[OWN].isnan()
    share = labels.where(mask, 0).sum(-1) / mask.sum(-1)
    return {
        "texts": int(there.sum()),
        "marked": float(share[there].mean()),
        "rows": {
            name: {"auroc": summary(auroc[name]), "average_precision": summary(precision[name])}
            for name in auroc
        },
        "lead": {name: summary(auroc[OWN] - auroc[name]) for name in auroc if name != OWN},
    }


def beside_heads(
    name: str, texts: Sequence[MarkedText], train: Sequence[Row]
) -> dict[str, WordScores]:
    """What finds words without a reward model; naive Bayes by the labels of whole texts alone."""
    labels = [int(row[name] < 0) for row in train]
    weights = naive_bayes_weights([row["text"] for row in train], labels)
    return surface_baselines(texts, seed=0) | weight_baselines(texts, {BAYES: weights})


def findings(folder: Path, kind: str, names: Sequence[str]) -> Row:
    """The numbers of the model of one set."""
    rows, train = (
        list(read_jsonl(folder / f"{kind}-{part}.jsonl")) for part in ("marked", "train")
    )
    texts = [
        MarkedText(row.get("prompt", ""), row["text"], ((),) * len(row["raters"])) for row in rows
    ]
    credit = credit_of_heads(folder / kind, names, texts)
    marks = marks_of(rows, names)
    errors = [
        [any(of_word) for of_word in zip(*(marks[name][at] for name in names), strict=True)]
        for at in range(len(rows))
    ]
    types = {}
    for name in names:
        others = [other for other in names if other != name]
        found = candidates(name, credit, names, beside_heads(name, texts, train))
        types[name] = {
            "words": measured(found, marks[name], None, others),
            "errors": measured(
                {key: scores for key, scores in found.items() if key not in WHOLE},
                marks[name],
                errors,
                others,
            ),
        }
    metrics = json.loads((folder / kind / "metrics.json").read_text(encoding="utf-8"))
    return {
        "texts": len(rows),
        "words": fmean(len(words_of(text.response)) for text in texts),
        "metrics": metrics,
        "rated": {name: sum(row[name] < 0 for row in train) for name in names},
        "types": types,
    }


def marks_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Marks]:
    """By type, which words of each text any rater marked for it."""
    return {
        name: [
            marked_words(words_of(row["text"]), [s for one in row["raters"] for s in one[name]])
            for row in rows
        ]
        for name in names
    }


def agreement_of_people(folder: Path) -> dict[str, dict[str, list[float] | None]]:
    """For each set and type, how well one rater finds the words of the others."""
    return {
        kind: {
            name: people(list(read_jsonl(folder / f"{kind}-marked.jsonl")), name) for name in types
        }
        for kind, types in SETS.items()
    }


def people(rows: Sequence[Row], name: str) -> list[float] | None:
    """AUROC of the marks of one rater against those of the others; None where there is one."""
    if len(rows[0]["raters"]) < 2:
        return None
    texts = [
        MarkedText("", row["text"], tuple(tuple(map(tuple, one[name])) for one in row["raters"]))
        for row in rows
    ]
    found = people_row(texts)
    assert found is not None
    return [found["auroc"], found["auroc_low"], found["auroc_high"]]


def main() -> None:
    folder, results = map(Path, sys.argv[1:])
    results.mkdir(parents=True, exist_ok=True)
    if not (results / "people.json").is_file():
        said = agreement_of_people(folder)
        write_atomically(results / "people.json", json.dumps(said, indent=1) + "\n")
    for kind, types in SETS.items():
        found = findings(folder, kind, list(types))
        write_atomically(results / f"{kind}.json", json.dumps(found, indent=1) + "\n")
        print(results / f"{kind}.json")


if __name__ == "__main__":
    main()
