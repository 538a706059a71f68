"""The Trainer of models that give scores, with a loss of judgements."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokencredit.masking import left_packed
from tokencredit.recipes.trainer import SupervisedTrainer
from tokencredit.reward_model.objectives import Judgements


class RewardTrainer(SupervisedTrainer):
    """The Trainer of a `ModelFunction` that gives a number or more for each counted token.

    Args:
        loss: of what a batch says and what was said of it.
    """

    def __init__(self, *arguments: Any, loss: Callable[[Judgements], Tensor], **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.loss = loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the Trainer passes it by name
    ) -> Any:
        """The mean over judgements, which the Trainer divides by the accumulated passes."""
        targets, strengths = inputs.pop("targets"), inputs.pop("strengths")
        scores = model(**inputs)
        mask, _ = left_packed(inputs["counted"], inputs["counted"])
        loss = self.loss(Judgements(scores, mask, targets, strengths))
        return (loss, scores) if return_outputs else loss
