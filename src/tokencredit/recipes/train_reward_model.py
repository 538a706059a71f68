"""Train a reward model on preference pairs or on labels, at the last token or at every one.

    tokencredit train-reward-model --data pairs.jsonl --model lm --output rm

`positions: every` makes scores of prefixes mean something, which prefix differences and guided
decoding need: one forward pass scores every prefix of a response, and the loss is their mean. It
follows Rashid et al. 2024 (arXiv 2406.07780). Departures: (1) one row per response instead of one
per prefix, possible with causal models; (2) an answer that has ended keeps its score against a
longer one; (3) the loss is averaged over prefixes, not summed; (4) labels can take the place of
pairs.

The Trainer of transformers does the training, batches hold rows of like length, padded on the
right. Dropout is off. The accuracy on held-out data by the fraction of the response that has been
seen stands in `prefix_accuracy.json` and `prefix_accuracy.png`.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.errors import ConfigError
from tokencredit.evaluation.plots import plot_prefix_accuracy
from tokencredit.evaluation.prefix_accuracy import (
    label_accuracy_by_fraction,
    pair_accuracy_by_fraction,
)
from tokencredit.hf_loading import (
    disable_dropout,
    load_model,
    load_tokenizer,
    require_pad_token,
)
from tokencredit.preference.hf_datasets import load_labelled_responses, load_pairs
from tokencredit.preference.pairs import LabelledResponse, PreferencePair
from tokencredit.recipes.encoded_texts import Truncation, encoded_texts, held_out_rows
from tokencredit.recipes.reward_model_config import TrainRewardModelConfig
from tokencredit.recipes.reward_training import (
    Judged,
    PrefixScorer,
    RewardTrainer,
    fraction_scores,
    lora_model,
    reward_batch,
)
from tokencredit.recipes.run_folder import write_atomically
from tokencredit.recipes.supervised import (
    autocast,
    finished_run,
    quiet_transformers,
    require_context,
    supervised_run,
    training_arguments,
    write_model,
)
from tokencredit.reward_model.hf_architecture import is_causal

__all__ = ["TrainRewardModelConfig", "train_reward_model"]

Judgements = list[PreferencePair] | list[LabelledResponse]


def train_reward_model(config: TrainRewardModelConfig) -> Path:
    """Train one reward model; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `prefix_accuracy.json` and `.png`, `metrics.json`,
        `metrics.jsonl`, `config.yaml`.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there or lacks what is needed.
        ConfigError: `every` with an encoder, or the model is too short for `max_length`.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    data, eval_data = _judgements(config)
    set_seed(config.seed)
    model, tokenizer = _start(config)
    judged = _judged(config, tokenizer, data)
    eval_judged = _judged(config, tokenizer, eval_data) if eval_data else []
    with supervised_run(config) as folder:
        model, metrics = _trained(config, model, judged, folder)
        if eval_judged:
            rows = _accuracy(config, model, eval_judged)
            metrics["held_out_accuracy"] = rows[-1]["accuracy"]
            _report(rows, folder)
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_model(model, tokenizer, folder)
    print("  ".join(f"{name} {value:,.6g}" for name, value in metrics.items()))
    print(f"reward model: {folder}")
    return folder


def _judgements(config: TrainRewardModelConfig) -> tuple[Judgements, Judgements]:
    """What to train on and what is held out."""
    data = _loaded(config, config.data, config.split)
    if config.eval_data is not None:
        return data, _loaded(config, config.eval_data, config.eval_split or config.split)
    train, held_out = held_out_rows(
        [row.prompt for row in data],
        [row.chosen if isinstance(row, PreferencePair) else row.response for row in data],
        fraction=config.held_out,
        seed=config.seed,
    )
    return [data[i] for i in train], [data[i] for i in held_out]  # type: ignore[return-value]


def _loaded(config: TrainRewardModelConfig, data: str, split: str) -> Judgements:
    if config.objective == "classification":
        return load_labelled_responses(
            data,
            split=split,
            text_column=config.text_column,
            label_column=config.label_column,
            prompt_column=config.prompt_column,
            limit=config.limit,
        )
    return load_pairs(
        data,
        split=split,
        prompt_column=config.prompt_column,
        chosen_column=config.chosen_column,
        rejected_column=config.rejected_column,
        margin_column=config.margin_column,
        unusable=config.unusable,
        limit=config.limit,
    )


