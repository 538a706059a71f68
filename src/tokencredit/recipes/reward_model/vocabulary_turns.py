"""The turns of training a reward model over the vocabulary: what is read, the loss, the Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError
from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_logprobs import Statistic
from tokencredit.recipes.reward_model.examples import Judged, reward_batch
from tokencredit.recipes.reward_model.objectives import RewardTrainer
from tokencredit.recipes.reward_model.settings import TrainVocabularyRewardConfig
from tokencredit.recipes.supervised import training_arguments
from tokencredit.reward_model.hf_vocabulary import trained_statistics
from tokencredit.reward_model.losses.pairs import prefix_regression_loss
from tokencredit.reward_model.losses.vocabulary import (
    autoregressive_reward_loss,
    best_values,
    final_value_loss,
    maximum_constraint_loss,
    token_values,
)
from tokencredit.text.hf_token_rows import EncodedText, ReadAt, read_last_token

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Turn:
    """One of the trainings that follow each other.

    Attributes:
        name: as the metrics have it: `preferences`, `constraint` or `outcomes`.
        statistic: what is taken of the logits of each token.
        read_at: the tokens it is taken of.
        loss: of what was taken, padded on the right, its mask, targets and strengths.
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
        return [Turn("preferences", token_logprobs, read_response, _of_pairs(compared))]
    if config.objective == "cd-fudge":
        return [Turn("outcomes", token_values, read_response, _of_outcomes)]
    preferences = Turn("preferences", token_values, read_last_token, _of_pairs(final_value_loss))
    bound = partial(
        maximum_constraint_loss,
        first_token=config.first_token,
        target_gradient=config.target_gradient,
    )

    def of_prefixes(values: Tensor, mask: Tensor, *_: Any) -> Tensor:
        return bound(values[..., 0], values[..., 1], mask)

    constraint = Turn("constraint", _value_and_best, read_response, of_prefixes, chosen_alone=True)
    return [preferences, *[constraint, preferences] * (config.rounds - 1)]


def read_response(text: EncodedText) -> list[bool]:
    """From the first token of the response to the end of the row."""
    return [False] * text.start + [True] * (len(text) - text.start)


def ended_row(row: EncodedText, eos_token_id: int | None) -> EncodedText:
    """The row without what a chat template puts behind the end of sequence: generation stops there.

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


def _of_pairs(loss: Callable[..., Tensor]) -> Loss:
    """The loss of rows of which the first half is preferred."""

    def of_rows(values: Tensor, mask: Tensor, targets: Tensor, *_: Any) -> Tensor:
        return loss(*values.chunk(2), *mask.chunk(2), margin=targets)

    return of_rows


def _of_outcomes(values: Tensor, mask: Tensor, targets: Tensor, *_: Any) -> Tensor:
    return prefix_regression_loss(values, targets, mask)


class TokenScorer(nn.Module):
    """A language model whose forward gives the numbers that the loss is made of.

    Args:
        model: a causal language model.
        statistic: of logits and ids.
    """

    def __init__(self, model: nn.Module, statistic: Statistic) -> None:
        super().__init__()
        self.model = model
        self.statistic = statistic

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"],
        counted: Bool[Tensor, "batch sequence"],
    ) -> Float[Tensor, "batch time *rest"]:
        """What is taken of the counted tokens, moved to the left end."""
        return trained_statistics(self.model, input_ids, attention_mask, counted, self.statistic)


class TurnTrainer(RewardTrainer):
    """The Trainer of one turn, whose log lines say which.

    Args:
        turn: its number, from 1, and its name.
    """

    def __init__(self, *arguments: Any, turn: tuple[int, str], **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.turn = turn

    def log(self, logs: dict[str, Any], *arguments: Any, **keywords: Any) -> None:
        """As of Trainer."""
        number, name = self.turn
        super().log({**logs, "turn": number, "trains": name}, *arguments, **keywords)


def trained_turn(
    config: TrainVocabularyRewardConfig,
    model: nn.Module,
    turn: Turn,
    judged: Sequence[Judged],
    folder: Path,
    *,
    number: int,
    pad_id: int,
) -> tuple[float, int]:
    """Train the model in place for one turn.

    Args:
        config: the settings.
        model: a causal language model, with or without adapters.
        turn: what is done.
        judged: the rows.
        folder: of the run.
        number: of the turn, from 1.
        pad_id: fills padding.

    Returns:
        The mean loss, and the tokens that were read.
    """
    rows = list(judged)
    if turn.chosen_alone:
        rows = [replace(one, responses=one.responses[:1]) for one in judged]
    arguments = training_arguments(
        config, folder, examples=len(rows), learning_rate=config.learning_rate
    )
    arguments.train_sampling_strategy = "group_by_length"

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return reward_batch([rows[one["row"]] for one in some], pad_id=pad_id, read_at=turn.read_at)

    trainer = TurnTrainer(
        model=TokenScorer(model, turn.statistic),
        args=arguments,
        train_dataset=Dataset.from_dict(
            {"row": list(range(len(rows))), "length": [len(one) for one in rows]}
        ),
        data_collator=batch,
        loss=turn.loss,
        log_file=folder / "metrics.jsonl",
        turn=(number, turn.name),
    )
    loss = float(trainer.train().training_loss)
    return loss, sum(len(text) for one in rows for text in one.responses)


def adapted_model(model: PreTrainedModel, *, rank: int, alpha: int) -> Any:
    """The model with LoRA adapters on its linear layers; its head over the vocabulary stays.

    Raises:
        ConfigError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            f"lora_rank is {rank} and PEFT is not installed; expected it: "
            "pip install 'tokencredit[peft]'"
        ) from error
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules="all-linear"
    )
    return get_peft_model(model, adapter)
