"""Answers to learn preferences from: pairs, lists with scores, single ones with a score.

The shapes are those of `load_pairs` and `load_prompted_responses`, and lists: a prompt with a
column of answers and one of as many numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.preference.cells import (
    Row,
    ended_cell,
    number_cell,
    probability_cell,
    text_cell,
)
from tokencredit.preference.hf_datasets import require_two_answers
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import pair_of_row, row_answer, row_prompt

_WHOLE = DatasetSettings()

LISTS = ("responses", "completions", "answers", "outputs")
"""What a column of lists of answers may be called."""

SCORES = ("scores", "rewards", "ratings")
"""What a column of as many numbers may be called."""

PAIRED_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
"""What two columns of the scores of a pair may be called."""


@dataclass(frozen=True)
class AnswerColumns:
    """Names of the columns of answers."""

    prompt: str | None = None
    """Prompts, texts or lists of chat messages. None takes `prompt` or another usual name; without
    one, the prompt is what both texts of a pair begin with. An empty name is for answers without a
    prompt."""
    chosen: str = "chosen"
    """The preferred responses of pairs."""
    rejected: str = "rejected"
    """The others."""
    chosen_score: str | None = None
    """Scores of preferred responses. None takes `chosen_score` or `score_chosen`, or else the
    column `margin` as the difference of both scores."""
    rejected_score: str | None = None
    """Scores of the others."""
    soft_label: str = "soft_label"
    """Probabilities that the chosen response is the better one, for losses that ask for them."""
    responses: str | None = None
    """Lists of answers; None takes the usual names, or a pair as a list of two."""
    scores: str | None = None
    """Lists of as many scores; None takes the usual names."""
    response: str = "response"
    """Single answers; of a pair where this column is not there, the preferred response."""
    score: str = "score"
    """Their scores."""


@dataclass(frozen=True)
class JudgedAnswers:
    """Answers to a prompt and what was said of them.

    Attributes:
        prompts: of each answer, the same but for pairs that are built of several.
        responses: of a pair the preferred one first.
        ended: which of them ended; the others were cut off.
        scores: of each, more for better ones; None where nobody asked.
        soft_label: probability that the first is better; None where nobody asked.
    """

    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    scores: tuple[float, ...] | None = None
    soft_label: float | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt of the first answer."""
        return self.prompts[0]


def load_answers(
    path_or_id: str | Path,
    *,
    kind: Literal["pairs", "lists", "singles"],
    scored: bool,
    soft_labels: bool = False,
    columns: AnswerColumns | None = None,
    split: str = "train",
    limit: int | None = None,
    dataset: DatasetSettings = _WHOLE,
    left_out: list[LeftOut] | None = None,
) -> list[JudgedAnswers]:
    """Answers of one kind. Columns `ended` tell those that were cut off.

    For pairs these are `chosen_ended` and `rejected_ended`; for lists `ended` holds one truth value
    for all or a list of them.

    Args:
        path_or_id: as in `load_texts`.
        kind: two answers, the first preferred; two or more; or one.
        scored: whether every answer needs a score.
        soft_labels: whether every pair needs a soft label.
        columns: their names.
        split: of a folder or Hub id.
        limit: read only this many first rows; None reads all.
        dataset: as in `load_texts`.
        left_out: as there.

    Raises:
        DataError: as in `load_pairs`; a score or soft label is missing, or no number of its range;
            a list has fewer than two answers, or not as many scores.
        ConfigError: as in `load_pairs`.
    """
    named = columns or AnswerColumns()

    def answers(row: Row) -> JudgedAnswers:
        made = {"pairs": _pair, "lists": _list, "singles": _single}[kind](row, named, scored)
        if soft_labels:
            made = replace(made, soft_label=probability_cell(row, named.soft_label))
        return made

    rows = dataset_rows(path_or_id, split=split, limit=limit, dataset=dataset)
    return list(made_rows(answers, rows, name=path_or_id, left_out=left_out))


def _pair(row: Row, columns: AnswerColumns, scored: bool) -> JudgedAnswers:
    pair = pair_of_row(row, columns.prompt, columns.chosen, columns.rejected, None)
    require_two_answers(row, pair)
    return JudgedAnswers(
        (pair.prompt, pair.prompt),
        (pair.chosen, pair.rejected),
        (ended_cell(row, "chosen_ended"), ended_cell(row, "rejected_ended")),
        _paired_scores(row, columns) if scored else None,
    )


def _paired_scores(row: Row, columns: AnswerColumns) -> tuple[float, float]:
    """Scores of a pair, or its margin and 0."""
    names = (columns.chosen_score, columns.rejected_score)
    if None not in names:
        chosen, rejected = names
        return number_cell(row, str(chosen)), number_cell(row, str(rejected))
    for one, other in PAIRED_SCORES:
        if row.values.get(one) is not None and row.values.get(other) is not None:
            return number_cell(row, one), number_cell(row, other)
    if row.values.get("margin") is not None:
        return number_cell(row, "margin"), 0.0
    raise DataError(
        f"{row.place} has no scores; expected columns 'chosen_score' and 'rejected_score', or "
        "'margin': name them in columns.chosen_score and columns.rejected_score"
    )


