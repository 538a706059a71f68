r"""Train a policy on preferences without drawing responses, with a weight for every token.

    tokencredit train-preferences --data pairs.jsonl --model lm --output dpo
    tokencredit train-preferences --data pairs.jsonl --model lm --output dpo \
        --token_weights.kind credit --reward_model rm

One table of losses (`tokencredit methods --kind loss`): DPO and its relatives on pairs, PRO, RRHF,
BRAIn and DFT on lists, A-LoL and likelihoods on single answers, AlignDistil, DCKD and ADPA from
teachers. Any of them takes weights of tokens, from the credit of a reward model or of other models,
from selection, edits or position, the same for policy and reference. Whether token weights help is
not measured yet.

Departures from the published programs: (1) everything from the first response token to the token
that ends a turn counts, whatever their masks did; (2) log-probabilities under frozen models are
computed once and kept in the run folder, as credit is; (3) batches hold rows of like length, and a
cosine takes the learning rate to 0. Dropout is off.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.batch import rows_of_like_length
from tokencredit.errors import ConfigError
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.preference.hf_answers import JudgedAnswers, load_answers, multi_level_pairs
from tokencredit.recipes.preferences.constants import forget_numbers, frozen_reference
from tokencredit.recipes.preferences.known import KnownRows, known_rows
from tokencredit.recipes.preferences.objective import (
    Measured,
    Objective,
    answer_statistics,
    logprobs_and_divergences,
    with_negative_weights,
)
from tokencredit.recipes.preferences.rows import SAID, answer_rows
from tokencredit.recipes.preferences.settings import TrainPreferencesConfig
from tokencredit.recipes.preferences.teachers import loaded_teachers, taught_statistic
from tokencredit.recipes.reward_model.pair_data import different_pairs
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.shown_reading import shown_example
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.models import (
    language_model_to_train,
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
from tokencredit.recipes.training.trainer import LossTrainer, ModelFunction, row_numbers, train
from tokencredit.text.hf_token_rows import read_response

__all__ = ["TrainPreferencesConfig", "train_preferences"]


def train_preferences(config: TrainPreferencesConfig) -> Path:
    """Train one policy on preferences; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `metrics.json`, `metrics.jsonl`, `config.yaml`.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there, or has another vocabulary.
        ConfigError: PEFT is needed and not installed, or the model is too short for `max_length`.
        NumericError: a loss, a weight or a credit is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    data, eval_data, left_out = train_and_held_out(
        config, partial(_load, config), text=lambda row: row.responses[0]
    )
    if config.loss == "mapl":
        data = multi_level_pairs(data)
    set_seed(config.seed)
    model, tokenizer = _model_to_train(config)
    reading = reading_to_train(model, tokenizer, config.reading)
    encode = partial(answer_rows, config, reading)
    encoded, eval_rows = encoded_sides(config, encode, data, eval_data, left_out)
    rows = different_pairs(encoded, attrgetter("texts"))
    eval_rows = different_pairs(eval_rows, attrgetter("texts"), held_out=True)
    first = rows[0].texts[0]
    print(shown_example(reading, first, counted=read_response(first)))
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        known = known_rows(config, model, tokenizer, rows, eval_rows, folder)
        model, metrics = _train(config, model, tokenizer, *known, folder)
        metrics["equal_answers"] = float(len(encoded) - len(rows))
        if "prompt_values" in config.row.needs:
            metrics["below_expectation"] = float(len(rows) - len(known[0].rows))
        write_results(model, tokenizer, metrics, folder, name="policy")
        forget_numbers(folder)  # all processes have read them
    return folder


def _load(config: TrainPreferencesConfig, source: Source) -> list[JudgedAnswers]:
    """The rows of a data set that the loss learns from."""
    needs = config.row.needs
    return load_answers(
        **vars(source),
        kind=config.row.learns_from,
        scored="scores" in needs,
        soft_labels="soft_labels" in needs,
        columns=config.columns,
        limit=config.limit,
    )


