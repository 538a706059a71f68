"""The turns of training a reward model over the vocabulary: what is read, the loss, the Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_logprobs import Statistic
from tokencredit.recipes.reward_model.causal_settings import TrainVocabularyRewardConfig
from tokencredit.recipes.reward_model.examples import JudgedRow, reward_batch
from tokencredit.recipes.reward_model.training import RewardTrainer
from tokencredit.recipes.trainer import ModelFunction, row_numbers, train, training_arguments
from tokencredit.reward_model.hf_vocabulary import trained_statistics
from tokencredit.reward_model.losses.pairs import prefix_regression_loss
from tokencredit.reward_model.losses.vocabulary import (
    autoregressive_reward_loss,
    best_values,
    final_value_loss,
    maximum_constraint_loss,
    token_values,
)
from tokencredit.reward_model.objectives import Judgements
from tokencredit.text.hf_token_rows import EncodedText, ReadAt, read_last_token

Loss = Callable[[Judgements], Tensor]


@dataclass(frozen=True)
class Turn:
    """One of the trainings that follow each other.

    Attributes:
        name: as the metrics have it: `preferences`, `constraint` or `outcomes`.
        statistic: what is taken of the logits of each token.
        read_at: the tokens it is taken of.
        loss: of what was taken and what was said of it.
        chosen_alone: whether the rejected responses are left out.
    """

    name: str
    statistic: Statistic
    read_at: ReadAt
    loss: Loss
    chosen_alone: bool = False


def turns(config: TrainVocabularyRewardConfig) -> list[Turn]:
    """The turns of an objective, in their order."""
    if config.objective == "genarm":
        compared = partial(
            autoregressive_reward_loss,
            reward_beta=config.reward_beta,
            over_tokens=config.over_tokens,
        )
        return [Turn("preferences", token_logprobs, read_response, _pair_loss(compared))]
    if config.objective == "cd-fudge":
        return [Turn("outcomes", token_values, read_response, _outcome_loss)]
    preferences = Turn("preferences", token_values, read_last_token, _pair_loss(final_value_loss))
    bound = partial(
        maximum_constraint_loss,
        first_token=config.first_token,
        target_gradient=config.target_gradient,
    )

    def constraint_loss(judgements: Judgements) -> Tensor:
        values, best = judgements.scores.unbind(-1)
        return bound(values, best, judgements.mask)

    constraint = Turn(
        "constraint", _value_and_best, read_response, constraint_loss, chosen_alone=True
    )
    return [preferences, *[constraint, preferences] * (config.rounds - 1)]


def read_response(text: EncodedText) -> list[bool]:
    """From the first token of the response to the end of the row."""
    return [False] * text.start + [True] * (len(text) - text.start)


def ended_row(row: EncodedText, eos_token_id: int | None) -> EncodedText:
    """The row without what a chat template puts after the end of sequence: generation stops there.

    An end of sequence inside the response, or none at all, changes nothing.
    """
    last = len(row) - 1 - row.response_mask[::-1].index(True)
    if row.input_ids[last] == eos_token_id:
        end = last + 1
    else:
        behind = row.input_ids[last + 1 :]
        end = last + 2 + behind.index(eos_token_id) if eos_token_id in behind else len(row)
    return EncodedText(row.input_ids[:end], row.response_mask[:end])


def _value_and_best(logits: Tensor, token_ids: Tensor) -> Float[Tensor, "tokens 2"]:
    return torch.stack([token_values(logits, token_ids), best_values(logits)], dim=-1)


def _pair_loss(loss: Callable[..., Tensor]) -> Loss:
    """The loss of rows of which the first half is preferred."""
    return lambda judgements: loss(*judgements.sides, margin=judgements.targets)


def _outcome_loss(judgements: Judgements) -> Tensor:
    return prefix_regression_loss(judgements.scores, judgements.targets, judgements.mask)


class TurnTrainer(RewardTrainer):
    """The Trainer of one turn, whose log lines say which.

    Args:
        turn: its number, from 1, and its name.
    """

    def __init__(self, *arguments: Any, turn: tuple[int, str], **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.turn = turn

    def log(self, logs: dict[str, Any], *arguments: Any, **keywords: Any) -> None:
        """Add which turn it is to what the Trainer logs."""
        number, name = self.turn
        super().log({**logs, "turn": number, "trains": name}, *arguments, **keywords)


def train_turn(
    config: TrainVocabularyRewardConfig,
    model: nn.Module,
    turn: Turn,
    rows: Sequence[JudgedRow],
    folder: Path,
    *,
    number: int,
    pad_id: int,
) -> tuple[float, float]:
    """Train the model in place for one turn.

    Args:
        config: the settings.
        model: a causal language model, with or without adapters.
        turn: what is done.
        rows: of the data.
        folder: of the run.
        number: of the turn, from 1.
        pad_id: fills padding.

    Returns:
        The mean loss, and the tokens that were read.
    """
    if turn.chosen_alone:
        rows = [replace(one, responses=one.responses[:1]) for one in rows]

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return reward_batch([rows[one["row"]] for one in some], pad_id=pad_id, read_at=turn.read_at)

    trainer = TurnTrainer(
        model=ModelFunction(model, partial(trained_statistics, statistic=turn.statistic)),
        args=training_arguments(config, folder, examples=len(rows)),
        train_dataset=row_numbers([len(one) for one in rows]),
        data_collator=batch,
        loss=turn.loss,
        log_file=folder / "metrics.jsonl",
        turn=(number, turn.name),
    )
    tokens = config.training.epochs * sum(len(text) for one in rows for text in one.responses)
    return train(trainer, tokens=tokens)["train_loss"], tokens
