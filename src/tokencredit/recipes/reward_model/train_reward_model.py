"""Train a reward model on pairs, labels or ratings, at the last token or along the response.

    tokencredit train-reward-model --data pairs.jsonl --model lm --output rm

`positions: every` makes scores of prefixes mean something, which prefix differences and guided
decoding need: one forward pass scores every prefix of a response, and the loss is their mean. It
follows Rashid et al. 2024 (arXiv 2406.07780). Departures: (1) one row per response instead of one
per prefix, possible with causal models; (2) an answer that has ended keeps its score against a
longer one; (3) the loss is averaged over prefixes, not summed; (4) labels can take the place of
pairs. `positions: pairs` is their objective as published, at its price: every pair of beginnings is
an example. `positions: segments` follows Yin et al. 2025 (arXiv 2501.02790), `positions:
bootstrapped` CD-Q of Mudgal et al. 2023 (arXiv 2310.17022), with eligibility traces unless
`loss.bootstrap_lambda` is 0.

The Trainer of transformers does the training, batches hold rows of like length, padded on the
right. Where attention takes a mask of our own, both answers of a pair stand in one row and their
prompt is read once. Dropout is off. The accuracy on held-out data by the fraction of the response
that has been seen stands in `prefix_accuracy.json` and `prefix_accuracy.png`, and how far
probabilities or ratings can be taken at their word in `calibration.json` and `calibration.png`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.errors import ConfigError
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_objectives import linear_head
from tokencredit.preference.hf_answers import AnswerColumns, JudgedAnswers, load_answers
from tokencredit.preference.hf_datasets import (
    load_labelled_responses,
    load_multi_rated_responses,
    load_pairs,
    load_rated_responses,
)
from tokencredit.recipes.reward_model.ensembles import several_heads
from tokencredit.recipes.reward_model.examples import (
    JudgedRow,
    Judgement,
    judged_rows,
    judgement_text,
    ranked_pairs,
    require_an_order,
    scale_scores,
    standardised_rows,
)
from tokencredit.recipes.reward_model.lessons import Lesson
from tokencredit.recipes.reward_model.pair_data import (
    different_pairs,
    read_pairs,
    read_responses,
)
from tokencredit.recipes.reward_model.report import (
    held_out_metrics,
    held_out_rows_by_fraction,
    write_report,
)
from tokencredit.recipes.reward_model.reward_trainer import lesson_of, reward_trainer
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.recipes.reward_model.several_ratings import (
    head_of_objectives,
    held_out_objectives,
    objective_metrics,
    require_orders,
    standardised_objectives,
    write_objective_report,
)
from tokencredit.recipes.reward_model.states import write_covariance_of_pairs
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.shown_reading import shown_example
from tokencredit.recipes.training.arguments import training_device
from tokencredit.recipes.training.models import (
    classifier_to_train,
    lasting_name,
    reading_to_train,
    with_adapters,
    without_adapters,
)
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.supervised import (
    Source,
    autocast,
    encoded_sides,
    finished_run,
    supervised_run,
    train_and_held_out,
    write_results,
)
from tokencredit.recipes.training.trainer import train
from tokencredit.scorers.hf_segment_ends import SegmentEnds, entropy_reference, segment_end_finder
from tokencredit.scorers.hf_trained_reading import remember_score_positions
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, Truncation

__all__ = ["TrainRewardModelConfig", "train_reward_model"]


def train_reward_model(config: TrainRewardModelConfig) -> Path:
    """Train one reward model; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `prefix_accuracy` and `calibration`, each `.json` and
        `.png`, `metrics.json`, `metrics.jsonl`, `config.yaml`.

    Raises:
        DataError: the data are not there, are empty, all rated alike, or a row does not fit.
        ModelError: a model or tokenizer is not there or lacks what is needed.
        ConfigError: `every`, `segments` or `bootstrapped` with an encoder, or the model is too
            short for `max_length`.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    data, eval_data, left_out = train_and_held_out(
        config, partial(_load, config), text=judgement_text
    )
    set_seed(config.seed)
    model, tokenizer = _model_to_train(config)
    ends = _segment_ends(config, tokenizer)
    reading = reading_to_train(model, tokenizer, config.reading, pairs=True)
    encode = partial(_judged_rows, config, reading)
    encoded, eval_rows = encoded_sides(config, encode, data, eval_data, left_out)
    rows = different_pairs(encoded, attrgetter("responses"))
    eval_rows = different_pairs(eval_rows, attrgetter("responses"), held_out=True)
    print(shown_example(reading, rows[0].responses[0]))
    if config.row.rows == "ratings":
        rows = standardised_rows(model, rows)
        require_an_order(eval_rows)
    if config.row.rows == "several-ratings":
        rows = standardised_objectives(model, rows, config.columns.ratings)
        require_orders(eval_rows, config.columns.ratings)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        lesson = lesson_of(config, model, tokenizer, rows)
        model, metrics = _train(config, model, tokenizer, rows, eval_rows, ends, folder, lesson)
        if config.row.rows == "pairs":
            metrics["equal_pairs"] = float(len(encoded) - len(rows))
        if eval_rows and config.row.rows == "several-ratings":
            of_objectives = _held_out_objectives(config, model, eval_rows)
            metrics |= objective_metrics(of_objectives)
            write_objective_report(of_objectives, folder)
        elif eval_rows:
            by_fraction = _held_out_rows(config, model, ends, eval_rows, lesson)
            metrics |= held_out_metrics(by_fraction)
            write_report(by_fraction, folder, kind=config.row.rows)
        if PartialState().is_main_process:
            metrics |= lesson.write(model, folder)
            if config.bound.ridge is not None:
                size, ridge = 2 * config.training.batch_size, config.bound.ridge
                write_covariance_of_pairs(model, rows, folder, ridge=ridge, batch_size=size)
        write_results(model, tokenizer, metrics, folder, name="reward model")
    return folder


