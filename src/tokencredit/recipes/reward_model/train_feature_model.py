"""Train a reward model of features that a function counts: `tokencredit train-feature-model`.

    tokencredit train-feature-model --data pairs.jsonl --features my_module:of --output rm

A few numbers about a text, and a few hundred pairs, are enough where it is known what matters
(OpinPref). The folder is then a reward like any other.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokencredit.errors import ConfigError, DataError
from tokencredit.evaluation.pair_scores import pair_outcomes, wilson_interval
from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.preference.pairs import PreferencePair
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.reward_model.pair_columns import PairColumns
from tokencredit.recipes.run.left_out import require_some, tell_left_out
from tokencredit.recipes.run.run_folder import open_run_folder, require_same_run, write_atomically
from tokencredit.recipes.settings import free_settings, group, setting
from tokencredit.reward_model.features import FeatureModel, fitted_feature_model
from tokencredit.scorers.feature_folders import FEATURE_FILE
from tokencredit.scorers.features import features_of
from tokencredit.scorers.functions import named_function, names_function


@dataclass(frozen=True)
class TrainFeatureModelConfig:
    """One model of features."""

    data: str
    """JSON-lines file, dataset folder or dataset id of pairs."""
    features: str
    """`module:function`, a Python function from lists of prompts and of responses to as many
    numbers for each."""
    output: str = setting(free=True)
    """Folder for `features.json`, which is the reward model, and `metrics.json`."""
    hidden: int = 0
    """Units of a hidden layer; 0 for a linear score: logistic regression on differences."""
    ridge: float = 1e-3
    """Price of the squares of weights, of features in standard deviations."""
    held_out: float = 0.2
    """Share of the pairs, drawn at random, that the accuracy is measured on; 0 for none."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    columns: PairColumns = group(PairColumns)
    seed: int = 0
    """Seed of the pairs that are held out, and of the first weights."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "ridge")
        require_at_least(self, 0, "hidden")
        if not names_function(self.features):
            raise ConfigError(f"features is {self.features!r}; expected `module:function`")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; expected a share from 0 to below 1")


def train_feature_model(config: TrainFeatureModelConfig) -> Path:
    """Train one model of features; an earlier one in the folder is replaced.

    Args:
        config: the settings.

    Returns:
        The folder.

    Raises:
        ConfigError: there is no such function.
        DataError: the data are not there, no pair can be used, or a feature is no finite number.
        RunFolderError: the folder holds something else, or cannot be written.
    """
    require_same_run(config.output, config, free=free_settings(type(config)))
    function = named_function(config.features)
    left_out = config.dataset.collecting()
    pairs = load_pairs(
        config.data,
        split=config.split,
        **config.columns.arguments,
        limit=config.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    require_some(pairs, left_out)
    prompts = [one.prompt for one in pairs]
    chosen, rejected = (
        features_of(function, prompts, texts, name=f"the function {config.features}")
        for texts in ([one.chosen for one in pairs], [one.rejected for one in pairs])
    )
    if chosen.shape != rejected.shape:
        raise DataError(
            f"the function {config.features} gives {chosen.shape[1]} features of the chosen and "
            f"{rejected.shape[1]} of the rejected answers; expected as many"
        )
    learnt, kept = _parts(config, pairs)
    model = fitted_feature_model(
        chosen[learnt], rejected[learnt],
        hidden=config.hidden, ridge=config.ridge, seed=config.seed,
    )  # fmt: skip
    leads = model.scores(chosen) - model.scores(rejected)
    found = {
        "pairs": len(learnt),
        "accuracy": _accuracy(leads[learnt]),
        "held_out_pairs": len(kept),
        "held_out_accuracy": _accuracy(leads[kept]) if len(kept) else None,
        "weights": _weights(model),
    }
    folder = open_run_folder(config.output, config, free=free_settings(type(config)))
    tell_left_out(left_out, folder / "skipped.jsonl")
    write_atomically(folder / "metrics.json", json.dumps(found, indent=2) + "\n")
    values = {"function": config.features, "model": json.loads(model.as_json())}
    write_atomically(folder / FEATURE_FILE, json.dumps(values) + "\n")
    print(f"model of {chosen.shape[1]} features: {folder}")
    return folder


def _parts(
    config: TrainFeatureModelConfig, pairs: list[PreferencePair]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs are learnt from, and which are held out."""
    count = int(config.held_out * len(pairs))
    if count >= len(pairs):
        raise DataError(f"there are {len(pairs)} pairs; expected one to learn from at least")
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(pairs), generator=generator)
    return order[count:].sort().values, order[:count].sort().values


def _accuracy(leads: torch.Tensor) -> dict[str, float]:
    outcomes = pair_outcomes(leads, torch.zeros_like(leads)).double()
    low, high = wilson_interval(float(outcomes.sum()), len(outcomes))
    return {"accuracy": float(outcomes.mean()), "low": low, "high": high}


def _weights(model: FeatureModel) -> list[float] | None:
    """Weights of the features in standard deviations; None where the score is not linear."""
    only: Any = model.layers[0][0].tolist()
    return only if len(model.layers) == 1 else None
