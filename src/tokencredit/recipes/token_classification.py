"""The parts of token-classifier training between labelled rows and the Trainer, and its report."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.evaluation.agreement import token_auroc
from tokencredit.recipes.corpus import IGNORED
from tokencredit.recipes.encoded_texts import right_padded
from tokencredit.recipes.labelled_texts import LabelledText
from tokencredit.recipes.supervised import SupervisedTrainer
from tokencredit.reward_model.token_losses import token_classification_loss


def token_batch(rows: Sequence[LabelledText], *, pad_id: int) -> dict[str, Tensor]:
    """Rows padded on the right: `input_ids`, `attention_mask` and `token_labels`."""
    ids, attention_mask, _ = right_padded([row.text for row in rows], pad_id=pad_id)
    labels = torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        labels[index, : len(row)] = torch.tensor(row.labels)
    return {"input_ids": ids, "attention_mask": attention_mask, "token_labels": labels}


class TokenLogits(nn.Module):
    """A token classifier whose forward gives logits alone.

    A module around the model, so that wrappers for several processes see every forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"],
    ) -> Float[Tensor, "batch sequence classes"]:
        """Logits of every token of rows that are padded on the right."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class TokenTrainer(SupervisedTrainer):
    """The Trainer of a `TokenLogits`."""

    def __init__(
        self,
        *arguments: Any,
        targets: Float[Tensor, "numbers classes"],
        class_weights: Float[Tensor, "classes"] | None,
        **keywords: Any,
    ):
        super().__init__(*arguments, **keywords)
        self.targets, self.class_weights = targets, class_weights

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the Trainer passes it by name
    ) -> Any:
        """The mean over responses, which the Trainer divides by the accumulated passes."""
        labels = inputs.pop("token_labels")
        logits = model(**inputs)
        targets = self.targets.to(labels.device)[labels.clamp(min=0)]
        weights = None if self.class_weights is None else self.class_weights.to(labels.device)
        loss = token_classification_loss(logits, targets, labels != IGNORED, class_weights=weights)
        return (loss, logits) if return_outputs else loss


def labelled_logits(
    model: PreTrainedModel,
    rows: Sequence[LabelledText],
    *,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> tuple[Float[Tensor, "tokens classes"], Int[Tensor, "tokens"]]:
    """The logits of all labelled tokens of all rows, and their labels.

    Args:
        model: a token classifier.
        rows: in any order; the tokens that are given come in another.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.
    """
    model.eval()
    order = sorted(rows, key=len, reverse=True)
    logits, labels = [], []
    for at in range(0, len(order), batch_size):
        batch = token_batch(order[at : at + batch_size], pad_id=pad_id)
        numbers = batch.pop("token_labels")
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad(), context:
            given = TokenLogits(model)(**inputs).float().cpu()
        logits.append(given[numbers != IGNORED])
        labels.append(numbers[numbers != IGNORED])
    return torch.cat(logits), torch.cat(labels)


def class_report(
    logits: Float[Tensor, "tokens classes"], labels: Int[Tensor, "tokens"], names: Sequence[str]
) -> dict[str, Any]:
    """How well the classes of tokens are told apart.

    Args:
        logits: of each token.
        labels: the class of each token; those that are no class (kept by an edit) do not count.
        names: of the classes.

    Returns:
        `tokens`; `accuracy` of the most likely class; `majority`, the accuracy of always naming the
        most frequent one; and under `classes` for each its `tokens`, `f1`, and `auroc` against all
        others. What is not defined, since no token is of a class or all are, is None.
    """
    counted = labels < len(names)
    logits, labels = logits[counted], labels[counted]
    likely = logits.argmax(-1)
    tokens = len(labels)
    sizes = labels.bincount(minlength=len(names))
    return {
        "tokens": tokens,
        "accuracy": int((likely == labels).sum()) / tokens if tokens else None,
        "majority": int(sizes.max()) / tokens if tokens else None,
        "classes": {
            name: _of_one_class(logits.softmax(-1)[:, index], likely == index, labels == index)
            for index, name in enumerate(names)
        },
    }


def _of_one_class(scores: Tensor, named: Tensor, true: Tensor) -> dict[str, float | int | None]:
    size = int(named.sum() + true.sum())
    auroc = float(token_auroc(scores[None], true[None], torch.ones_like(true)[None]))
    return {
        "tokens": int(true.sum()),
        "f1": 2 * int((named & true).sum()) / size if size else None,
        "auroc": None if auroc != auroc else auroc,
    }
