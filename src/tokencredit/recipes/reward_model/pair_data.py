"""Judged answers as a model reads them; pairs to learn from, and those that say nothing."""

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from tokencredit.errors import DataError, TokenCreditWarning
from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.preference.pairs import JudgedResponse, PreferencePair
from tokencredit.recipes.judge.settings import TrainJudgeConfig
from tokencredit.recipes.reward_model.causal_settings import (
    TrainImplicitRewardConfig,
    TrainRewriterConfig,
)
from tokencredit.recipes.reward_model.gate_settings import TrainGateConfig
from tokencredit.recipes.training.supervised import Source, train_and_held_out
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, Truncation

Row = TypeVar("Row")


def training_pairs(
    config: TrainImplicitRewardConfig | TrainRewriterConfig | TrainGateConfig | TrainJudgeConfig,
) -> tuple[list[PreferencePair], list[PreferencePair], list[LeftOut] | None]:
    """Pairs to train on, pairs that are held out, and rows that cannot be used.

    No prompt stands on both sides.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
    """

    def load(source: Source) -> list[PreferencePair]:
        return load_pairs(**vars(source), **config.columns.arguments, limit=config.limit)

    return train_and_held_out(config, load, text=lambda pair: pair.chosen)


def read_responses(
    reading: Reading, rows: Sequence[JudgedResponse], *, max_length: int, truncation: Truncation
) -> list[EncodedText]:
    """Prompts with their responses as token ids, closed where the response ended.

    Args:
        reading: of the model.
        rows: to read.
        max_length: as in `Reading.rows`.
        truncation: likewise.

    Raises:
        DataError, ModelError: as in `Reading.rows`.
    """
    return reading.rows(
        [row.prompt for row in rows],
        [row.response for row in rows],
        ended=[row.ended for row in rows],
        max_length=max_length,
        truncation=truncation,
    )


def read_pairs(
    reading: Reading, pairs: Sequence[PreferencePair], *, max_length: int, truncation: Truncation
) -> list[tuple[EncodedText, EncodedText]]:
    """Every prompt with each of its two answers as token ids, closed where the answer ended.

    Args:
        reading: of the model.
        pairs: to read.
        max_length: as in `Reading.pairs`.
        truncation: likewise.

    Raises:
        DataError, ModelError: as in `Reading.pairs`.
    """
    return reading.pairs(
        [pair.prompt for pair in pairs],
        [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs],
        ended=[pair.ended for pair in pairs],
        max_length=max_length,
        truncation=truncation,
    )


def different_pairs(
    rows: Sequence[Row], texts: Callable[[Row], Sequence[EncodedText]], *, held_out: bool = False
) -> list[Row]:
    """The rows whose sides are different tokens: of the others a model can learn nothing.

    Two answers become equal where they differ in what a template takes off, or after the tokens
    that the model reads.

    Args:
        rows: pairs, or rows of one text, which all stay.
        texts: the sides of a row.
        held_out: whether they are to be judged by, and not to be learnt from.

    Raises:
        DataError: there are pairs to learn from, and none of them stays.
    """
    kept = [
        row
        for row in rows
        if len(texts(row)) < 2 or len({tuple(one.input_ids) for one in texts(row)}) > 1
    ]
    count = len(rows) - len(kept)
    what = f"{count} of {len(rows)} {'held-out ' if held_out else ''}pairs have equal sides"
    if count and not kept and not held_out:
        raise DataError(
            f"{what} once they are cut and rendered; expected answers that differ in what the "
            "model reads: raise max_length, or choose another truncation"
        )
    if count:
        warnings.warn(
            f"{what} once they are cut and rendered, and are left out: they say nothing",
            TokenCreditWarning,
            stacklevel=2,
        )
    return kept
