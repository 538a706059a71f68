"""Train a language model whose log-ratio to its start is a reward: DPO, forward and reversed.

    tokencredit train-implicit-reward --data pairs.jsonl --model lm --output dpo

The trained model and its start together score every token of a response, `dpo_beta` times the
difference of their log-probabilities, and the sum over a response is the implicit reward of
Rafailov et al. 2023 (arXiv 2305.18290). `direction: reversed` swaps the sides of every pair: such a
model learns what to avoid, and AlignDistil (arXiv 2503.02832) holds it against the forward one.

TRL's DPOTrainer does the training (`pip install 'tokencredit[trl]'`). Departures from its defaults:
(1) prompt and response are tokenized as in the rest of the package, together and as one text, and
rows that are too long lose the start of the prompt first; (2) a batch holds rows of like length;
(3) a cosine takes the learning rate to 0. The configuration of the trained model says what belongs
to it: `dpo_reference`, `dpo_beta`, `dpo_direction`.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.errors import ConfigError
from tokencredit.evaluation.prefix_accuracy import pair_accuracy_by_fraction
from tokencredit.models.hf_loading import lora_config, merged_model
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.left_out import encodable, tell_left_out
from tokencredit.recipes.reward_model.causal_settings import TrainImplicitRewardConfig
from tokencredit.recipes.reward_model.pair_data import training_pairs
from tokencredit.recipes.reward_model.report import write_prefix_accuracy
from tokencredit.recipes.supervised import (
    autocast,
    finished_run,
    language_model_to_train,
    lasting_name,
    supervised_run,
    write_results,
)
from tokencredit.recipes.trainer import train, training_arguments
from tokencredit.scorers.implicit import implicit_fraction_scores, loaded_reference
from tokencredit.text.hf_token_rows import EncodedText, encoded_texts

__all__ = ["TrainImplicitRewardConfig", "train_implicit_reward"]

Rows = list[tuple[EncodedText, EncodedText]]


def train_implicit_reward(config: TrainImplicitRewardConfig) -> Path:
    """Train one model by DPO; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `prefix_accuracy.json` and `.png` (the share of
        held-out pairs of which the side that was trained to win has the higher implicit reward),
        `metrics.json`, `metrics.jsonl`, `config.yaml`.

    Raises:
        ConfigError: TRL or PEFT is needed and not installed, or the model is too short for
            `max_length`.
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there, or the reference has another vocabulary.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    _require_trl()
    adapter = _adapter(config)
    pairs, eval_pairs, left_out = _pairs(config)
    set_seed(config.seed)
    model, tokenizer = _model_to_train(config)
    train_rows, eval_rows = (
        encodable(partial(_encoded_pairs, config, tokenizer), some, left_out)
        for some in (pairs, eval_pairs)
    )
    reference = None if adapter is not None else _reference(config, tokenizer)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        model, metrics = _train(config, model, reference, tokenizer, train_rows, folder, adapter)
        if eval_rows:
            reference = reference or _reference(config, tokenizer).to(model.device)
            rows = _accuracy_rows(config, model, reference, tokenizer, eval_rows)
            metrics["held_out_accuracy"] = rows[-1]["accuracy"]
            write_prefix_accuracy(rows, folder)
        write_results(model, tokenizer, metrics, folder, name="implicit reward")
    return folder


def _require_trl() -> None:
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "train-implicit-reward needs TRL, which is not installed; expected it: "
            "pip install 'tokencredit[trl]'"
        ) from error


def _adapter(config: TrainImplicitRewardConfig) -> Any:
    """The LoRA configuration, or None."""
    if not config.lora.rank:
        return None
    return lora_config(rank=config.lora.rank, alpha=config.lora.alpha, task_type="CAUSAL_LM")


def _pairs(
    config: TrainImplicitRewardConfig,
) -> tuple[list[PreferencePair], list[PreferencePair], list[LeftOut] | None]:
    """What to train on and what is held out, the side that shall win first; rows left out."""
    *both, left_out = training_pairs(config)
    if config.direction == "reversed":
        both = [[_swapped_pair(pair) for pair in pairs] for pairs in both]
    return both[0], both[1], left_out


def _swapped_pair(pair: PreferencePair) -> PreferencePair:
    return PreferencePair(pair.prompt, pair.rejected, pair.chosen)


def _model_to_train(
    config: TrainImplicitRewardConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, and its tokenizer."""
    model, tokenizer = language_model_to_train(
        config.model, config.loading, max_length=config.max_length
    )
    model.config.dpo_reference = lasting_name(config.reference or config.model)
    model.config.dpo_beta = config.dpo_beta
    model.config.dpo_direction = config.direction
    model.config.eos_appended = config.append_eos
    return model, tokenizer


def _reference(
    config: TrainImplicitRewardConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return loaded_reference(config.reference or config.model, tokenizer, **config.loading.of_frozen)


def _encoded_pairs(
    config: TrainImplicitRewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[PreferencePair],
) -> Rows:
    sides = [
        encoded_texts(
            tokenizer,
            [pair.prompt for pair in pairs],
            responses,
            append_eos=config.append_eos,
            max_length=config.max_length,
            truncation=config.truncation,
        )
        for responses in (
            [pair.chosen for pair in pairs],
            [pair.rejected for pair in pairs],
        )
    ]
    return list(zip(*sides, strict=True))


def _train(
    config: TrainImplicitRewardConfig,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    folder: Path,
    adapter: Any,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    from tokencredit.recipes.reward_model.trl_implicit_reward import implicit_reward_trainer

    tokens = config.training.epochs * sum(len(row) for pair in rows for row in pair)
    with warnings.catch_warnings():  # TRL asks transformers for a name that it will lose
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        trainer = implicit_reward_trainer(
            model,
            reference,
            tokenizer,
            rows,
            arguments=training_arguments(config, folder, examples=len(rows)),
            dpo_beta=config.dpo_beta,
            log_file=folder / "metrics.jsonl",
            adapter=adapter,
        )
        metrics = train(trainer, tokens=tokens)
    return model if adapter is None else merged_model(trainer.model), metrics


def _accuracy_rows(
    config: TrainImplicitRewardConfig,
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
) -> list[dict[str, float | int]]:
    """Accuracy on held-out pairs by the fraction of the response seen."""
    scores = implicit_fraction_scores(
        model,
        reference,
        [row for side in zip(*rows, strict=True) for row in side],
        dpo_beta=config.dpo_beta,
        pad_id=int(tokenizer.pad_token_id),
        batch_size=2 * config.training.batch_size,
        context=autocast(config.training, model.device),
    )
    return pair_accuracy_by_fraction(*scores.chunk(2))
