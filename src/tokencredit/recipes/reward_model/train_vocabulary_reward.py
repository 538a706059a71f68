"""Train a reward model that scores the whole vocabulary in one pass, for guided decoding.

    tokencredit train-vocabulary-reward --data pairs.jsonl --model lm --output guide

The model is a language model before and after; what its logits mean is learnt. `farma` follows
Rashid et al. 2025 (arXiv 2502.04517): logit v is the value of the text with v behind it, learnt in
turns from pairs of whole responses and from the constraint that a prefix is worth as much as its
best continuation. `genarm` follows Xu et al. 2024 (arXiv 2410.08193): log-probabilities are rewards
and their sum over a response obeys Bradley-Terry. `cd-fudge` follows Mudgal et al. 2023 (arXiv
2310.17022): logit v is the mean outcome of the texts that go on with v.

Departures: (1) values are read at the last real token and not in the last column of the batch;
(2) one pass gives all prefixes of a response, of which FaRMA's published code makes an example
each; (3) a turn of the constraint sees all prefixes of the training data, not 8,000 drawn ones;
(4) responses end with the end of sequence, whose value is learnt too; (5) the model trains from one
learning rate for all turns, a cosine in each, dropout off.
"""

import json
import time
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.evaluation.plots import plot_prefix_accuracy
from tokencredit.evaluation.prefix_accuracy import (
    pair_accuracy_by_fraction,
    rating_accuracy_by_fraction,
)
from tokencredit.preference.hf_datasets import load_rated_responses
from tokencredit.preference.pairs import PreferencePair, RatedResponse
from tokencredit.recipes.reward_model.evaluation_report import fraction_table
from tokencredit.recipes.reward_model.examples import (
    Judged,
    in_standard_deviations,
    require_an_order,
)
from tokencredit.recipes.reward_model.settings import TrainVocabularyRewardConfig
from tokencredit.recipes.reward_model.vocabulary_turns import (
    adapted_model,
    ended_row,
    trained_turn,
    turns,
)
from tokencredit.recipes.run_folder import write_atomically
from tokencredit.recipes.supervised import (
    autocast,
    finished_run,
    held_out_rows,
    language_model_to_train,
    supervised_run,
    training_pairs,
    write_model,
)
from tokencredit.scorers.vocabulary import vocabulary_fraction_scores
from tokencredit.text.hf_token_rows import EncodedText, encoded_texts

__all__ = ["TrainVocabularyRewardConfig", "train_vocabulary_reward"]

Rows = list[PreferencePair] | list[RatedResponse]


def train_vocabulary_reward(config: TrainVocabularyRewardConfig) -> Path:
    """Train one reward model over the vocabulary; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `prefix_accuracy.json` and `.png` (the share of
        held-out pairs whose preferred side scores higher, by the part that has been seen),
        `metrics.json`, `metrics.jsonl`, `config.yaml`.

    Raises:
        ConfigError: PEFT is needed and not installed, or the model is too short for `max_length`.
        DataError: the data are not there, are empty, all rated alike, or a row does not fit.
        ModelError: a model or tokenizer is not there or lacks what is needed.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    data, eval_data = _rows(config)
    set_seed(config.seed)
    model, tokenizer = _start(config)
    judged = _judged(config, tokenizer, data)
    eval_judged = _judged(config, tokenizer, eval_data) if eval_data else []
    if config.objective == "cd-fudge":
        judged = in_standard_deviations(model, _apart(judged))
        if config.rating_column is not None:
            require_an_order(eval_judged)
    with supervised_run(config) as folder:
        model, metrics = _trained(config, model, judged, folder, int(tokenizer.pad_token_id))
        if eval_judged:
            rows = _accuracy(config, model, eval_judged, int(tokenizer.pad_token_id))
            metrics["held_out_accuracy"] = float(rows[-1]["accuracy"])
            write_atomically(folder / "prefix_accuracy.json", json.dumps(rows, indent=2) + "\n")
            plot_prefix_accuracy(rows, folder / "prefix_accuracy.png")
            Console().print(fraction_table(rows, title="held-out accuracy"))
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_model(model, tokenizer, folder)
    print("  ".join(f"{name} {value:,.6g}" for name, value in metrics.items()))
    print(f"reward model over the vocabulary: {folder}")
    return folder


def _rows(config: TrainVocabularyRewardConfig) -> tuple[Rows, Rows]:
    """What to train on and what is held out."""
    if config.rating_column is None:
        return training_pairs(config)
    rated = _rated(config, config.data, config.split)
    if config.eval_data is not None:
        return rated, _rated(config, config.eval_data, config.eval_split or config.split)
    train, held_out = held_out_rows(
        [row.prompt for row in rated],
        [row.response for row in rated],
        fraction=config.held_out,
        seed=config.seed,
    )
    return [rated[i] for i in train], [rated[i] for i in held_out]


def _rated(config: TrainVocabularyRewardConfig, data: str, split: str) -> list[RatedResponse]:
    return load_rated_responses(
        data,
        split=split,
        text_column=config.text_column,
        rating_column=str(config.rating_column),
        prompt_column=config.prompt_column,
        limit=config.limit,
    )


def _start(
    config: TrainVocabularyRewardConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, its configuration saying what it becomes; its tokenizer."""
    model, tokenizer = language_model_to_train(config)
    for name in ("rating_mean", "rating_standard_deviation", "reward_beta"):
        vars(model.config).pop(name, None)  # of the training before this one
    model.config.vocabulary_objective = config.objective
    if config.objective == "genarm":
        model.config.reward_beta = config.reward_beta
    model.config.eos_appended = config.append_eos
    return model, tokenizer


