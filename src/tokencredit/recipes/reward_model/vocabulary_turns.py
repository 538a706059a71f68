"""The turns of training a reward model over the vocabulary: what is read, the loss, the Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.logprobs import token_logprobs
from tokencredit.recipes.reward_model.causal_settings import TrainVocabularyRewardConfig
from tokencredit.recipes.reward_model.examples import SAID, JudgedRow, judgements_of, reward_batch
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.progress import Progress, TrainingRun, saved_progress
from tokencredit.recipes.training.trainer import LossTrainer, ModelFunction, row_numbers, train
from tokencredit.reward_model.hf_vocabulary import trained_statistics
from tokencredit.reward_model.losses.targets import prefix_regression_loss
from tokencredit.reward_model.losses.vocabulary import (
    autoregressive_reward_loss,
    best_values,
    expected_value_loss,
    expected_values,
    final_value_loss,
    maximum_constraint_loss,
    token_values,
)
from tokencredit.reward_model.objectives import Judgements
from tokencredit.text.hf_token_rows import EncodedText, ReadAt, read_last_token, read_response

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
        policy: a frozen model whose logits the statistic takes too; None for none.
    """

    name: str
    statistic: Callable[..., Tensor]
    read_at: ReadAt
    loss: Loss
    chosen_alone: bool = False
    policy: PreTrainedModel | None = None


def farma_turns(config: TrainVocabularyRewardConfig, _: PreTrainedModel | None) -> list[Turn]:
    """Pairs are compared `rounds` times; the maximum constraint stands between two of them."""
    bound = partial(
        maximum_constraint_loss,
        first_token=config.first_token,
        target_gradient=config.target_gradient,
    )

    def constraint_loss(judgements: Judgements) -> Tensor:
        values, best = judgements.scores.unbind(-1)
        return bound(values, best, judgements.mask)

    preferences = Turn("preferences", token_values, read_last_token, _pair_loss(final_value_loss))
    constraint = Turn(
        "constraint", _value_and_best, read_response, constraint_loss, chosen_alone=True
    )
    return [preferences, *[constraint, preferences] * (config.rounds - 1)]


def genarm_turns(config: TrainVocabularyRewardConfig, _: PreTrainedModel | None) -> list[Turn]:
    """One turn of pairs, whose log-probabilities are compared."""
    compared = partial(
        autoregressive_reward_loss, reward_beta=config.reward_beta, over_tokens=config.over_tokens
    )
    return [Turn("preferences", token_logprobs, read_response, _pair_loss(compared))]


def outcome_turns(_: TrainVocabularyRewardConfig, __: PreTrainedModel | None) -> list[Turn]:
    """One turn, in which the value of every token learns the outcome of its text."""

    def outcome_loss(judgements: Judgements) -> Tensor:
        return prefix_regression_loss(judgements.scores, judgements.targets, judgements.mask)

    return [Turn("outcomes", token_values, read_response, outcome_loss)]


def expectation_turns(
    config: TrainVocabularyRewardConfig, policy: PreTrainedModel | None
) -> list[Turn]:
    """One turn, in which the value of every token learns the policy's mean of what can follow."""

    def expectation_loss(judgements: Judgements) -> Tensor:
        values, expected = judgements.scores.unbind(-1)
        return expected_value_loss(
            values,
            expected,
            judgements.targets,
            judgements.mask,
            bootstrap_lambda=config.bootstrap_lambda,
        )

    return [
        Turn("outcomes", _value_and_expectation, read_response, expectation_loss, policy=policy)
    ]


TURNS: dict[str, Callable[[TrainVocabularyRewardConfig, PreTrainedModel | None], list[Turn]]] = {
    "farma": farma_turns,
    "genarm": genarm_turns,
    "cd-fudge": outcome_turns,
    "cd-q": expectation_turns,
}
"""The turns of each objective, in their order, from the settings and the frozen policy."""


