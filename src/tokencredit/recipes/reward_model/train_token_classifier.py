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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.models.hf_loading import (
    disable_dropout,
    load_model,
    load_tokenizer,
    lora_model,
    quiet_transformers,
    require_pad_token,
)
from tokencredit.preference.hf_labels import load_edits, load_labelled_spans, load_step_labels
from tokencredit.preference.labels import EditedResponse, SpanLabelledResponse
from tokencredit.recipes.reward_model.settings import TrainTokenClassifierConfig
from tokencredit.recipes.reward_model.token_labels import (
    Labelled,
    LabelledText,
    TokenLogits,
    TokenTrainer,
    class_report,
    label_targets,
    labelled_logits,
    labelled_texts,
    token_batch,
)
from tokencredit.recipes.run_folder import write_atomically
from tokencredit.recipes.supervised import (
    autocast,
    finished_run,
    held_out_rows,
    require_context,
    supervised_run,
    training_arguments,
    write_model,
)

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
    data, eval_data = _examples(config)
    set_seed(config.seed)
    model, tokenizer = _start(config)
    rows = labelled_texts(config, tokenizer, data)
    eval_rows = labelled_texts(config, tokenizer, eval_data) if eval_data else []
    with supervised_run(config) as folder:
        model, metrics = _trained(config, model, rows, folder)
        if eval_rows:
            report = _report(config, model, eval_rows)
            metrics |= {f"held_out_{name}": report[name] for name in ("accuracy", "majority")}
            write_atomically(folder / "token_report.json", json.dumps(report, indent=2) + "\n")
            _show(report)
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_model(model, tokenizer, folder)
    print("  ".join(f"{name} {value:,.6g}" for name, value in metrics.items() if value is not None))
    print(f"token classifier: {folder}")
    return folder


def _examples(config: TrainTokenClassifierConfig) -> tuple[list[Labelled], list[Labelled]]:
    """What to train on and what is held out; both sides of an edit stay together."""
    data = _loaded(config, config.data, config.split)
    if config.eval_data is not None:
        return data, _loaded(config, config.eval_data, config.eval_split or config.split)
    train, held_out = held_out_rows(
        [row.prompt for row in data],
        [_text(row) for row in data],
        fraction=config.held_out,
        seed=config.seed,
    )
    return [data[i] for i in train], [data[i] for i in held_out]


def _text(row: Labelled) -> str:
    if isinstance(row, EditedResponse):
        return row.rejected
    return row.response if isinstance(row, SpanLabelledResponse) else "".join(row.completions)


def _loaded(config: TrainTokenClassifierConfig, data: str, split: str) -> list[Labelled]:
    if config.labels == "edits":
        return list(
            load_edits(
                data,
                split=split,
                prompt_column=config.prompt_column,
                rejected_column=config.rejected_column,
                edited_column=config.edited_column,
                limit=config.limit,
            )
        )
    if config.labels == "spans":
        return list(
            load_labelled_spans(
                data,
                split=split,
                prompt_column=config.prompt_column,
                text_column=config.text_column,
                spans_column=config.spans_column,
                limit=config.limit,
            )
        )
    return list(
        load_step_labels(
            data,
            split=split,
            prompt_column=config.prompt_column,
            completions_column=config.completions_column,
            labels_column=config.labels_column,
            limit=config.limit,
        )
    )


def _start(
    config: TrainTokenClassifierConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, with one output per class and a pad token, and its tokenizer."""
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    with quiet_transformers():  # about the head, which is new
        model = load_model(
            AutoModelForTokenClassification,
            config.model,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            id2label=dict(enumerate(config.classes)),
            label2id={name: number for number, name in enumerate(config.classes)},
            ignore_mismatched_sizes=True,
        )
    if config.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": config.pad_token})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = require_pad_token(tokenizer)
    # Scoring code elsewhere can see from it whether complete answers carry an end of sequence.
    model.config.eos_appended = config.append_eos
    tokenizer.padding_side = "right"
    require_context(model, tokenizer, config.max_length)
    disable_dropout(model)
    return model, tokenizer


def _trained(
    config: TrainTokenClassifierConfig,
    model: PreTrainedModel,
    rows: Sequence[LabelledText],
    folder: Path,
) -> tuple[PreTrainedModel, dict[str, float | None]]:
    """The trained model, adapters merged, and what it took."""
    adapted = model
    if config.lora_rank:
        adapted = lora_model(model, rank=config.lora_rank, alpha=config.lora_alpha)
    arguments = training_arguments(
        config, folder, examples=len(rows), learning_rate=config.learning_rate
    )
    arguments.train_sampling_strategy = "group_by_length"
    pad_id = int(model.config.pad_token_id)

    def batch(some: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        return token_batch([rows[one["row"]] for one in some], pad_id=pad_id)

    trainer = TokenTrainer(
        model=TokenLogits(adapted),
        args=arguments,
        train_dataset=Dataset.from_dict(
            {"row": list(range(len(rows))), "length": [len(row) for row in rows]}
        ),
        data_collator=batch,
        targets=label_targets(config.labels, len(config.classes)),
        class_weights=torch.tensor(config.class_weights) if config.class_weights else None,
        log_file=folder / "metrics.jsonl",
    )
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    tokens = config.epochs * sum(map(len, rows))
    metrics = {
        "train_loss": loss,
        "train_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
    return adapted.merge_and_unload() if config.lora_rank else model, metrics


def _report(
    config: TrainTokenClassifierConfig, model: PreTrainedModel, rows: Sequence[LabelledText]
) -> dict[str, Any]:
    """How well the classes of held-out tokens are told apart."""
    logits, labels = labelled_logits(
        model,
        rows,
        pad_id=int(model.config.pad_token_id),
        batch_size=2 * config.batch_size,
        context=autocast(config, model.device),
    )
    return class_report(logits, labels, config.classes)


def _show(report: dict[str, Any]) -> None:
    table = Table("class", "tokens", "F1", "AUROC", title="held-out tokens")
    for name, one in report["classes"].items():
        numbers = ["" if one[key] is None else f"{one[key]:.3f}" for key in ("f1", "auroc")]
        table.add_row(name, str(one["tokens"]), *numbers)
    Console().print(table)
