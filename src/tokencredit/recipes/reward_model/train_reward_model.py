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

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.errors import ConfigError
from tokencredit.models.hf_architecture import is_causal, padding_id
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.preference.hf_answers import AnswerColumns, JudgedAnswers, load_answers
from tokencredit.preference.hf_datasets import (
    load_labelled_responses,
    load_multi_rated_responses,
    load_pairs,
    load_rated_responses,
)
from tokencredit.recipes.left_out import tell_left_out
from tokencredit.recipes.reward_model.ensembles import (
    BOOTSTRAP,
    bootstrap_weights,
    head_of_ensemble,
    loss_of_heads,
)
from tokencredit.recipes.reward_model.examples import (
    SAID,
    JudgedRow,
    Judgement,
    beginning_row,
    example_columns,
    filler_id,
    judged_rows,
    judgement_text,
    judgements_of,
    ranked_pairs,
    require_an_order,
    reward_batch,
    scale_scores,
    score_reading,
    standardised_rows,
)
from tokencredit.recipes.reward_model.pair_data import (
    different_pairs,
    read_pairs,
    read_responses,
)
from tokencredit.recipes.reward_model.regularised import KeptHead
from tokencredit.recipes.reward_model.report import (
    held_out_metrics,
    held_out_rows_by_fraction,
    write_report,
)
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.recipes.reward_model.several_ratings import (
    head_of_objectives,
    held_out_objectives,
    objective_metrics,
    require_orders,
    standardised_objectives,
    write_objective_report,
)
from tokencredit.recipes.reward_model.shared_prefixes import (
    shared_batch,
    shared_length,
    shared_scores,
    shares_prefixes,
)
from tokencredit.recipes.supervised import (
    Source,
    autocast,
    classifier_to_train,
    encoded_sides,
    finished_run,
    lasting_name,
    print_example,
    reading_to_train,
    supervised_run,
    train_and_held_out,
    with_adapters,
    without_adapters,
    write_results,
)
from tokencredit.recipes.trainer import (
    LossTrainer,
    ModelFunction,
    TrainingRun,
    train,
    training_arguments,
    training_device,
)
from tokencredit.scorers.fractions import counted_scores
from tokencredit.scorers.segment_ends import SegmentEnds, entropy_reference, segment_end_finder
from tokencredit.scorers.trained_reading import remember_score_positions
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
    print_example(reading, rows[0].responses[0])
    if config.row.rows == "ratings":
        rows = standardised_rows(model, rows)
        require_an_order(eval_rows)
    if config.row.rows == "several-ratings":
        rows = standardised_objectives(model, rows, config.columns.ratings)
        require_orders(eval_rows, config.columns.ratings)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        model, metrics = _train(config, model, tokenizer, rows, eval_rows, ends, folder)
        if config.row.rows == "pairs":
            metrics["equal_pairs"] = float(len(encoded) - len(rows))
        if eval_rows and config.row.rows == "several-ratings":
            of_objectives = _held_out_objectives(config, model, eval_rows)
            metrics |= objective_metrics(of_objectives)
            write_objective_report(of_objectives, folder)
        elif eval_rows:
            by_fraction = _held_out_rows(config, model, ends, eval_rows)
            metrics |= held_out_metrics(by_fraction)
            write_report(by_fraction, folder, kind=config.row.rows)
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
    head: dict[str, Any] = head_of_ensemble(config.ensemble.heads)
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
    for name in ("rating_mean", "rating_standard_deviation", "score_gate"):
        vars(model.config).pop(name, None)  # of the training before this one
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
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    adapted = with_adapters(model, config.lora)

    def evaluate() -> dict[str, float]:
        judge = pretrained_model(adapted)
        if config.row.rows == "several-ratings":
            return objective_metrics(_held_out_objectives(config, judge, eval_rows, learning=True))
        return held_out_metrics(_held_out_rows(config, judge, ends, eval_rows, learning=True))

    run = TrainingRun.of(config, folder, evaluate if eval_rows else None)
    trainer, tokens = reward_trainer(config, adapted, tokenizer, rows, ends, run)
    metrics = {"train_examples": float(len(trainer.train_dataset))} | train(trainer, tokens=tokens)
    unrounded = replace(config, lora=replace(config.lora, quantization=None))
    trained = without_adapters(
        adapted, config.lora, lambda: _model_to_train(unrounded)[0], task_type="SEQ_CLS"
    )
    if config.row.rows in ("ratings", "several-ratings"):
        scale_scores(trained, trained.config.rating_standard_deviation)
    return trained, metrics