def _list(row: Row, columns: AnswerColumns, scored: bool) -> JudgedAnswers:
    name = columns.responses or _there(row, LISTS)
    if name is None:
        if columns.chosen in row.values:
            return _pair(row, columns, scored)
        row.value(LISTS[0])  # is not there, which the error says with the columns that are
    assert name is not None
    texts = row.value(name)
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise DataError(f"{row.place}, column {name!r}: {texts!r:.200}; expected a list of texts")
    if len(texts) < 2 or not all(one.strip() for one in texts):
        raise DataError(
            f"{row.place}, column {name!r}: {len(texts)} answers, "
            f"{sum(not one.strip() for one in texts)} of them empty; expected two or more with "
            "text: drop the row"
        )
    prompt = row_prompt(row, columns.prompt, apart=(name, *LISTS)) or ""
    ended = row.values.get("ended", True)
    flags = ended if isinstance(ended, list) else [ended] * len(texts)
    if len(flags) != len(texts) or not all(isinstance(one, bool) for one in flags):
        raise DataError(
            f"{row.place}, column 'ended': {ended!r:.200}; expected true or false, or one of them "
            "for each answer"
        )
    scores = _list_of_scores(row, columns, len(texts)) if scored else None
    return JudgedAnswers((prompt,) * len(texts), tuple(texts), tuple(flags), scores)


def _list_of_scores(row: Row, columns: AnswerColumns, count: int) -> tuple[float, ...]:
    name = columns.scores or _there(row, SCORES) or SCORES[0]
    values = row.value(name)
    if not isinstance(values, list) or len(values) != count:
        raise DataError(
            f"{row.place}, column {name!r}: {values!r:.200}; expected a list of {count} numbers, "
            "one for each answer"
        )
    cells = [Row(f"{row.place}, answer {at}", {name: one}) for at, one in enumerate(values)]
    return tuple(number_cell(cell, name) for cell in cells)


def _single(row: Row, columns: AnswerColumns, scored: bool) -> JudgedAnswers:
    if columns.chosen in row.values and columns.response not in row.values:
        return _first(_pair(row, columns, scored))
    prompt, text = row_answer(row, columns.prompt or "prompt", columns.response)
    text_cell(Row(row.place, {columns.response: text}), columns.response)
    scores = (number_cell(row, columns.score),) if scored else None
    return JudgedAnswers((prompt,), (text,), (ended_cell(row),), scores)


def _first(pair: JudgedAnswers) -> JudgedAnswers:
    """The preferred answer of a pair alone."""
    scores = None if pair.scores is None else pair.scores[:1]
    return JudgedAnswers(pair.prompts[:1], pair.responses[:1], pair.ended[:1], scores)


def _there(row: Row, names: Sequence[str]) -> str | None:
    """The first of these columns that holds a list."""
    values: dict[str, Any] = dict(row.values)
    return next((name for name in names if isinstance(values.get(name), list)), None)


def multi_level_pairs(pairs: Sequence[JudgedAnswers]) -> list[JudgedAnswers]:
    r"""Pairs, and two more of each: the same answer to two prompts, and two instructions at once.

    The chosen answer is preferred under its own prompt to itself under the prompt of the next pair.
    Two prompts in a row, both well answered, are preferred to the same with one answer rejected.

    Args:
        pairs: of texts; conversations make pairs of the first kind alone.

    Source: Multi-Level Aware Preference Learning, arXiv 2505.12845, from its abstract: which
    prompts they vary and how, and the weights of their two further losses, are not known.

    >>> two = [
    ...     JudgedAnswers((ask,) * 2, (good, "no"), (True, True))
    ...     for ask, good in (("a?", "A"), ("b?", "B"))
    ... ]
    >>> [one.responses for one in multi_level_pairs(two)][1:3]
    [('A', 'A'), ('A\n\nB', 'A\n\nno')]
    """
    made: list[JudgedAnswers] = []
    for at, pair in enumerate(pairs):
        other = pairs[(at + 1) % len(pairs)]
        made.append(pair)
        if other.prompt == pair.prompt:
            continue
        ended = (pair.ended[0],) * 2
        made.append(JudgedAnswers((pair.prompt, other.prompt), (pair.responses[0],) * 2, ended))
        if isinstance(pair.prompt, str) and isinstance(other.prompt, str):
            prompt = f"{pair.prompt.rstrip()}\n\n{other.prompt}"
            first, good, bad = pair.responses[0].rstrip(), *other.responses
            both = (f"{first}\n\n{good}", f"{first}\n\n{bad}")
            made.append(JudgedAnswers((prompt, prompt), both, other.ended))
    return made
