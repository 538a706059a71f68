"""An evaluation as tables, and as the files that the RewardBench suites write."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tokencredit.evaluation.pair_scores import best_of_n_outcome
from tokencredit.recipes.reward_model.pair_evaluation import ScoredComparison
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.scorers.hf_responses import ResponseScorer
from tokencredit.text.hf_reading import Reading, prompt_text


def fraction_table(rows: Sequence[Mapping[str, float | int]], *, title: str) -> Table:
    """Accuracy by the part of the response that has been seen."""
    table = Table("response seen", "accuracy", "rows", title=title)
    for row in rows:
        table.add_row(f"{row['fraction']:.0%}", f"{row['accuracy']:.3f}", str(row["count"]))
    return table


def evaluation_tables(found: Mapping[str, Any]) -> list[Table]:
    """What a reader looks at first: accuracies beside the baselines, beginnings, length."""
    table = Table("", "accuracy", "interval", "rows", title=f"accuracy of {found['reward_model']}")
    length = found["length"]
    named = {"all pairs": found["accuracy"], **found["subsets"]}
    if "best_of_n" in found:
        named["best of n"] = found["best_of_n"]
        named["right answer above all others"] = found["one_against_many"]
    named |= {
        "baseline: longer wins": length["longer_wins"],
        "baseline: shorter wins": length["shorter_wins"],
        "where the longer is better": length["accuracy_where_the_longer_is_better"],
        "where the shorter is better": length["accuracy_where_the_shorter_is_better"],
    }
    for name, row in named.items():
        table.add_row(name, _number(row["accuracy"]), _interval(row), str(row["count"]))
    others = Table("", "", title="more")
    others.add_row("picks the longer answer", _number(length["picks_the_longer"]["accuracy"]))
    others.add_row("rank correlation of score and length", _number(length["score_length_spearman"]))
    others.add_row("... of margin and length gap", _number(length["margin_length_spearman"]))
    error = found["calibration"]["expected_calibration_error"]
    others.add_row("expected calibration error", _number(error))
    others.add_row("negative log-likelihood (nats)", _number(found["negative_log_likelihood"]))
    if "one_against_many" in found:
        rank = found["one_against_many"]["mean_reciprocal_rank"]
        others.add_row("mean reciprocal rank", f"{rank['mean']:.3f} ({_interval(rank)})")
    mean = found["scores"]["margin"]["mean"]
    others.add_row("mean margin (nats)", f"{mean:+.3f}")
    return [table, fraction_table(found["fractions"], title="by the part seen"), others]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(row: Mapping[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def write_rewardbench(
    folder: Path,
    model: str,
    scorer: ResponseScorer | None,
    scored: Sequence[ScoredComparison],
) -> None:
    """Write `eval-set/<model>.json` and `eval-set-scores/<model>.json` in RewardBench's layouts.

    The first holds the accuracy of every subset, the second columns of texts, scores and results:
    of version 1 where all rows are pairs, of version 2 where some have several worse answers. A row
    without a subset belongs to `all`.

    Args:
        folder: to write to.
        model: as it was named; of a folder the last part of its path.
        scorer: the model; None for one of features, which reads texts as they stand.
        scored: comparisons with their scores.
    """
    name = Path(model).resolve().name if Path(model).expanduser().is_dir() else model
    reading = None if scorer is None else scorer.reading
    kinds = {"classification": "Seq. Classifier", "implicit": "DPO"}
    said: dict[str, Any] = {
        "model": name,
        "model_type": "Custom Classifier" if scorer is None else kinds[scorer.kind],
        "chat_template": "tokenizer" if reading and reading.template == "chat" else "plain",
    }
    if scorer is not None and scorer.reference is not None:
        said["ref_model"] = scorer.reference
    pairs = all(one.is_pair for one in scored)
    columns = (_pair_columns if pairs else _best_of_n_columns)(reading, scored)
    columns["subset"] = [one.comparison.subset or "all" for one in scored]
    columns["id"] = [one.comparison.name for one in scored]
    accuracies = {}
    for subset in sorted(set(columns["subset"])):
        results = [
            result
            for result, of in zip(columns["results"], columns["subset"], strict=True)
            if of == subset
        ]
        accuracies[subset] = sum(results) / len(results)
    for kind, content in (
        ("eval-set", {**accuracies, **said}),
        ("eval-set-scores", {**columns, **said}),
    ):
        path = folder / kind / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=4, sort_keys=True) + "\n")


def _pair_columns(
    reading: Reading | None, scored: Sequence[ScoredComparison]
) -> dict[str, list[Any]]:
    """The columns of version 1; a tie counts against the model."""
    chosen = [float(one.chosen_scores[0, -1]) for one in scored]
    rejected = [float(one.rejected_scores[0, -1]) for one in scored]
    return {
        "text_chosen": [_texts(reading, one)[0] for one in scored],
        "text_rejected": [_texts(reading, one)[1] for one in scored],
        "scores_chosen": chosen,
        "scores_rejected": rejected,
        "results": [int(one > other) for one, other in zip(chosen, rejected, strict=True)],
    }


def _best_of_n_columns(
    reading: Reading | None, scored: Sequence[ScoredComparison]
) -> dict[str, list[Any]]:
    """The columns of version 2: the better answers come first in each list."""
    return {
        "text": [_texts(reading, one) for one in scored],
        "scores": [
            one.chosen_scores[:, -1].tolist() + one.rejected_scores[:, -1].tolist()
            for one in scored
        ],
        "results": [
            best_of_n_outcome(one.chosen_scores[:, -1], one.rejected_scores[:, -1])
            for one in scored
        ],
        "num_correct": [len(one.comparison.chosen) for one in scored],
    }


def _texts(reading: Reading | None, one: ScoredComparison) -> list[str]:
    answers = one.comparison.chosen + one.comparison.rejected
    if reading is None:
        return [prompt_text(one.comparison.prompt) + text for text in answers]
    return [reading.text(one.comparison.prompt, text) for text in answers]