def _start(config: TrainRewardModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, with one output and a pad token, and its tokenizer."""
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    with quiet_transformers():  # about the head, which is new where the start has no score
        model = load_model(
            AutoModelForSequenceClassification,
            config.model,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            num_labels=1,
            ignore_mismatched_sizes=True,
        )
    if config.positions == "every" and not is_causal(model):
        raise ConfigError(
            f"positions is 'every' and {type(model).__name__} reads in both directions, so that "
            "prefixes have no score of their own; expected a causal model, or positions='last'"
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


def _judged(
    config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase, data: Judgements
) -> list[Judged]:
    """Rows as token ids, with their margins or labels."""
    prompts = [row.prompt for row in data]
    default: Truncation = "prompt-start" if config.objective == "bradley-terry" else "response-end"
    encoded = partial(
        encoded_texts,
        tokenizer,
        prompts,
        append_eos=config.append_eos,
        max_length=config.max_length,
        truncation=config.truncation or default,
    )
    pairs = [row for row in data if isinstance(row, PreferencePair)]
    if pairs:
        chosen = encoded([pair.chosen for pair in pairs])
        rejected = encoded([pair.rejected for pair in pairs])
        margins = [pair.margin for pair in pairs]
        return [
            Judged(both, margin)
            for both, margin in zip(zip(chosen, rejected, strict=True), margins, strict=True)
        ]
    labelled = [row for row in data if isinstance(row, LabelledResponse)]
    rows = encoded([row.response for row in labelled])
    return [Judged((row,), float(one.label)) for row, one in zip(rows, labelled, strict=True)]


def _trained(
    config: TrainRewardModelConfig, model: PreTrainedModel, judged: list[Judged], folder: Path
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    adapted = model
    if config.lora_rank:
        adapted = lora_model(model, rank=config.lora_rank, alpha=config.lora_alpha)
    arguments = training_arguments(
        config, folder, examples=len(judged), learning_rate=config.learning_rate
    )
    arguments.train_sampling_strategy = "group_by_length"
    pad_id = int(model.config.pad_token_id)

    def batch(rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        some = [judged[row["row"]] for row in rows]
        return reward_batch(some, pad_id=pad_id, positions=config.positions)

    trainer = RewardTrainer(
        model=PrefixScorer(adapted),
        args=arguments,
        train_dataset=Dataset.from_dict(
            {"row": list(range(len(judged))), "length": [len(one) for one in judged]}
        ),
        data_collator=batch,
        objective=config.objective,
        centering=config.center_rewards_coefficient,
        log_file=folder / "metrics.jsonl",
    )
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    tokens = config.epochs * sum(len(row) for one in judged for row in one.responses)
    metrics = {
        "train_loss": loss,
        "train_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
    return adapted.merge_and_unload() if config.lora_rank else model, metrics


def _accuracy(
    config: TrainRewardModelConfig, model: PreTrainedModel, judged: list[Judged]
) -> list[dict[str, float | int]]:
    """Accuracy on held-out data by the fraction of the response seen."""
    rows = [row for side in zip(*(one.responses for one in judged), strict=True) for row in side]
    scores = fraction_scores(
        model,
        rows,
        pad_id=int(model.config.pad_token_id),
        batch_size=2 * config.batch_size,
        context=autocast(config, model.device),
    )
    if config.objective == "bradley-terry":
        return pair_accuracy_by_fraction(*scores.chunk(2))
    return label_accuracy_by_fraction(scores, torch.tensor([one.target for one in judged]))


def _report(rows: list[dict[str, float | int]], folder: Path) -> None:
    write_atomically(folder / "prefix_accuracy.json", json.dumps(rows, indent=2) + "\n")
    plot_prefix_accuracy(rows, folder / "prefix_accuracy.png")
    table = Table("response seen", "accuracy", "rows", title="held-out accuracy")
    for row in rows:
        table.add_row(f"{row['fraction']:.0%}", f"{row['accuracy']:.3f}", str(row["count"]))
    Console().print(table)
