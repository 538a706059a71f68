"""Scores of words against the words that people marked: one row of numbers per method.

Marks are taken from each annotator, and from all together: a word counts as marked if at least half
of them marked it. Where there are several, one of them is held against the others, which says how
much agreement there is to have.
"""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import DataError
from tokencredit.evaluation.agreement import token_auroc, token_average_precision
from tokencredit.evaluation.baselines import (
    early_position_scores,
    late_position_scores,
    random_scores,
    weighted_word_scores,
    word_length_scores,
)
from tokencredit.evaluation.bootstrap import mean_interval
from tokencredit.evaluation.spans import as_many_as_marked, span_iou, token_f1
from tokencredit.preference.marked_texts import (
    MarkedText,
    marked_by_half,
    marks_of_annotators,
    words_of,
)
from tokencredit.recipes.credit.compare_settings import MarkDirection
from tokencredit.recipes.credit.words import WordScores

PEOPLE = "people, one against others"
Row = dict[str, Any]


def require_labels(texts: Sequence[MarkedText], direction: MarkDirection) -> None:
    """Raise DataError if the direction is that of the labels and a text has none."""
    if direction == "label" and any(text.label is None for text in texts):
        raise DataError(
            "direction is 'label' and a marked text has no label; expected 0 or 1 for every "
            "text, or another direction: 'low' for spans of errors, 'high' or 'magnitude'"
        )


def directed(
    scores: WordScores, texts: Sequence[MarkedText], direction: MarkDirection
) -> WordScores:
    """Scores turned so that marked words are expected to have high ones.

    Args:
        scores: of the words of each text.
        texts: those texts.
        direction: as in the settings.

    Raises:
        DataError: the direction is that of the labels and a text has none.
    """
    require_labels(texts, direction)
    if direction == "magnitude":
        return [[abs(score) for score in row] for row in scores]
    signs = {"high": 1.0, "low": -1.0}
    return [
        [signs.get(direction, 1.0 if text.label else -1.0) * score for score in row]
        for row, text in zip(scores, texts, strict=True)
    ]


def surface_baselines(texts: Sequence[MarkedText], *, seed: int) -> dict[str, WordScores]:
    """Scores that see only how long words are and where they stand, whatever the direction.

    Args:
        texts: to score.
        seed: of the random one.
    """
    words = words_in(texts)
    return {
        "word length": [word_length_scores(row).tolist() for row in words],
        "position, late": [late_position_scores(row).tolist() for row in words],
        "position, early": [early_position_scores(row).tolist() for row in words],
        "random": [random_scores(row, seed=seed).tolist() for row in words],
    }


def weight_baselines(
    texts: Sequence[MarkedText], weights: Mapping[str, Mapping[str, float]]
) -> dict[str, WordScores]:
    """Weights of words, which have a sign as credit has.

    Args:
        texts: to score.
        weights: name of a lexicon to the weights of its words.
    """
    words = words_in(texts)
    return {
        name: [weighted_word_scores(row, lexicon).tolist() for row in words]
        for name, lexicon in weights.items()
    }


def words_in(texts: Sequence[MarkedText]) -> list[list[str]]:
    """The words of each text."""
    return [[text.response[a:b] for a, b in words_of(text.response)] for text in texts]


