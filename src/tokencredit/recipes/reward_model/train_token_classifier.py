"""Train a classifier of tokens on edits, on labelled spans or on labelled steps.

    tokencredit train-token-classifier --data edits.jsonl --labels edits --model lm --output judge

Its logits, `token_classifier_logits`, are what `discriminator_credit` (edits), `severity_credit`
(spans) and `step_score_credit` (steps) are made of. Edits follow Yoon et al. 2024 (arXiv
2407.16574). Departures: (1) one softmax, and the logits of a token stand at the token itself; (2)
the rejected and the edited response are two rows of a batch, so that the loss is half the sum of
theirs; (3) any classes can be weighted; (4) the edits come from the data: nothing here writes them.

The head is that of `AutoModelForTokenClassification`, on a causal model or an encoder. Only a
causal one gives causal credit. The Trainer of transformers does the training, batches hold rows of
like length, padded on the right. Dropout is off. How well held-out tokens are told apart stands in
`token_report.json`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.models.hf_architecture import padding_id
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.preference.hf_labels import (
    load_edits,
    load_error_spans,
    load_labelled_spans,
    load_step_labels,
)
from tokencredit.recipes.language_model.corpus import IGNORED
from tokencredit.recipes.reward_model.settings import TrainTokenClassifierConfig
from tokencredit.recipes.reward_model.token_labels import (
    LabelledRow,
    LabelledText,
    class_report,
    label_targets,
    labelled_logits,
    labelled_text,
    labelled_texts,
    padded_logits,
    token_batch,
)
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.recipes.run.shown_reading import shown_example
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.models import (
    classifier_to_train,
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
from tokencredit.recipes.training.trainer import LossTrainer, ModelFunction, row_numbers, train
from tokencredit.reward_model.losses.tokens import token_classification_loss

__all__ = ["TrainTokenClassifierConfig", "train_token_classifier"]


def train_token_classifier(config: TrainTokenClassifierConfig) -> Path:
    """Train one token classifier; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `token_report.json`, `metrics.json`, `metrics.jsonl`,
        `config.yaml`.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there, or transformers has no token-classification
            head for it.
        ConfigError: the model is too short for `max_length`.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    data, eval_data, left_out = train_and_held_out(
        config, partial(_load, config), text=labelled_text
    )
    set_seed(config.seed)
    model, tokenizer = _model_to_train(config)
    reading = reading_to_train(model, tokenizer, config.reading)
    encode = partial(labelled_texts, config, reading)
    rows, eval_rows = encoded_sides(config, encode, data, eval_data, left_out)
    print(shown_example(reading, rows[0].text))
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        model, metrics = _train(config, model, rows, eval_rows, folder)
        if eval_rows:
            report = _report(config, model, eval_rows)
            metrics |= _held_out_metrics(report)
            write_atomically(folder / "token_report.json", json.dumps(report, indent=2) + "\n")
            _show(report)
        write_results(model, tokenizer, metrics, folder, name="token classifier")
    return folder


def _model_to_train(
    config: TrainTokenClassifierConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, with an output for each class and a pad token, and its tokenizer."""
    classes = dict(enumerate(config.classes))
    return classifier_to_train(
        AutoModelForTokenClassification,
        config.model,
        config.loading,
        max_length=config.max_length,
        lora=config.lora,
        id2label=classes,
        label2id={name: number for number, name in classes.items()},
    )


def _load(config: TrainTokenClassifierConfig, source: Source) -> Sequence[LabelledRow]:
    """The rows of a data set; both sides of an edit stay together."""
    columns = config.columns
    if config.labels == "edits":
        return load_edits(
            **vars(source),
            prompt_column=columns.prompt,
            rejected_column=columns.rejected,
            edited_column=columns.edited,
            limit=config.limit,
        )
    if config.span_layout == "xcomet":
        return load_error_spans(
            **vars(source),
            prompt_column=columns.prompt,
            least_confidence=config.least_confidence,
            limit=config.limit,
        )
    if config.labels == "spans":
        return load_labelled_spans(
            **vars(source),
            prompt_column=columns.prompt,
            text_column=columns.text,
            spans_column=columns.spans,
            limit=config.limit,
        )
    return load_step_labels(
        **vars(source),
        prompt_column=columns.prompt,
        completions_column=columns.completions,
        labels_column=columns.labels,
        limit=config.limit,
    )


def _train(
    config: TrainTokenClassifierConfig,
    model: PreTrainedModel,
    rows: Sequence[LabelledText],
    eval_rows: Sequence[LabelledText],
    folder: Path,
) -> tuple[PreTrainedModel, dict[str, float | None]]:
    """The trained model, adapters merged, and what it took."""
    adapted = with_adapters(model, config.lora)
    pad_id = padding_id(model)

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return token_batch([rows[one["row"]] for one in some], pad_id=pad_id)

    targets = label_targets(config.labels, len(config.classes))
    weights = torch.tensor(config.class_weights)

    def loss(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        labels = inputs["token_labels"]
        return token_classification_loss(
            logits,
            targets.to(labels.device)[labels.clamp(min=0)],
            labels != IGNORED,
            class_weights=weights.to(labels.device) if config.class_weights else None,
        )

    def evaluate() -> dict[str, float | None]:
        return _held_out_metrics(_report(config, pretrained_model(adapted), eval_rows))

    trainer = LossTrainer(
        model=ModelFunction(adapted, padded_logits),
        args=training_arguments(config, folder, examples=len(rows)),
        train_dataset=row_numbers([len(row) for row in rows]),
        data_collator=batch,
        loss=loss,
        unread=("token_labels",),
        run=TrainingRun.of(config, folder, evaluate if eval_rows else None),
    )
    metrics: dict[str, float | None] = {**train(trainer, tokens=sum(map(len, rows)))}
    unrounded = replace(config, lora=replace(config.lora, quantization=None))
    whole = without_adapters(
        adapted, config.lora, lambda: _model_to_train(unrounded)[0], task_type="SEQ_CLS"
    )
    return whole, metrics


def _held_out_metrics(report: dict[str, Any]) -> dict[str, float | None]:
    return {f"held_out_{name}": report[name] for name in ("accuracy", "majority")}


def _report(
    config: TrainTokenClassifierConfig, model: PreTrainedModel, rows: Sequence[LabelledText]
) -> dict[str, Any]:
    """How well the classes of held-out tokens are told apart."""
    logits, labels = labelled_logits(
        model,
        rows,
        pad_id=padding_id(model),
        batch_size=config.training.batch_size,
        context=autocast(config.training, model.device),
    )
    return class_report(logits, labels, config.classes)


def _show(report: dict[str, Any]) -> None:
    table = Table("class", "tokens", "F1", "AUROC", title="held-out tokens")
    for name, one in report["classes"].items():
        numbers = ["" if one[key] is None else f"{one[key]:.3f}" for key in ("f1", "auroc")]
        table.add_row(name, str(one["tokens"]), *numbers)
    Console().print(table)
