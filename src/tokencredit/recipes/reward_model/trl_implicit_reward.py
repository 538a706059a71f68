"""TRL's DPOTrainer on rows that are tokenized already."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl import DPOConfig, DPOTrainer

from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.trainer import SupervisedTrainer, row_numbers
from tokencredit.text.hf_token_rows import EncodedText, right_padded

EncodedPair = tuple[EncodedText, EncodedText]


class ImplicitRewardTrainer(SupervisedTrainer, DPOTrainer):  # type: ignore[misc]
    """TRL's loss and metrics, our rows, checkpoints, bar and check of the loss."""

    def remembered(self) -> dict[str, Any]:
        """TRL's metrics since the last row, and the tokens that it has counted."""
        return {"metrics": self._metrics["train"], "tokens": self._total_train_tokens}

    def recall(self, remembered: dict[str, Any]) -> None:
        """Take back what `remembered` gave."""
        self._metrics["train"].update(remembered["metrics"])
        self._total_train_tokens = remembered["tokens"]

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Leave the rows alone: TRL would tokenize prompt and response in its own way."""
        return dataset


def implicit_reward_trainer(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[EncodedPair],
    *,
    arguments: TrainingArguments,
    dpo_beta: float,
    run: TrainingRun,
    adapter: Any = None,
) -> ImplicitRewardTrainer:
    """The trainer of one DPO run.

    Args:
        model: to train, dropout off.
        reference: frozen; None with an adapter, whose base is its own reference.
        tokenizer: with a pad token.
        pairs: the preferred response of each pair, and the other.
        arguments: of the supervised recipes.
        dpo_beta: price of the log-ratio.
        run: what the trainer belongs to; its metrics hold the loss and TRL's.
        adapter: PEFT configuration of adapters to train; None trains all weights.
    """
    same = {field.name: getattr(arguments, field.name) for field in fields(arguments) if field.init}

    def batch(rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        return dpo_batch([pairs[row["row"]] for row in rows], pad_id=tokenizer.pad_token_id)

    return ImplicitRewardTrainer(
        model=model,
        ref_model=reference,
        # The model's own dropout is off already; what is left is that of the adapter.
        args=DPOConfig(**same, beta=dpo_beta, max_length=None, disable_dropout=False),
        data_collator=batch,
        train_dataset=row_numbers([max(map(len, pair)) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=adapter,
        run=run,
    )


def dpo_batch(pairs: Sequence[EncodedPair], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right: all preferred responses, then all others.

    Everything from the first response token to the end of a row counts, the end of a chat turn
    too, as in TRL's own tokenization.

    Returns:
        `input_ids`, `attention_mask`, and `completion_mask`: 1 on tokens whose log-probability
        counts.
    """
    rows = [row for side in zip(*pairs, strict=True) for row in side]
    ids, attention_mask, _ = right_padded(rows, pad_id=pad_id)
    starts = torch.tensor([row.start for row in rows])
    is_response = torch.arange(ids.shape[1]) >= starts[:, None]
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "completion_mask": attention_mask * is_response,
    }
