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
`bootstrap_lambda` is 0.

The Trainer of transformers does the training, batches hold rows of like length, padded on the
right. Dropout is off. The accuracy on held-out data by the fraction of the response that has been
seen stands in `prefix_accuracy.json` and `prefix_accuracy.png`, and how far probabilities or
ratings can be taken at their word in `calibration.json` and `calibration.png`.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.errors import ConfigError
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loading import (
    disable_dropout,
    load_model,
    load_tokenizer,
    lora_model,
    quiet_transformers,
    require_pad_token,
)
from tokencredit.preference.hf_datasets import (
    load_labelled_responses,
    load_pairs,
    load_rated_responses,
)
from tokencredit.preference.pairs import LabelledResponse, PreferencePair, RatedResponse
from tokencredit.recipes.reward_model.examples import (
    Judged,
    example_columns,
    filler_id,
    in_standard_deviations,
    judged_beginning,
    judged_rows,
    reading,
    require_an_order,
    reward_batch,
    scale_scores,
)
from tokencredit.recipes.reward_model.objectives import RewardTrainer, reward_loss
from tokencredit.recipes.reward_model.report import (
    held_out_metrics,
    held_out_rows_by_fraction,
    write_report,
)
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
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
from tokencredit.scorers.fractions import PrefixScorer

__all__ = ["TrainRewardModelConfig", "train_reward_model"]

Judgements = list[PreferencePair] | list[LabelledResponse] | list[RatedResponse]


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
    data, eval_data = _judgements(config)
    set_seed(config.seed)
    model, tokenizer = _start(config)
    judged = judged_rows(config, tokenizer, data)
    eval_judged = judged_rows(config, tokenizer, eval_data) if eval_data else []
    if config.objective == "regression":
        judged = in_standard_deviations(model, judged)
        require_an_order(eval_judged)
    with supervised_run(config) as folder:
        model, metrics = _trained(config, model, tokenizer, judged, folder)
        if eval_judged:
            rows = _held_out(config, model, tokenizer, eval_judged)
            metrics |= held_out_metrics(rows)
            write_report(rows, folder, objective=config.objective)
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
    if config.objective == "regression":
        return load_rated_responses(
            data,
            split=split,
            text_column=config.text_column,
            rating_column=config.rating_column,
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
        strength_column=config.strength_column,
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
    if config.positions not in ("last", "pairs") and not is_causal(model):
        raise ConfigError(
            f"positions is {config.positions!r} and {type(model).__name__} reads in both "
            "directions, so that prefixes have no score of their own; expected a causal model, or "
            "positions='last' (with pairs also 'pairs')"
        )
    if config.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": config.pad_token})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = require_pad_token(tokenizer)
    # Scoring code elsewhere can see from it whether complete answers carry an end of sequence.
    model.config.eos_appended = config.append_eos
    for name in ("rating_mean", "rating_standard_deviation", "score_segments"):
        vars(model.config).pop(name, None)  # of the training before this one
    if config.positions == "segments":
        # The score of a response is the mean at these ends, not what stands at its last token.
        model.config.score_segments = config.segments
        model.config.score_segment_length = config.segment_length
    tokenizer.padding_side = "right"
    require_context(model, tokenizer, config.max_length)
    disable_dropout(model)
    return model, tokenizer


def _trained(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judged: list[Judged],
    folder: Path,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    adapted = model
    if config.lora_rank:
        adapted = lora_model(model, rank=config.lora_rank, alpha=config.lora_alpha)
    filler, causal = filler_id(config, tokenizer), is_causal(model)
    columns = example_columns(judged, config, filler=filler, causal=causal)
    tokens = config.epochs * sum(columns.pop("tokens"))
    arguments = training_arguments(
        config, folder, examples=len(columns["row"]), learning_rate=config.learning_rate
    )
    arguments.train_sampling_strategy = "group_by_length"
    pad_id, read_at = int(model.config.pad_token_id), reading(config, tokenizer)

    def batch(rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        some = [
            judged_beginning(
                judged[example["row"]],
                example["prefix"],
                filler=filler,
                max_length=config.max_length,
                causal=causal,
            )
            for example in rows
        ]
        return reward_batch(some, pad_id=pad_id, read_at=read_at)

    trainer = RewardTrainer(
        model=PrefixScorer(adapted),
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        data_collator=batch,
        loss=partial(
            reward_loss,
            objective=config.objective,
            positions=config.positions,
            centering=config.center_rewards_coefficient,
            bootstrap_lambda=config.bootstrap_lambda,
        ),
        log_file=folder / "metrics.jsonl",
    )
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    metrics = {
        "train_loss": loss,
        "train_examples": float(len(columns["row"])),
        "train_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
    trained = adapted.merge_and_unload() if config.lora_rank else model
    if config.objective == "regression":
        scale_scores(trained, trained.config.rating_standard_deviation)
    return trained, metrics


def _held_out(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judged: list[Judged],
) -> list[dict[str, Any]]:
    """Accuracy and calibration on held-out data by the fraction of the response seen."""
    return held_out_rows_by_fraction(
        model,
        judged,
        objective=config.objective,
        rating_mean=getattr(model.config, "rating_mean", 0.0),
        batch_size=2 * config.batch_size,
        context=autocast(config, model.device),
        segment_ends=reading(config, tokenizer) if config.positions == "segments" else None,
    )
