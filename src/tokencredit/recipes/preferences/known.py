"""Rows of `train-preferences` with all that is constant about them: references, weights, edits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.errors import DataError
from tokencredit.policy.losses.offline import prompt_values
from tokencredit.recipes.preferences.constants import (
    Numbers,
    cached_numbers,
    frozen_reference,
    prompt_states,
    reference_logprobs,
    token_credit_of,
)
from tokencredit.recipes.preferences.objective import (
    constant_weights,
    credit_magnitudes,
    edited_tokens,
    regulariser_scores,
)
from tokencredit.recipes.preferences.rows import AnswerRow, answer_batch, with_scores
from tokencredit.recipes.preferences.settings import TrainPreferencesConfig
from tokencredit.recipes.preferences.teachers import (
    loaded_teachers,
    shared_width,
    taught_columns,
    teacher_numbers,
)
from tokencredit.recipes.training.arguments import training_device


@dataclass(frozen=True)
class KnownRows:
    """Rows with all that is constant about them.

    Attributes:
        rows: answers as token ids.
        names: of the numbers that each response token has.
        constants: those numbers, of each answer (tokens, names).
        edited: True on tokens that an edit changed; None where nobody asks.
        taught: what teachers say of each response token, as of `taught_columns`; None where they
            are not asked, or asked at every step alone.
        width: ids that the policy shares with these teachers.
    """

    rows: list[AnswerRow]
    names: tuple[str, ...] = ()
    constants: Numbers = ()  # type: ignore[assignment]
    edited: list[list[Tensor]] | None = None
    taught: Numbers | None = None
    width: int | None = None

    def batch(self, numbers: Sequence[int], *, pad_id: int) -> dict[str, Tensor]:
        """Some of the rows as `answer_batch` has them."""
        return answer_batch(
            self.rows,
            numbers,
            pad_id=pad_id,
            constants=self.constants,
            edited=self.edited,
            taught=self.taught,
        )


def known_rows(
    config: TrainPreferencesConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[AnswerRow],
    eval_rows: list[AnswerRow],
    folder: Path,
) -> tuple[KnownRows, KnownRows]:
    """Rows to train on and held-out ones with their constants, computed or read again.

    Args:
        config: the settings.
        model: the policy as it is.
        tokenizer: of the policy.
        rows: to train on.
        eval_rows: held out.
        folder: of the run.

    Raises:
        ModelError: a frozen model is not there, or has another vocabulary.
        DataError: nothing is left to train on.
        NumericError: a model gives NaN or infinite values.
    """
    pad_id = int(tokenizer.pad_token_id)
    device = training_device(config)
    if not getattr(model, "is_quantized", False):
        model.to(device)

    def cached(name: str, made: Callable[[list[AnswerRow]], list[Tensor]]) -> list[Numbers]:
        return [
            cached_numbers(folder, name + where, some, made)
            for where, some in (("", rows), ("-held-out", eval_rows))
        ]

    reference: PreTrainedModel | None = None
    if config.reference is not None:
        reference = frozen_reference(config, tokenizer)
    frozen = reference or model
    found: dict[str, list[Numbers]] = {}
    if "prompt_values" in config.row.needs and config.options.prompt_value == "head":
        states = cached("states", prompt_states(config, frozen, pad_id=pad_id))
        rows, eval_rows = _above_expectation(rows, eval_rows, states)
    if "reference" in config.row.references:
        found["reference"] = cached("reference", reference_logprobs(config, frozen, pad_id=pad_id))
    if "start" in config.row.references:
        found["start"] = cached("start", reference_logprobs(config, model, pad_id=pad_id))
    said: list[Numbers] | list[None] = [None, None]
    width: int | None = None
    if config.options.top_k:
        teachers = loaded_teachers(config, tokenizer)
        width = shared_width(model, *teachers)
        said = cached("taught", teacher_numbers(config, teachers, pad_id=pad_id, width=width))
        del teachers  # before other models are loaded
    credit: list[Numbers] | list[None] = [None, None]
    if config.needs_credit:
        credit = cached("credit", token_credit_of(config, model, tokenizer, pad_id=pad_id))
    sides = []
    for at, some in enumerate((rows, eval_rows)):
        columns: dict[str, Numbers | None] = {name: one[at] for name, one in found.items()}
        columns["weights"] = constant_weights(config, some, credit[at])
        columns["regulariser"] = regulariser_scores(config, credit[at])
        there = {name: one for name, one in columns.items() if one is not None}
        constants = [
            [torch.stack(parts, dim=-1) for parts in zip(*answers, strict=True)]
            for answers in zip(*there.values(), strict=True)
        ]
        edited = edited_tokens(config, some)
        magnitudes = credit_magnitudes(config, credit[at])
        taught = taught_columns(said[at], magnitudes, [row.response_lengths for row in some])
        sides.append(KnownRows(list(some), tuple(there), constants, edited, taught, width))
    return sides[0], sides[1]


def _above_expectation(
    rows: list[AnswerRow], eval_rows: list[AnswerRow], states: list[Numbers]
) -> tuple[list[AnswerRow], list[AnswerRow]]:
    """Rows whose reward is not below what their prompt lets one expect, with what they are above.

    Raises:
        DataError: none is left to train on.
    """
    features, asked = (
        torch.stack([answer for row in some for answer in row]) if some else torch.zeros(0, 1)
        for some in states
    )
    rewards = torch.tensor([row.scores[0] for row in rows if row.scores])
    sides = []
    for some, of in ((rows, features), (eval_rows, asked)):
        values = prompt_values(features, rewards, asked=of) if some else torch.zeros(0)
        scored = [
            with_scores(row, [row.scores[0] - float(value)])
            for row, value in zip(some, values, strict=True)
            if row.scores is not None
        ]
        sides.append([row for row in scored if row.scores and row.scores[0] >= 0])
    if not sides[0]:
        raise DataError(
            f"none of {len(rows)} responses is better than its prompt lets one expect; expected "
            "scores that differ, or options.prompt_value 'none'"
        )
    return sides[0], sides[1]
