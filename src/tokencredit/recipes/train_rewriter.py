"""Train a language model to rewrite answers into better ones: a reward model that speaks.

    tokencredit train-rewriter --data pairs.jsonl --model lm --output rewriter

Each pair gives two rows: (prompt, rejected) is mapped to the chosen answer, and (prompt, chosen)
to itself, as Zhou et al. 2024 (arXiv 2409.00162) do. What the trained model thinks of a response,
token by token, is how likely it writes that token after it has read the whole response:
`rewriter_logprobs` in `tokencredit.reward_model.hf_rewriter`.

Departures and choices: (1) a decoder reads prompt, answer and a separator and writes behind them,
instead of an encoder and a decoder; (2) the words of the separator are ours; they are kept in the
configuration of the model (`rewriter_template`, `rewriter_instruction`), so that what is scored
reads as what was trained.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.evaluation.pair_scores import pair_outcomes
from tokencredit.hf_logprobs import response_logprobs
from tokencredit.masking import masked_row_mean, masked_sum
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.corpus import causal_batch, causal_example
from tokencredit.recipes.encoded_texts import EncodedText, encoded_texts
from tokencredit.recipes.implicit_scores import response_batch
from tokencredit.recipes.pair_training import language_model_to_train, training_pairs
from tokencredit.recipes.run_folder import write_atomically
from tokencredit.recipes.supervised import (
    SupervisedTrainer,
    autocast,
    finished_run,
    require_fitting,
    supervised_run,
    training_arguments,
    write_model,
)
from tokencredit.reward_model.hf_rewriter import (
    INSTRUCTION,
    TEMPLATE,
    require_template,
    rewriting_prompt,
)


@dataclass(frozen=True)
class TrainRewriterConfig:
    """Settings of one rewriter.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id.
        model: Hub id or folder of the causal language model to start from.
        output: run folder; holds the model in Hugging Face layout when it is done.
        template: of prompts that are texts: `{prompt}` and `{response}` stand for what is read, and
            what is written follows.
        instruction: of prompts that are messages: what the user says after the answer.
        split: of a dataset folder or id.
        prompt_column: column of the prompts, texts or lists of chat messages; None takes `prompt`
            where it is there, or else what both texts begin with.
        chosen_column: column of the preferred responses.
        rejected_column: column of the others.
        unusable: what to do with pairs of equal or empty answers: `error` or `drop`.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different prompts held out where there is no `eval_data`; 0 holds
            none out.
        pad_token: token of the vocabulary to pad with, where the tokenizer names none.
        max_length: of prompt, answer and what is written, in tokens. What is longer loses the
            start of the prompt first, then the end of what is written.
        epochs: passes over the data.
        batch_size: rows per process and backward pass; a pair gives two.
        gradient_accumulation: backward passes per optimiser step.
        learning_rate: highest of AdamW's, reached after the warm-up; a cosine takes it to 0.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        mixed_precision: `bf16` trains under autocast; weights stay float32.
        attn_implementation: of transformers; None for its default.
        trust_remote_code: run code that comes with a model; off unless you trust its author.
        seed: of everything random.
        device: `cpu` keeps to the CPU; None takes what Accelerate finds.
        progress: show a progress bar.
    """

    data: str
    model: str
    output: str
    template: str = TEMPLATE
    instruction: str = INSTRUCTION
    split: str = "train"
    prompt_column: str | None = None
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    unusable: Literal["error", "drop"] = "error"
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    pad_token: str | None = None
    max_length: int = 1024
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        require_fitting(self)
        require_template(self.template)


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
    pairs, eval_pairs = training_pairs(config)
    set_seed(config.seed)
    model, tokenizer = _start(config)
    corrections = _rows(config, tokenizer, pairs, read="rejected", write="chosen")
    rows = corrections + _rows(config, tokenizer, pairs, read="chosen", write="chosen")
    with supervised_run(config) as folder:
        metrics = _trained(config, model, rows, folder)
        if eval_pairs:
            metrics |= _held_out(config, model, tokenizer, eval_pairs)
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_model(model, tokenizer, folder)
    print("  ".join(f"{name} {value:,.6g}" for name, value in metrics.items()))
    print(f"rewriter: {folder}")
    return folder


Side = Literal["chosen", "rejected"]


def _start(config: TrainRewriterConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, with the template in its configuration; its tokenizer."""
    model, tokenizer = language_model_to_train(config)
    model.config.rewriter_template = config.template
    model.config.rewriter_instruction = config.instruction
    model.config.eos_appended = True
    return model, tokenizer


def _rows(
    config: TrainRewriterConfig,
    tokenizer: PreTrainedTokenizerBase,
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
    return encoded_texts(
        tokenizer,
        sources,
        [getattr(pair, write) for pair in pairs],
        append_eos=True,
        max_length=config.max_length,
        truncation="prompt-start",
    )


def _trained(
    config: TrainRewriterConfig, model: PreTrainedModel, rows: list[EncodedText], folder: Path
) -> dict[str, float]:
    """Train the model in place; what it took."""
    arguments = training_arguments(
        config, folder, examples=len(rows), learning_rate=config.learning_rate
    )
    arguments.train_sampling_strategy = "group_by_length"

    def batch(some: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        chosen = [rows[one["row"]] for one in some]
        return causal_batch(
            [causal_example(torch.tensor(row.input_ids), start=row.start) for row in chosen]
        )

    trainer = SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(
            {"row": list(range(len(rows))), "length": [len(row) for row in rows]}
        ),
        data_collator=batch,
        log_file=folder / "metrics.jsonl",
    )
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    tokens = config.epochs * sum(map(len, rows))
    return {
        "train_loss": loss,
        "train_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def _held_out(
    config: TrainRewriterConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[PreferencePair],
) -> dict[str, float]:
    """How well it corrects, how well it keeps, and which side it would rather keep."""
    model.eval()

    def said(read: Side, write: Side) -> tuple[torch.Tensor, float]:
        """Mean log-probability of the tokens of each answer, and perplexity of all of them."""
        rows = _rows(config, tokenizer, pairs, read=read, write=write)
        batch = response_batch(rows, pad_id=int(tokenizer.pad_token_id))
        with autocast(config, model.device):
            logprobs = response_logprobs(model, batch, micro_batch_size=config.batch_size).cpu()
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
