"""How well credit agrees with marked words and with its model: `tokencredit compare-credit`.

    tokencredit compare-credit --reward_model my/reward --marked marked.jsonl --output comparison

One row per credit method and baseline. What is scored once is kept in the run folder, so that a
second call with more methods scores the new ones alone. The columns on agreement cost one forward
pass per text for most methods, one per word for `leave-one-out`; those on faithfulness cost some
hundred per text, hence their sample.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import TokenScorer
from tokencredit.errors import DataError
from tokencredit.evaluation.baselines import lexicon_weights, naive_bayes_weights
from tokencredit.preference.cells import Row as DataRow
from tokencredit.preference.cells import label_cell, text_cell
from tokencredit.preference.hf_marked_texts import load_marked_texts
from tokencredit.preference.hf_rows import LeftOut, dataset_rows, made_rows
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.credit.agreement import (
    Row,
    agreement_row,
    directed,
    people_row,
    require_labels,
    surface_baselines,
    weight_baselines,
)
from tokencredit.recipes.credit.compare_settings import CompareCreditConfig, MarkDirection
from tokencredit.recipes.credit.faithfulness import AskedTexts, asked_texts, faithfulness_numbers
from tokencredit.recipes.credit.passes import Pass, other_passes, reward_model_passes
from tokencredit.recipes.credit.report import Comparison, write_comparison
from tokencredit.recipes.credit.words import WordScores, as_scorer, encoded_words, scores_of_words
from tokencredit.recipes.run.left_out import encodable, tell_left_out
from tokencredit.recipes.run.run_folder import (
    open_run_folder,
    require_same_run,
    write_atomically,
)
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import free_settings
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.hf_reading import Reading

Weights = Mapping[str, Mapping[str, float]]
_FREE_SETTINGS = free_settings(CompareCreditConfig)


def compare_credit(config: CompareCreditConfig) -> Path:
    """Score the words of marked texts by every method, compare, and write a report.

    Args:
        config: the settings.

    Returns:
        The run folder: `comparison.json`, `.csv`, `.md` and `.html`, the figures, and `scores/`.

    Raises:
        DataError: the marked texts, the texts for the baseline or a lexicon cannot be used, or one
            of the texts cannot where that is an error.
        ModelError: a model or its tokenizer is not there or lacks what a method needs.
        NumericError: a score is NaN or infinite.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    left_out = config.dataset.collecting()
    texts = load_marked_texts(
        config.marked,
        split=config.split,
        limit=config.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    texts = encodable(partial(_with_labels, config), texts, left_out)
    weights = _weights(config, left_out)
    require_same_run(config.output, config, free=_FREE_SETTINGS)
    model, reading = loaded_reward_model(
        config.reward_model, config.reading, device=config.device, **vars(config.loading)
    )
    passes = [
        *reward_model_passes(config, model, reading),
        *other_passes(config, model, reading),
    ]
    asking = Pass((), lambda _: {}, model, reading)
    readers = list({id(one.reading): one for one in [*passes, asking]}.values())
    texts = encodable(partial(_read_by_all, config, readers), texts, left_out)
    example = (texts[0].prompt, texts[0].response) if config.show_example else None
    print_reading("reward model", reading, example=example)
    folder = open_run_folder(config.output, config, free=_FREE_SETTINGS)
    tell_left_out(left_out, folder / "skipped.jsonl")
    credit: dict[str, WordScores] = {}
    with _progress(config) as progress:
        for scored in passes:
            credit |= _kept_scores(scored, texts, config, folder / "scores", progress)
        sample = _sample(texts, config)
        asked = _asked(asking, [texts[row] for row in sample], config, progress)
        rows, curves = _rows(credit, texts, weights, config, sample, asked, progress)
    shown = _sample(texts, config, count=config.heatmaps)
    comparison = Comparison(config, texts, credit, rows, curves, shown)
    return write_comparison(folder, comparison)


def _with_labels(config: CompareCreditConfig, texts: list[MarkedText]) -> list[MarkedText]:
    """The texts, if they have the labels that the direction asks for."""
    require_labels(texts, config.direction)
    return texts


def _read_by_all(
    config: CompareCreditConfig, readers: Sequence[Pass], texts: list[MarkedText]
) -> list[MarkedText]:
    """The texts, if every model can read them: all methods are compared on the same ones."""
    for one in readers:
        for _ in one.batches(texts, config):
            pass
    return texts


def compared(
    scorers: Mapping[str, TokenScorer],
    texts: Sequence[MarkedText],
    tokenizer: PreTrainedTokenizerBase,
    *,
    direction: MarkDirection = "label",
    weights: Weights | None = None,
    batch_size: int = 16,
    reading: Reading | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Row]:
    """Agreement of token scorers of one's own with marked words, beside the baselines.

    Args:
        scorers: name of a method to what scores batches of responses.
        texts: with the words that people marked.
        tokenizer: of the ids that the scorers are given.
        direction: what marked words are expected to score, as in the settings.
        weights: name of a lexicon to the weights of its words; more baselines.
        batch_size: texts per call of a scorer, those of like length together.
        reading: how prompts and responses are joined; None reads conversations where the tokenizer
            has a chat template, and does not close texts.
        seed: of the random baseline, of ties and of intervals.
        resamples: of the documents, for the intervals.

    Returns:
        One row of `agreement_row` per scorer and baseline, and that of `people_row`.

    Raises:
        DataError: a text cannot be encoded, or lacks the label that the direction asks for.
        NumericError, ShapeError: a scorer does not give one finite score per response token.
    """
    credit: dict[str, WordScores] = {name: [[]] * len(texts) for name in scorers}
    for rows, batch in encoded_words(
        reading or written_by(tokenizer), texts, batch_size=batch_size
    ):
        for name, scorer in scorers.items():
            scores = as_scorer(name, scorer)(batch)[name]
            for row, words in zip(rows, scores_of_words(scores, batch, name=name), strict=True):
                credit[name][row] = words
    candidates = _candidates(credit, texts, weights or {}, direction=direction, seed=seed)
    found = [
        agreement_row(name, kind, scores, texts, seed=seed, resamples=resamples)
        for name, kind, scores in candidates
    ]
    people = people_row(texts, seed=seed, resamples=resamples)
    return [*found, people] if people else found


def _candidates(
    credit: Mapping[str, WordScores],
    texts: Sequence[MarkedText],
    weights: Weights,
    *,
    direction: MarkDirection,
    seed: int,
) -> list[tuple[str, str, WordScores]]:
    """Name, kind and scores of every method, marked words expected to score high."""
    signed = {name: ("credit", scores) for name, scores in credit.items()}
    signed |= {name: ("baseline", s) for name, s in weight_baselines(texts, weights).items()}
    found = [
        (name, kind, directed(scores, texts, direction)) for name, (kind, scores) in signed.items()
    ]
    surface = surface_baselines(texts, seed=seed)
    return found + [(name, "baseline", scores) for name, scores in surface.items()]


def _rows(
    credit: Mapping[str, WordScores],
    texts: Sequence[MarkedText],
    weights: Weights,
    config: CompareCreditConfig,
    sample: list[int],
    asked: list[AskedTexts],
    progress: Progress,
) -> tuple[list[Row], dict[str, dict[str, list[float]]]]:
    """The table, and the curves of deletion and insertion by method."""
    candidates = _candidates(credit, texts, weights, direction=config.direction, seed=config.seed)
    raw = {**credit, **weight_baselines(texts, weights)}
    rows, curves = [], {}
    task = progress.add_task("comparing", total=len(candidates))
    for name, kind, scores in candidates:
        row = agreement_row(name, kind, scores, texts, seed=config.seed, resamples=config.resamples)
        if asked:
            of_sample = [raw.get(name, scores)[at] for at in sample]
            numbers, curves[name] = faithfulness_numbers(
                asked, of_sample, signed=name in raw, seed=config.seed
            )
            row |= numbers
        rows.append(row)
        progress.advance(task)
    people = people_row(texts, seed=config.seed, resamples=config.resamples)
    return [*rows, people] if people else rows, curves


def _asked(
    asking: Pass, sample: Sequence[MarkedText], config: CompareCreditConfig, progress: Progress
) -> list[AskedTexts]:
    task = progress.add_task("shapley of a sample", total=len(sample))
    found = []
    for part in asked_texts(asking, sample, config):
        found.append(part)
        progress.advance(task, len(part.rows))
    return found


def _kept_scores(
    scored: Pass,
    texts: Sequence[MarkedText],
    config: CompareCreditConfig,
    folder: Path,
    progress: Progress,
) -> dict[str, WordScores]:
    """Word scores of the methods of one pass, from the run folder where they are there."""
    files = {
        name: folder / f"{name.replace(', ', '-').replace(' ', '-')}.json" for name in scored.names
    }
    written_for = hashlib.sha256(repr(texts).encode()).hexdigest()
    found = {name: _read(file, written_for) for name, file in files.items()}
    task = progress.add_task(_shortened(scored.names), total=len(texts))
    there = {name: scores for name, scores in found.items() if scores is not None}
    if len(there) == len(files):
        progress.update(task, completed=len(texts))
        return there
    scores = _scored(scored, texts, config, progress, task)
    folder.mkdir(exist_ok=True)
    for name, file in files.items():
        content = {"method": name, "texts": written_for, "word_scores": scores[name]}
        write_atomically(file, json.dumps(content))
    return scores


def _scored(
    scored: Pass,
    texts: Sequence[MarkedText],
    config: CompareCreditConfig,
    progress: Progress,
    task: TaskID,
) -> dict[str, WordScores]:
    scores: dict[str, WordScores] = {name: [[]] * len(texts) for name in scored.names}
    for rows, batch in scored.batches(texts, config):
        for name, token_scores in scored.scorer(batch).items():
            words = scores_of_words(token_scores, batch, name=name)
            for row, of_text in zip(rows, words, strict=True):
                scores[name][row] = of_text
        progress.advance(task, len(rows))
    return scores


def _read(file: Path, written_for: str) -> WordScores | None:
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    return content["word_scores"] if content["texts"] == written_for else None


def _shortened(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _sample(
    texts: Sequence[MarkedText], config: CompareCreditConfig, count: int | None = None
) -> list[int]:
    """Some texts, the same ones for every method; a smaller sample is part of a larger one."""
    order = random.Random(config.seed).sample(range(len(texts)), len(texts))
    return order[: config.faithfulness_documents if count is None else count]


def _weights(
    config: CompareCreditConfig, left_out: list[LeftOut] | None
) -> dict[str, dict[str, float]]:
    """Weights of words by the name of their baseline."""
    weights = {}
    if config.baselines.texts is not None:
        labelled = _labelled_texts(config.baselines.texts, left_out)
        weights["naive Bayes"] = naive_bayes_weights(*labelled)
    for lexicon in config.baselines.lexicons:
        path = Path(lexicon)
        if not path.is_file():
            raise DataError(f"there is no lexicon {lexicon!r}; expected a file")
        with path.open(encoding="utf-8", newline="\n") as file:
            weights[f"lexicon {path.stem}"] = lexicon_weights(file)
    return weights


def _labelled_texts(path: str, left_out: list[LeftOut] | None) -> tuple[list[str], list[int]]:
    """Texts and labels; of pairs, the chosen ones are good and the rejected ones bad."""

    def judged(row: DataRow) -> list[tuple[str, int]]:
        if row.values.get("chosen") is None or row.values.get("rejected") is None:
            return [(text_cell(row, "text"), label_cell(row, "label"))]
        return [(text_cell(row, "chosen"), 1), (text_cell(row, "rejected"), 0)]

    rows = dataset_rows(path, split="train", limit=None)
    found = list(chain.from_iterable(made_rows(judged, rows, name=path, left_out=left_out)))
    return [text for text, _ in found], [label for _, label in found]


@contextmanager
def _progress(config: CompareCreditConfig) -> Iterator[Progress]:
    with Progress(console=Console(stderr=True), disable=not config.progress) as progress:
        yield progress