def _judged(
    config: TrainVocabularyRewardConfig, tokenizer: PreTrainedTokenizerBase, data: Rows
) -> list[Judged]:
    """Rows as token ids, with their margins or ratings; pairs hold both sides."""
    pairs = [row for row in data if isinstance(row, PreferencePair)]
    rated = [row for row in data if isinstance(row, RatedResponse)]
    if rated:
        rows = _encoded(config, tokenizer, rated, [row.response for row in rated])
        return [Judged((row,), one.rating) for row, one in zip(rows, rated, strict=True)]
    sides = (
        _encoded(config, tokenizer, pairs, [pair.chosen for pair in pairs]),
        _encoded(config, tokenizer, pairs, [pair.rejected for pair in pairs]),
    )
    return [Judged(both, config.margin) for both in zip(*sides, strict=True)]


def _encoded(
    config: TrainVocabularyRewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    data: list[PreferencePair] | list[RatedResponse],
    responses: list[str],
) -> list[EncodedText]:
    rows = encoded_texts(
        tokenizer,
        [row.prompt for row in data],
        responses,
        append_eos=config.append_eos,
        max_length=config.max_length,
        truncation=config.truncation,
    )
    return [ended_row(row, tokenizer.eos_token_id) for row in rows]


def _apart(judged: list[Judged]) -> list[Judged]:
    """The sides of pairs as rows of their own, 1 for the chosen and 0 for the other."""
    return [
        Judged((text,), float(side == 0)) if len(one.responses) == 2 else one
        for one in judged
        for side, text in enumerate(one.responses)
    ]


def _trained(
    config: TrainVocabularyRewardConfig,
    model: PreTrainedModel,
    judged: list[Judged],
    folder: Path,
    pad_id: int,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took: the last loss of each kind."""
    adapted = model
    if config.lora_rank:
        adapted = adapted_model(model, rank=config.lora_rank, alpha=config.lora_alpha)
    losses: dict[str, float] = {}
    tokens = 0.0
    start = time.perf_counter()
    for number, turn in enumerate(turns(config), start=1):
        loss, read = trained_turn(
            config, adapted, turn, judged, folder, number=number, pad_id=pad_id
        )
        losses[f"{turn.name}_loss"] = loss
        tokens += config.epochs * read
    seconds = time.perf_counter() - start
    took = {"train_tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
    return adapted.merge_and_unload() if config.lora_rank else model, losses | took


def _accuracy(
    config: TrainVocabularyRewardConfig, model: PreTrainedModel, judged: list[Judged], pad_id: int
) -> list[dict[str, float | int]]:
    """Accuracy on held-out data by the fraction of the response seen."""
    scores = vocabulary_fraction_scores(
        model,
        [row for side in zip(*(one.responses for one in judged), strict=True) for row in side],
        method=config.objective,
        over_tokens=config.over_tokens,
        pad_id=pad_id,
        batch_size=2 * config.batch_size,
        context=autocast(config, model.device),
    )
    if config.rating_column is None:
        return pair_accuracy_by_fraction(*scores.chunk(2))
    return rating_accuracy_by_fraction(scores, torch.tensor([one.target for one in judged]))