def ended_row(row: EncodedText, turn_ends: Sequence[int]) -> EncodedText:
    """The row without what a chat template puts after the end of a turn: generation stops there.

    An end of turn inside the response, or none at all, changes nothing.

    Args:
        row: prompt, response and what closes it.
        turn_ends: ids that end a response.
    """
    last = len(row) - 1 - row.response_mask[::-1].index(True)
    if row.input_ids[last] in turn_ends:
        end = last + 1
    else:
        after = row.input_ids[last + 1 :]
        first = next((at for at, id_ in enumerate(after) if id_ in turn_ends), None)
        end = len(row) if first is None else last + 2 + first
    return replace(row, input_ids=row.input_ids[:end], response_mask=row.response_mask[:end])


def _value_and_expectation(
    logits: Tensor, token_ids: Tensor, policy_logits: Tensor
) -> Float[Tensor, "tokens 2"]:
    width = min(logits.shape[-1], policy_logits.shape[-1])  # heads may be wider than tokenizers
    expected = expected_values(logits[:, :width], policy_logits[:, :width])
    return torch.stack([token_values(logits, token_ids), expected], dim=-1)


def _value_and_best(logits: Tensor, token_ids: Tensor) -> Float[Tensor, "tokens 2"]:
    return torch.stack([token_values(logits, token_ids), best_values(logits)], dim=-1)


def _pair_loss(loss: Callable[..., Tensor]) -> Loss:
    """The loss of rows of which the first half is preferred."""
    return lambda judgements: loss(*judgements.sides, margin=judgements.targets)


class TurnTrainer(LossTrainer):
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


def train_turns(
    config: TrainVocabularyRewardConfig,
    model: nn.Module,
    turns: Sequence[Turn],
    rows: Sequence[JudgedRow],
    folder: Path,
    *,
    pad_id: int,
    evaluate: Callable[[], dict[str, float]] | None,
) -> dict[str, float]:
    """Train the model in place, one turn after the other, from the last checkpoint if there is one.

    Args:
        config: the settings.
        model: a causal language model, with or without adapters.
        turns: what is done.
        rows: of the data.
        folder: of the run.
        pad_id: fills padding.
        evaluate: the numbers of held-out data; None where there are none.

    Returns:
        The last loss of each kind of turn, and what all of them took.
    """
    saved = saved_progress(folder)
    begin = Progress() if saved is None else saved[1]
    took: dict[str, float] = begin.earlier
    for number, turn in enumerate(turns, start=1):
        if number < begin.turn:
            continue
        steps_before = int(took.get("train_steps", 0))
        run = TrainingRun.of(config, folder, evaluate, Progress(number, steps_before, earlier=took))
        trainer, tokens = _turn_trainer(config, model, turn, rows, run, pad_id=pad_id)
        found = train(trainer, tokens=tokens)
        sums = ("train_steps", "train_tokens", "seconds")
        took = took | {name: took.get(name, 0.0) + found[name] for name in sums}
        took[f"{turn.name}_loss"] = found["train_loss"]
    return took | {"tokens_per_second": took["train_tokens"] / took["seconds"]}


def _turn_trainer(
    config: TrainVocabularyRewardConfig,
    model: nn.Module,
    turn: Turn,
    rows: Sequence[JudgedRow],
    run: TrainingRun,
    *,
    pad_id: int,
) -> tuple[TurnTrainer, int]:
    """The Trainer of one turn, and the tokens of one pass over the data."""
    if turn.chosen_alone:
        rows = [replace(one, responses=one.responses[:1]) for one in rows]

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return reward_batch([rows[one["row"]] for one in some], pad_id=pad_id, read_at=turn.read_at)

    policies = () if turn.policy is None else (turn.policy,)
    trainer = TurnTrainer(
        model=ModelFunction(
            model, partial(trained_statistics, statistic=turn.statistic, frozen=policies)
        ),
        args=training_arguments(config, run.folder, examples=len(rows)),
        train_dataset=row_numbers([len(one) for one in rows]),
        data_collator=batch,
        loss=lambda scores, inputs: turn.loss(judgements_of(scores, inputs)),
        unread=SAID,
        run=run,
        turn=(run.begin.turn, turn.name),
    )
    return trainer, sum(len(text) for one in rows for text in one.responses)
