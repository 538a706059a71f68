"""Train a reward model that scores the whole vocabulary in one pass, for guided decoding.

    tokencredit train-vocabulary-reward --data pairs.jsonl --model lm --output guide

The model is a language model before and after; what its logits mean is learnt. `farma` follows
Rashid et al. 2025 (arXiv 2502.04517): logit v is the value of the text with v after it, learnt in
turns from pairs of whole responses and from the constraint that a prefix is worth as much as its
best continuation. `genarm` follows Xu et al. 2024 (arXiv 2410.08193): log-probabilities are rewards
and their sum over a response obeys Bradley-Terry. `cd-fudge` follows Mudgal et al. 2023 (arXiv
2310.17022): logit v is the mean outcome of the texts that go on with v; `cd-q`, of the same paper,
learns it from what a frozen policy makes of each prefix with its own next token.

Departures: (1) values are read at the last real token and not in the last column of the batch;
(2) one pass gives all prefixes of a response, of which FaRMA's published code makes an example
each; (3) a turn of the constraint sees all prefixes of the training data, not 8,000 drawn ones;
(4) responses end with the end of sequence, whose value is learnt too; (5) the model trains from one
learning rate for all turns, a cosine in each, dropout off.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.evaluation.prefix_accuracy import (
    pair_accuracy_by_fraction,
    rating_accuracy_by_fraction,
)
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.preference.hf_datasets import load_pairs, load_rated_responses
from tokencredit.preference.pairs import JudgedResponse, PreferencePair
from tokencredit.recipes.reward_model.causal_settings import TrainVocabularyRewardConfig
from tokencredit.recipes.reward_model.examples import (
    JudgedRow,
    Judgement,
    judged_rows,
    judgement_text,
    require_an_order,
    standardised_rows,
)
from tokencredit.recipes.reward_model.pair_data import (
    different_pairs,
    read_pairs,
    read_responses,
)
from tokencredit.recipes.reward_model.report import write_prefix_accuracy
from tokencredit.recipes.reward_model.vocabulary_turns import TURNS, ended_row, train_turns
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.shown_reading import shown_example
from tokencredit.recipes.training.arguments import training_device
from tokencredit.recipes.training.models import (
    language_model_to_train,
    reading_to_train,
    with_adapters,
    without_adapters,
)
from tokencredit.recipes.training.supervised import (
    Source,
    autocast,
    encoded_sides,
    finished_run,
    supervised_run,
    train_and_held_out,
    write_results,
)
from tokencredit.scorers.hf_implicit import loaded_reference
from tokencredit.scorers.hf_vocabulary import vocabulary_fraction_scores
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, read_response

__all__ = ["TrainVocabularyRewardConfig", "train_vocabulary_reward"]


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
    data, eval_data, left_out = train_and_held_out(
        config, partial(_load, config), text=judgement_text
    )
    set_seed(config.seed)
    model, tokenizer = _model_to_train(config)
    reading = reading_to_train(model, tokenizer, config.reading)
    encode = partial(_judged_rows, config, reading)
    encoded, eval_rows = encoded_sides(config, encode, data, eval_data, left_out)
    rows = different_pairs(encoded, attrgetter("responses"))
    eval_rows = different_pairs(eval_rows, attrgetter("responses"), held_out=True)
    equal = float(len(encoded) - len(rows))
    first = rows[0].responses[0]
    print(shown_example(reading, first, counted=read_response(first)))
    policy = _policy(config, tokenizer)
    if config.learns_outcomes:
        rows = standardised_rows(model, _separate_rows(rows))
        if config.columns.rating is not None:
            require_an_order(eval_rows)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        pad_id = int(tokenizer.pad_token_id)
        model, metrics = _train(config, model, policy, rows, eval_rows, folder, pad_id)
        if config.columns.rating is None:
            metrics["equal_pairs"] = equal
        if eval_rows:
            by_fraction = _accuracy_rows(config, model, eval_rows, pad_id)
            metrics["held_out_accuracy"] = float(by_fraction[-1]["accuracy"])
            write_prefix_accuracy(by_fraction, folder)
        write_results(model, tokenizer, metrics, folder, name="reward model over the vocabulary")
    return folder


def _load(config: TrainVocabularyRewardConfig, source: Source) -> Sequence[Judgement]:
    """Pairs, or with a column of ratings rated texts."""
    columns = config.columns
    if columns.rating is not None:
        return load_rated_responses(
            **vars(source),
            text_column=columns.text,
            rating_column=columns.rating,
            prompt_column=columns.prompt,
            limit=config.limit,
        )
    return load_pairs(
        **vars(source),
        prompt_column=columns.prompt,
        chosen_column=columns.chosen,
        rejected_column=columns.rejected,
        limit=config.limit,
    )


def _model_to_train(
    config: TrainVocabularyRewardConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, its configuration saying what it becomes; its tokenizer."""
    model, tokenizer = language_model_to_train(
        config.model, config.loading, max_length=config.max_length, lora=config.lora
    )
    for name in ("rating_mean", "rating_standard_deviation", "reward_beta"):
        vars(model.config).pop(name, None)  # of the training before this one
    model.config.vocabulary_objective = config.objective
    if config.objective == "genarm":
        model.config.reward_beta = config.reward_beta
    return model, tokenizer


