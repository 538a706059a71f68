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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.errors import ConfigError
from tokencredit.evaluation.prefix_accuracy import pair_accuracy_by_fraction
from tokencredit.models.hf_adapters import lora_config
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.reward_model.causal_settings import TrainImplicitRewardConfig
from tokencredit.recipes.reward_model.pair_data import different_pairs, read_pairs, training_pairs
from tokencredit.recipes.reward_model.report import write_prefix_accuracy
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.shown_reading import shown_example
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.models import (
    language_model_to_train,
    lasting_name,
    reading_to_train,
    without_adapters,
)
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.supervised import (
    autocast,
    encoded_sides,
    finished_run,
    supervised_run,
    write_results,
)
from tokencredit.recipes.training.trainer import train
from tokencredit.scorers.hf_implicit import implicit_fraction_scores, loaded_reference
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, read_response

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
    reading = reading_to_train(model, tokenizer, config.reading)
    encode = partial(_encoded_pairs, config, reading)
    encoded, eval_rows = encoded_sides(config, encode, pairs, eval_pairs, left_out)
    train_rows = different_pairs(encoded, tuple)
    eval_rows = different_pairs(eval_rows, tuple, held_out=True)
    first = train_rows[0][0]
    print(shown_example(reading, first, counted=read_response(first)))
    reference = None if adapter is not None else _reference(config, tokenizer)
    judge = _Judge(config, tokenizer, eval_rows, reference)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        model, metrics = _train(
            config, model, reference, tokenizer, train_rows, folder, adapter, judge
        )
        metrics["equal_pairs"] = float(len(encoded) - len(train_rows))
        if eval_rows:
            rows = judge(model)
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
    lora = config.lora
    return lora_config(
        rank=lora.rank,
        alpha=lora.alpha,
        task_type="CAUSAL_LM",
        target_modules=lora.target_modules,
        dropout=lora.dropout,
    )


def _pairs(
    config: TrainImplicitRewardConfig,
) -> tuple[list[PreferencePair], list[PreferencePair], list[LeftOut] | None]:
    """What to train on and what is held out, the side that shall win first; rows left out."""
    *both, left_out = training_pairs(config)
    if config.direction == "reversed":
        both = [[_swapped_pair(pair) for pair in pairs] for pairs in both]
    return both[0], both[1], left_out


def _swapped_pair(pair: PreferencePair) -> PreferencePair:
    return PreferencePair(pair.prompt, pair.rejected, pair.chosen, ended=pair.ended[::-1])


def _model_to_train(
    config: TrainImplicitRewardConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, dropout off, and its tokenizer."""
    model, tokenizer = language_model_to_train(
        config.model, config.loading, max_length=config.max_length, lora=config.lora
    )
    model.config.dpo_reference = lasting_name(config.reference or config.model)
    model.config.dpo_beta = config.dpo_beta
    model.config.dpo_direction = config.direction
    return model, tokenizer


def _reference(
    config: TrainImplicitRewardConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return loaded_reference(config.reference or config.model, tokenizer, **config.loading.of_frozen)


def _encoded_pairs(
    config: TrainImplicitRewardConfig,
    reading: Reading,
    pairs: list[PreferencePair],
) -> Rows:
    return read_pairs(reading, pairs, max_length=config.max_length, truncation=config.truncation)


def _train(
    config: TrainImplicitRewardConfig,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    folder: Path,
    adapter: Any,
    judge: "_Judge",
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The trained model, adapters merged, and what it took."""
    from tokencredit.recipes.reward_model.trl_implicit_reward import implicit_reward_trainer

    def evaluate() -> dict[str, float]:
        rows = judge(pretrained_model(trainer.model))
        return {"held_out_accuracy": float(rows[-1]["accuracy"])}

    run = TrainingRun.of(config, folder, evaluate if judge.rows else None)
    with warnings.catch_warnings():  # TRL asks transformers for a name that it will lose
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        trainer = implicit_reward_trainer(
            model,
            reference,
            tokenizer,
            rows,
            arguments=training_arguments(config, folder, examples=len(rows)),
            dpo_beta=config.dpo_beta,
            run=run,
            adapter=adapter,
        )
        metrics = train(trainer, tokens=sum(len(row) for pair in rows for row in pair))
    unrounded = replace(config, lora=replace(config.lora, quantization=None))
    whole = without_adapters(
        trainer.model, config.lora, lambda: _model_to_train(unrounded)[0], task_type="CAUSAL_LM"
    )
    return whole, metrics


@dataclass
class _Judge:
    """Accuracy on held-out pairs by the fraction of the response seen.

    With adapters the reference is loaded when it is first needed.
    """

    config: TrainImplicitRewardConfig
    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    reference: PreTrainedModel | None

    def __call__(self, model: PreTrainedModel) -> list[dict[str, float | int]]:
        if self.reference is None:
            self.reference = _reference(self.config, self.tokenizer).to(model.device)
        scores = implicit_fraction_scores(
            model,
            self.reference,
            [row for side in zip(*self.rows, strict=True) for row in side],
            dpo_beta=self.config.dpo_beta,
            pad_id=int(self.tokenizer.pad_token_id),
            batch_size=self.config.training.batch_size,
            context=autocast(self.config.training, model.device),
        )
        return pair_accuracy_by_fraction(*scores.chunk(2))