def _load(config: TrainRewardModelConfig, source: Source) -> Sequence[Judgement]:
    """The rows of a data set that the objective learns from."""
    columns = config.columns
    shared = {**vars(source), "prompt_column": columns.prompt, "limit": config.limit}
    match config.row.rows:
        case "pairs":
            return load_pairs(
                **shared,
                chosen_column=columns.chosen,
                rejected_column=columns.rejected,
                margin_column=columns.margin,
                strength_column=columns.strength,
                preferred_column=columns.preferred,
                user_column=columns.user,
            )
        case "labels":
            return load_labelled_responses(
                **shared, text_column=columns.text, label_column=columns.label
            )
        case "ratings":
            return load_rated_responses(
                **shared, text_column=columns.text, rating_column=columns.rating
            )
        case "rankings":
            named = AnswerColumns(
                columns.prompt, columns.chosen, columns.rejected,
                responses=columns.responses, scores=columns.scores,
            )  # fmt: skip
            return load_answers(
                **vars(source), kind="lists", scored=True, columns=named, limit=config.limit
            )
        case "several-ratings":
            return load_multi_rated_responses(
                **shared,
                text_column=columns.text,
                rating_columns=columns.ratings,
                rating_scale=columns.rating_scale,
            )


def _judged_rows(
    config: TrainRewardModelConfig, reading: Reading, data: Sequence[Judgement]
) -> list[JudgedRow]:
    """Rows as token ids, cut as the settings say, with what was said of them."""
    several = config.row.rows in ("pairs", "rankings")
    default: Truncation = "prompt-start" if several else "response-end"
    how: dict[str, Any] = {
        "max_length": config.max_length,
        "truncation": config.truncation or default,
    }

    def lists(rows: list[JudgedAnswers]) -> list[tuple[EncodedText, ...]]:
        responses, ended = [row.responses for row in rows], [row.ended for row in rows]
        return reading.groups([row.prompts for row in rows], responses, ended=ended, **how)

    alone = partial(read_responses, reading, **how)
    return judged_rows(data, alone, partial(read_pairs, reading, **how), lists)