def reward_trainer(
    config: TrainRewardModelConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[JudgedRow],
    ends: SegmentEnds | None,
    run: TrainingRun,
) -> tuple[LossTrainer, int]:
    """The Trainer of a reward model, and the tokens of one pass over the data.

    Args:
        config: the settings.
        model: with or without adapters.
        tokenizer: of the model.
        rows: to learn from.
        ends: finds the ends of segments, where scores are read there; else None.
        run: what the trainer belongs to.
    """
    filler, causal = filler_id(config, tokenizer), is_causal(model)
    columns = example_columns(rows, config, filler=filler, causal=causal)
    lengths = columns.pop("tokens")
    pad_id, read_at = padding_id(model), score_reading(config.row.reading, rows, ends)
    heads = config.ensemble.heads
    kept = KeptHead(config, tokenizer, rows) if config.regulariser.form is not None else None
    shares = (
        config.row.rows == "pairs"
        and heads == 1
        and kept is None
        and shares_prefixes(model, rows[0], pad_id=pad_id, read_at=read_at)
    )
    if shares:
        once = [shared_length(*rows[row].responses) for row in columns["row"]]
        columns["length"] = [n - min(part, n // 2) for n, part in zip(lengths, once, strict=True)]
    several = heads > 1 or config.row.rows == "several-ratings"
    drawn = bootstrap_weights(len(rows), config.ensemble, seed=config.seed)
    collate: Callable[..., dict[str, Tensor]] = reward_batch
    scores_of: Callable[..., Any] = partial(counted_scores, every_output=several)
    if shares:
        collate, scores_of = shared_batch, partial(shared_scores)
    if kept is not None:
        scores_of = kept.scores_and_likelihoods

    def batch(examples: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        some = [
            beginning_row(
                rows[example["row"]],
                example["prefix"],
                filler=filler,
                max_length=config.max_length,
                causal=causal,
            )
            for example in examples
        ]
        indices = [example["row"] for example in examples]
        found = collate(some, pad_id=pad_id, read_at=read_at)
        if drawn is not None:
            found[BOOTSTRAP] = drawn[indices]
        return found if kept is None else found | kept.columns(some, indices)

    def loss(outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
        if heads > 1:
            return loss_of_heads(
                lambda judged: config.row.loss(judged, config.loss), outputs, inputs
            )
        if kept is None:
            return config.row.loss(judgements_of(outputs, inputs), config.loss)
        scores, likelihoods = outputs
        of_pairs = config.row.loss(judgements_of(scores, inputs), config.loss)
        return kept.loss(of_pairs, likelihoods, inputs)

    trainer = LossTrainer(
        model=ModelFunction(model, scores_of),
        args=training_arguments(config, run.folder, examples=len(columns["row"])),
        train_dataset=Dataset.from_dict(columns),
        data_collator=batch,
        loss=loss,
        unread=(*SAID, "references") if drawn is None else (*SAID, "references", BOOTSTRAP),
        run=run,
    )
    return trainer, sum(lengths)


def _held_out_rows(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    ends: SegmentEnds | None,
    rows: list[JudgedRow],
    *,
    learning: bool = False,
) -> list[dict[str, Any]]:
    """Accuracy and calibration on held-out data by the fraction of the response seen.

    While a model is `learning`, its scores are ratings in standard deviations.
    """
    spread = getattr(model.config, "rating_standard_deviation", 1.0)
    ranked = config.row.rows == "rankings"
    return held_out_rows_by_fraction(
        model,
        ranked_pairs(rows) if ranked else rows,
        kind="pairs" if ranked else config.row.rows,
        rating_mean=getattr(model.config, "rating_mean", 0.0),
        score_unit=spread if learning else 1.0,
        batch_size=config.training.batch_size,  # half the texts of a pass in training
        context=autocast(config.training, model.device),
        segment_ends=ends,
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