def agreement_row(
    name: str,
    kind: str,
    scores: WordScores,
    texts: Sequence[MarkedText],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Row:
    """How well scores find the marked words, in means over documents.

    Args:
        name: of the method.
        kind: "credit" or "baseline".
        scores: of the words of each text, high where a mark is expected.
        texts: those texts.
        seed: of ties and intervals.
        resamples: of the documents, for the intervals.

    Returns:
        `auroc` with its interval, `average_precision`, `token_f1`, `span_iou` against the words
        that half of the annotators marked; `auroc_annotator` against one annotator after the other;
        `documents` with words both marked and not.
    """
    marks = [marks_of_annotators(text) for text in texts]
    row = _numbers(scores, [marked_by_half(votes) for votes in marks], texts, seed=seed)
    low, high = mean_interval(row["auroc"], resamples=resamples, seed=seed)
    each = [_mean(_auroc([scores[i]] * len(votes), votes)) for i, votes in enumerate(marks)]
    several = any(len(votes) > 1 for votes in marks)
    return {
        "method": name,
        "kind": kind,
        "documents": int((~row["auroc"].isnan()).sum()),
        **{key: _mean(values) for key, values in row.items()},
        "auroc_low": low,
        "auroc_high": high,
        "auroc_annotator": _mean(torch.tensor(each)) if several else nan,
    }


def people_row(texts: Sequence[MarkedText], *, seed: int = 0, resamples: int = 1000) -> Row | None:
    """One annotator against the others, each in turn; None where no text has two.

    Args:
        texts: with their marks.
        seed: of ties and intervals.
        resamples: of the documents, for the intervals.

    Returns:
        As `agreement_row`: the marks of one annotator against the words that half of the others
        marked; `auroc_annotator` is the share of the others who marked a word against the marks of
        one, which is what a method is held against in that column.
    """
    found: list[dict[str, float]] = []
    for text in texts:
        marks = marks_of_annotators(text)
        if len(marks) < 2:
            continue
        others = [marks[:one] + marks[one + 1 :] for one in range(len(marks))]
        halves = [marked_by_half(votes) for votes in others]
        shares = [[sum(votes) / len(rest) for votes in zip(*rest, strict=True)] for rest in others]
        own = [[float(mark) for mark in marked] for marked in marks]
        row = {
            key: _mean(values)
            for key, values in _numbers(own, halves, [text] * len(marks), seed=seed).items()
        }
        found.append(row | {"auroc_annotator": _mean(_auroc(shares, marks))})
    if not found:
        return None
    values = {key: torch.tensor([row[key] for row in found]) for key in found[0]}
    low, high = mean_interval(values["auroc"], resamples=resamples, seed=seed)
    return {
        "method": PEOPLE,
        "kind": "people",
        "documents": int((~values["auroc"].isnan()).sum()),
        **{key: _mean(value) for key, value in values.items()},
        "auroc_low": low,
        "auroc_high": high,
    }


def untied(scores: WordScores, texts: Sequence[MarkedText], *, seed: int) -> WordScores:
    """Ranks in which words of equal score stand in random order.

    Args:
        scores: of the words of each text.
        texts: those texts.
        seed: of the order.

    Returns:
        Numbers in the order of the scores, no two of a text the same.
    """
    rows = []
    for row, words in zip(scores, words_in(texts), strict=True):
        _, levels = torch.unique(torch.tensor(row), return_inverse=True)
        rows.append((levels + 0.5 * random_scores(words, seed=seed + 1)).tolist())
    return rows


def padded(
    rows: Sequence[Sequence[float | bool]],
) -> tuple[Float[Tensor, "documents words"], Bool[Tensor, "documents words"]]:
    """Rows of numbers as one tensor with zeros at the end, and True where there is a number."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    values = torch.zeros(mask.shape)
    values[mask] = torch.tensor([float(number) for row in rows for number in row])
    return values, mask


def _numbers(
    scores: WordScores,
    marks: Sequence[Sequence[bool]],
    texts: Sequence[MarkedText],
    *,
    seed: int,
) -> dict[str, Float[Tensor, "documents"]]:
    values, mask = padded(scores)
    labels = padded(marks)[0].bool()
    order, _ = padded(untied(scores, texts, seed=seed))
    named = as_many_as_marked(order, labels, mask)
    return {
        "auroc": token_auroc(values, labels, mask),
        "average_precision": token_average_precision(values, labels, mask),
        "token_f1": token_f1(named, labels, mask),
        "span_iou": span_iou(named, labels, mask),
    }


def _auroc(scores: WordScores, marks: Sequence[Sequence[bool]]) -> Float[Tensor, "documents"]:
    values, mask = padded(scores)
    return token_auroc(values, padded(marks)[0].bool(), mask)


def _mean(values: Float[Tensor, "documents"]) -> float:
    return float(values.nanmean())