def _model_to_train(
    config: TrainRewardModelConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, with an output of each objective and a pad token, and its tokenizer."""
    heads = max(config.ensemble.heads, config.mixture.heads)
    head: dict[str, Any] = several_heads(heads)
    if config.groups.count > 1:
        head = several_heads(config.groups.count, name="group")
    if config.latent.size:
        head = several_heads(config.latent.width, name="feature")
    if config.row.rows == "several-ratings":
        head = head_of_objectives(config.model, config.columns.ratings, config.loading)
    model, tokenizer = classifier_to_train(
        AutoModelForSequenceClassification,
        config.model,
        config.loading,
        max_length=config.max_length,
        lora=config.lora,
        **head,
    )
    if config.row.reading != "last" and not is_causal(model):
        raise ConfigError(
            f"positions is {config.positions!r} and {type(model).__name__} reads in both "
            "directions, so that prefixes have no score of their own; expected a causal model, or "
            "positions='last' (with pairs also 'pairs')"
        )
    model.config.score_ensemble = config.ensemble.heads > 1
    for name in ("rating_mean", "rating_standard_deviation", "score_gate", "score_users"):
        vars(model.config).pop(name, None)  # of the training before this one
    if config.bound.ridge is not None:
        linear_head(model, needed_by="bound.ridge")  # before it is trained in vain
    segments = config.segments if config.row.reading == "segment-ends" else None
    if segments is not None and config.entropy_reference is not None:
        segments = replace(segments, reference=lasting_name(config.entropy_reference))
    remember_score_positions(model.config, config.positions, segments)
    return model, tokenizer


def _segment_ends(
    config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase
) -> SegmentEnds | None:
    """What finds the ends of segments, where scores are read there."""
    if config.row.reading != "segment-ends":
        return None
    reference = None
    if config.entropy_reference is not None:
        reference = entropy_reference(
            config.entropy_reference,
            tokenizer,
            **config.loading.of_frozen,
            device=training_device(config),
        )
    return segment_end_finder(
        config.segments,
        tokenizer,
        reference=reference,
        batch_size=2 * config.training.batch_size,
    )


def _train(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[JudgedRow],
    eval_rows: list[JudgedRow],
    ends: SegmentEnds | None,
    folder: Path,
    lesson: Lesson,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    adapted = with_adapters(model, config.lora)

    def evaluate() -> dict[str, float]:
        judge = pretrained_model(adapted)
        if config.row.rows == "several-ratings":
            return objective_metrics(_held_out_objectives(config, judge, eval_rows, learning=True))
        judged = _held_out_rows(config, judge, ends, eval_rows, lesson, learning=True)
        return held_out_metrics(judged)

    run = TrainingRun.of(config, folder, evaluate if eval_rows else None)
    trainer, tokens = reward_trainer(config, adapted, tokenizer, rows, ends, run, lesson)
    metrics = {"train_examples": float(len(trainer.train_dataset))} | train(trainer, tokens=tokens)
    unrounded = replace(config, lora=replace(config.lora, quantization=None))
    trained = without_adapters(
        adapted, config.lora, lambda: _model_to_train(unrounded)[0], task_type="SEQ_CLS"
    )
    if config.row.rows in ("ratings", "several-ratings"):
        scale_scores(trained, trained.config.rating_standard_deviation)
    return trained, metrics


def _held_out_rows(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    ends: SegmentEnds | None,
    rows: list[JudgedRow],
    lesson: Lesson,
    *,
    learning: bool = False,
) -> list[dict[str, Any]]:
    """Accuracy and calibration on held-out data by the fraction of the response seen.

    While a model is `learning`, its scores are ratings in standard deviations.
    """
    spread = getattr(model.config, "rating_standard_deviation", 1.0)
    ranked = config.row.rows == "rankings"
    with lesson.view(model):
        return held_out_rows_by_fraction(
            model,
            ranked_pairs(rows) if ranked else rows,
            kind="pairs" if ranked else config.row.rows,
            rating_mean=getattr(model.config, "rating_mean", 0.0),
            score_unit=spread if learning else 1.0,
            batch_size=config.training.batch_size,  # half the texts of a pass in training
            context=autocast(config.training, model.device),
            segment_ends=ends,
            joined=lesson.joined,
        )


def _held_out_objectives(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    rows: list[JudgedRow],
    *,
    learning: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy and calibration of each objective by the fraction of the response seen."""
    return held_out_objectives(
        model,
        rows,
        config.columns.ratings,
        learning=learning,
        batch_size=config.training.batch_size,
        context=autocast(config.training, model.device),
    )
