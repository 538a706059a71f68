"""Train a language model to rewrite answers into better ones: a reward model that speaks.

    tokencredit train-rewriter --data pairs.jsonl --model lm --output rewriter

Each pair gives two rows: (prompt, rejected) is mapped to the chosen answer, and (prompt, chosen)
to itself, as Zhou et al. 2024 (arXiv 2409.00162) do. What the trained model thinks of a response,
token by token, is how likely it writes that token after it has read the whole response:
`rewriter_logprobs` in `tokencredit.reward_model.hf_rewriter`.

Departures and choices: (1) a decoder reads prompt, answer and a separator and writes after them,
instead of an encoder and a decoder; (2) the words of the separator are ours; they are kept in the
configuration of the model (`rewriter_template`, `rewriter_instruction`), so that what is scored
reads as what was trained.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.evaluation.pair_scores import pair_outcomes
from tokencredit.masking import masked_row_mean, masked_sum
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.language_model.corpus import causal_batch, causal_example
from tokencredit.recipes.reward_model.causal_settings import TrainRewriterConfig
from tokencredit.recipes.reward_model.pair_data import different_pairs, training_pairs
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.shown_reading import shown_example
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.models import (
    language_model_to_train,
    reading_to_train,
)
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.supervised import (
    autocast,
    encoded_sides,
    finished_run,
    supervised_run,
    write_results,
)
from tokencredit.recipes.training.trainer import SupervisedTrainer, row_numbers, train
from tokencredit.reward_model.hf_rewriter import rewriting_prompt
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, read_response, response_batch


def train_rewriter(config: TrainRewriterConfig) -> Path:
    """Train one rewriter; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `metrics.json`, `metrics.jsonl`, `config.yaml`. The
        metrics hold, of held-out pairs, the perplexity of corrections and of chosen answers that
        shall stay, and `held_out_accuracy`: the share of pairs whose chosen answer it would rather
        keep than the rejected one, by the mean log-probability of their tokens.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there or lacks what is needed.
        ConfigError: the model is too short for `max_length`.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    pairs, eval_pairs, left_out = training_pairs(config)
    set_seed(config.seed)
    model, tokenizer = _model_to_train(config)
    reading = reading_to_train(model, tokenizer, config.reading)

    def both_rows(some: list[PreferencePair]) -> list[tuple[PreferencePair, list[EncodedText]]]:
        sides = [
            _rewriting_rows(config, reading, some, read=side, write="chosen") for side in SIDES
        ]
        return [(pair, [*two]) for pair, *two in zip(some, *sides, strict=True)]

    encoded, held_out = encoded_sides(config, both_rows, pairs, eval_pairs, left_out)
    both = different_pairs([rows for _, rows in encoded], tuple)
    rows = [pair[0] for pair in both] + [pair[1] for pair in both]
    eval_pairs = [pair for pair, _ in held_out]
    print(shown_example(reading, rows[0], counted=read_response(rows[0])))
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        evaluate = partial(_held_out_metrics, config, model, reading, eval_pairs)
        metrics = _train(config, model, rows, folder, evaluate if eval_pairs else None)
        metrics["equal_pairs"] = float(len(encoded) - len(both))
        if eval_pairs:
            metrics |= evaluate()
        write_results(model, tokenizer, metrics, folder, name="rewriter")
    return folder


Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, Side] = ("rejected", "chosen")


def _model_to_train(
    config: TrainRewriterConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, with the template in its configuration; its tokenizer."""
    model, tokenizer = language_model_to_train(
        config.model, config.loading, max_length=config.max_length
    )
    model.config.rewriter_template = config.template
    model.config.rewriter_instruction = config.instruction
    return model, tokenizer


def _rewriting_rows(
    config: TrainRewriterConfig,
    reading: Reading,
    pairs: list[PreferencePair],
    *,
    read: Side,
    write: Side,
) -> list[EncodedText]:
    """Rows in which one side of every pair is read and one is written."""
    sources: list[Any] = [
        rewriting_prompt(
            pair.prompt,
            getattr(pair, read),
            template=config.template,
            instruction=config.instruction,
        )
        for pair in pairs
    ]
    return reading.rows(
        sources,
        [getattr(pair, write) for pair in pairs],
        ended=[pair.ended[write == "rejected"] for pair in pairs],
        max_length=config.max_length,
        truncation="prompt-start",
    )


def _train(
    config: TrainRewriterConfig,
    model: PreTrainedModel,
    rows: list[EncodedText],
    folder: Path,
    evaluate: Callable[[], dict[str, float]] | None,
) -> dict[str, float]:
    """Train the model in place; what it took."""

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        chosen = [rows[one["row"]] for one in some]
        return causal_batch(
            [causal_example(torch.tensor(row.input_ids), start=row.start) for row in chosen]
        )

    trainer = SupervisedTrainer(
        model=model,
        args=training_arguments(config, folder, examples=len(rows)),
        train_dataset=row_numbers([len(row) for row in rows]),
        data_collator=batch,
        run=TrainingRun.of(config, folder, evaluate),
    )
    return train(trainer, tokens=sum(map(len, rows)))


def _held_out_metrics(
    config: TrainRewriterConfig,
    model: PreTrainedModel,
    reading: Reading,
    pairs: list[PreferencePair],
) -> dict[str, float]:
    """How well it corrects, how well it keeps, and which side it would rather keep."""
    model.eval()

    def said(read: Side, write: Side) -> tuple[torch.Tensor, float]:
        """Mean log-probability of the tokens of each answer, and perplexity of all of them."""
        rows = _rewriting_rows(config, reading, pairs, read=read, write=write)
        batch = response_batch(rows, pad_id=int(reading.tokenizer.pad_token_id))
        with autocast(config.training, model.device):
            logprobs = response_logprobs(
                model, batch, micro_batch_size=config.training.batch_size
            ).cpu()
        nats = -float(masked_sum(logprobs, batch.response_mask).sum())
        tokens = int(batch.response_mask.sum())
        return masked_row_mean(logprobs, batch.response_mask), math.exp(nats / tokens)

    _, corrected = said("rejected", "chosen")
    chosen, kept = said("chosen", "chosen")
    rejected, _ = said("rejected", "rejected")
    return {
        "held_out_accuracy": float(pair_outcomes(chosen, rejected).mean()),
        "correction_perplexity": corrected,
        "identity_perplexity": kept,
    }