def _policy(
    config: TrainVocabularyRewardConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | None:
    """The frozen model whose next tokens are averaged over, where one is."""
    if config.frozen_policy is None:
        return None
    return loaded_reference(
        config.frozen_policy,
        tokenizer,
        argument="policy",
        **config.loading.of_frozen,
        device=training_device(config),
    ).requires_grad_(False)


def _judged_rows(
    config: TrainVocabularyRewardConfig,
    reading: Reading,
    data: Sequence[Judgement],
) -> list[JudgedRow]:
    """Rows as token ids, with their ratings, or with the margin that all pairs have."""
    how: dict[str, Any] = {
        "max_length": config.max_length,
        "truncation": config.truncation,
    }
    ended = partial(ended_row, turn_ends=reading.turn_ends)

    def encode(rows: Sequence[JudgedResponse]) -> list[EncodedText]:
        return [ended(row) for row in read_responses(reading, rows, **how)]

    def encode_pairs(pairs: Sequence[PreferencePair]) -> list[tuple[EncodedText, EncodedText]]:
        return [(ended(one), ended(other)) for one, other in read_pairs(reading, pairs, **how)]

    rows = judged_rows(data, encode, encode_pairs)
    if config.columns.rating is not None:
        return rows
    return [replace(one, target=config.margin) for one in rows]


def _separate_rows(rows: list[JudgedRow]) -> list[JudgedRow]:
    """The sides of pairs as rows of their own, 1 for the chosen and 0 for the other."""
    return [
        JudgedRow((text,), float(side == 0)) if len(one.responses) == 2 else one
        for one in rows
        for side, text in enumerate(one.responses)
    ]


def _train(
    config: TrainVocabularyRewardConfig,
    model: PreTrainedModel,
    policy: PreTrainedModel | None,
    rows: list[JudgedRow],
    eval_rows: list[JudgedRow],
    folder: Path,
    pad_id: int,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took: the last loss of each kind."""
    adapted = with_adapters(model, config.lora, task_type="CAUSAL_LM")

    def evaluate() -> dict[str, float]:
        by_fraction = _accuracy_rows(config, pretrained_model(adapted), eval_rows, pad_id)
        return {"held_out_accuracy": float(by_fraction[-1]["accuracy"])}

    took = train_turns(
        config,
        adapted,
        TURNS[config.objective](config, policy),
        rows,
        folder,
        pad_id=pad_id,
        evaluate=evaluate if eval_rows else None,
    )
    unrounded = replace(config, lora=replace(config.lora, quantization=None))
    whole = without_adapters(
        adapted, config.lora, lambda: _model_to_train(unrounded)[0], task_type="CAUSAL_LM"
    )
    return whole, took


def _accuracy_rows(
    config: TrainVocabularyRewardConfig, model: PreTrainedModel, rows: list[JudgedRow], pad_id: int
) -> list[dict[str, float | int]]:
    """Accuracy on held-out data by the fraction of the response seen."""
    scores = vocabulary_fraction_scores(
        model,
        [row for side in zip(*(one.responses for one in rows), strict=True) for row in side],
        method=config.objective,
        over_tokens=config.over_tokens,
        pad_id=pad_id,
        batch_size=config.training.batch_size,
        context=autocast(config.training, model.device),
    )
    if config.columns.rating is None:
        return pair_accuracy_by_fraction(*scores.chunk(2))
    return rating_accuracy_by_fraction(scores, torch.tensor([one.target for one in rows]))