def _model_to_train(
    config: TrainPreferencesConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, and its tokenizer.

    Its configuration names the reference where log-ratios to it are what the loss has moved, so
    that the trained model can be taken for credit by log-ratio.
    """
    model, tokenizer = language_model_to_train(
        config.model, config.loading, max_length=config.max_length, lora=config.lora
    )
    for name in ("dpo_reference", "dpo_beta", "dpo_direction"):
        vars(model.config).pop(name, None)  # of the training before this one
    if config.row.pair is not None and config.row.references == ("reference",):
        model.config.dpo_reference = lasting_name(config.reference or config.model)
        model.config.dpo_beta = config.options.dpo_beta
    return model, tokenizer


class PreferenceTrainer(LossTrainer):
    """The Trainer of a loss of preferences, whose log lines hold what was measured on the way.

    Args:
        measured: of the run.
    """

    def __init__(self, *arguments: Any, measured: Measured, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.measured = measured

    def log(self, logs: dict[str, Any], *arguments: Any, **keywords: Any) -> None:
        """Add what was measured since the last row."""
        if "loss" in logs:
            means = self.measured.means()
            if self.accelerator.num_processes > 1 and means:
                here = torch.tensor(list(means.values()), device=self.accelerator.device)
                mean = self.accelerator.reduce(here, reduction="mean").tolist()
                means = dict(zip(means, mean, strict=True))
            logs = {**logs, **means}
        super().log(logs, *arguments, **keywords)

    def remembered(self) -> dict[str, Any]:
        """What was measured since the last row, and the running averages of the loss."""
        return vars(self.measured)

    def recall(self, remembered: dict[str, Any]) -> None:
        """Take back what `remembered` gave."""
        for name, value in remembered.items():
            setattr(self.measured, name, value)


def _train(
    config: TrainPreferencesConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    known: KnownRows,
    held_out: KnownRows,
    folder: Path,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    pad_id = int(tokenizer.pad_token_id)
    frozen = frozen_models(config, tokenizer)
    adapted = with_adapters(model, config.lora, task_type="CAUSAL_LM")

    def evaluate() -> dict[str, float]:
        return held_out_metrics(config, pretrained_model(adapted), held_out, frozen, pad_id=pad_id)

    run = TrainingRun.of(config, folder, evaluate if held_out.rows else None)
    trainer = preference_trainer(config, adapted, known, run, pad_id=pad_id, frozen=frozen)
    tokens = sum(len(text) for row in known.rows for text in row.texts)
    metrics = {"train_examples": float(len(known.rows))} | train(trainer, tokens=tokens)
    unrounded = replace(config, lora=replace(config.lora, quantization=None))
    trained = without_adapters(
        adapted, config.lora, lambda: _model_to_train(unrounded)[0], task_type="CAUSAL_LM"
    )
    if held_out.rows:
        metrics |= held_out_metrics(config, trained, held_out, frozen, pad_id=pad_id)
    return trained, metrics


def frozen_models(
    config: TrainPreferencesConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, ...]:
    """Models that stay beside the policy in training: for losses of whole distributions.

    Args:
        config: the settings.
        tokenizer: of the policy.

    Raises:
        ModelError: one is not there, or has another vocabulary.
        ConfigError: as `loaded_teachers`.
    """
    if "vocabulary" in config.row.needs:
        return (frozen_reference(config, tokenizer),)
    return loaded_teachers(config, tokenizer) if config.keeps_teachers else ()


def said_of_answers(
    config: TrainPreferencesConfig, known: KnownRows, frozen: Sequence[PreTrainedModel]
) -> Callable[..., Tensor]:
    """The numbers of each response token that the loss is made of, as a function of the policy.

    Args:
        config: the settings.
        known: rows, with what teachers say of them.
        frozen: as of `frozen_models`.
    """
    if config.row.teachers:
        statistic = taught_statistic(config, width=known.width)
        return partial(answer_statistics, statistic=statistic, frozen=frozen)
    if frozen:
        return partial(answer_statistics, statistic=logprobs_and_divergences, frozen=frozen)
    return answer_statistics


def preference_trainer(
    config: TrainPreferencesConfig,
    model: Any,
    known: KnownRows,
    run: TrainingRun,
    *,
    pad_id: int,
    frozen: Sequence[PreTrainedModel] = (),
) -> PreferenceTrainer:
    """The Trainer of a policy.

    Args:
        config: the settings.
        model: with or without adapters.
        known: rows to learn from.
        run: what the trainer belongs to.
        pad_id: fills padding.
        frozen: as of `frozen_models`.

    Raises:
        ConfigError: running averages are asked of several processes, which see different rows.
    """
    objective, running = Objective(config, known.names), "average_rate" in config.row.options
    measured = Measured(log_averages=[-torch.inf] * len(known.rows) if running else [])

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return known.batch([one["row"] for one in some], pad_id=pad_id)

    def loss(outputs: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        answers, bounded = objective.answers(outputs, inputs)
        if running:
            rows = inputs["row"].tolist()
            so_far = torch.tensor([measured.log_averages[row] for row in rows])
            answers, averages = with_negative_weights(
                answers, config.options, so_far.to(outputs.device)
            )
            for row, average in zip(rows, averages.tolist(), strict=True):
                measured.log_averages[row] = average
        losses, numbers = objective.losses(answers, bounded)
        measured.add(numbers)
        return losses.mean()

    trainer = PreferenceTrainer(
        model=ModelFunction(model, said_of_answers(config, known, frozen)),
        args=training_arguments(config, run.folder, examples=len(known.rows)),
        train_dataset=row_numbers([len(row) for row in known.rows]),
        data_collator=batch,
        loss=loss,
        unread=SAID,
        run=run,
        measured=measured,
    )
    if running and trainer.accelerator.num_processes > 1 and config.options.average_rate != 1:
        raise ConfigError(
            f"loss is {config.loss!r} with {trainer.accelerator.num_processes} processes, which "
            "would each keep averages of their own; expected one process, or options.average_rate 1"
        )
    return trainer


@torch.no_grad()
def held_out_metrics(
    config: TrainPreferencesConfig,
    model: PreTrainedModel,
    known: KnownRows,
    frozen: Sequence[PreTrainedModel],
    *,
    pad_id: int,
) -> dict[str, float]:
    """The loss on held-out rows, and how often the better answer is the likelier one.

    Args:
        config: the settings.
        model: so far.
        known: held-out rows.
        frozen: as of `frozen_models`.
        pad_id: fills padding.
    """
    objective = Objective(config, known.names)
    said = said_of_answers(config, known, frozen)
    model.eval()
    found: dict[str, float] = {}
    total = 0.0
    lengths = torch.tensor([len(row) for row in known.rows])
    for some in rows_of_like_length(lengths, config.training.batch_size):
        inputs = known.batch(some.tolist(), pad_id=pad_id)
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        asked = {name: value for name, value in inputs.items() if name not in SAID}
        with autocast(config.training, model.device):
            outputs = said(model, **asked)
        answers, bounded = objective.answers(outputs, inputs)
        if "average_rate" in config.row.options:
            none = torch.full((len(some),), -torch.inf, device=model.device)
            answers, _ = with_negative_weights(answers, config.options, none)
        losses, numbers = objective.losses(answers, bounded)
        total += float(losses.sum())
        for name in ("accuracy", "margin"):
            if name in numbers:
                found[name] = found.get(name, 0.0) + numbers[name] * len(some)
    found = {"loss": total, **found}
    return {f"held_out_{name}": value / len(known.rows) for name, value in found.items()}
