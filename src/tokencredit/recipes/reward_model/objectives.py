"""The model, the loss and the Trainer of reward-model training, and its scores of beginnings."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokencredit.masking import left_packed, masked_row_mean
from tokencredit.recipes.reward_model.settings import Objective, Positions
from tokencredit.recipes.supervised import SupervisedTrainer
from tokencredit.reward_model.losses.pairs import (
    centering_loss,
    held_prefix_scores,
    prefix_bradley_terry_loss,
    prefix_classification_loss,
    prefix_regression_loss,
    segment_bradley_terry_loss,
)
from tokencredit.reward_model.losses.values import q_classification_loss, q_value_loss


def reward_loss(
    scores: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    targets: Float[Tensor, "judged"],
    strengths: Float[Tensor, "judged"] | None = None,
    *,
    objective: Objective,
    positions: Positions = "every",
    centering: float = 0.0,
    bootstrap_lambda: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of a batch; with one column, of whole responses.

    Args:
        scores: of prefixes, or at the ends of segments; for pairs first all chosen, then all
            rejected rows.
        mask: True on scores that are there.
        targets: margins in nats, labels, or ratings in the unit of the scores.
        strengths: of preferences; None for 1.
        objective: what the rows are.
        positions: what the columns are, and what they learn from.
        centering: weight of the squared sum of a pair's scores.
        bootstrap_lambda: of `bootstrapped` positions.
    """
    if objective != "bradley-terry":
        labels = objective == "classification"
        if positions == "bootstrapped":
            own = q_classification_loss if labels else q_value_loss
            return own(scores, targets, mask, bootstrap_lambda=bootstrap_lambda)
        return (prefix_classification_loss if labels else prefix_regression_loss)(
            scores, targets, mask
        )
    at_ends = positions == "segments"
    pairs = [*scores.chunk(2), *mask.chunk(2)]
    loss = (segment_bradley_terry_loss if at_ends else prefix_bradley_terry_loss)(
        *pairs, margin=targets, strength=strengths
    )
    return loss + centering * _centering(*pairs, at_ends=at_ends) if centering else loss


def _centering(
    chosen: Tensor, rejected: Tensor, chosen_mask: Tensor, rejected_mask: Tensor, *, at_ends: bool
) -> Tensor:
    """The squared sum of the scores that are compared."""
    if at_ends:
        means = masked_row_mean(chosen, chosen_mask), masked_row_mean(rejected, rejected_mask)
        return centering_loss(*means, torch.ones_like(means[0], dtype=torch.bool))
    held = held_prefix_scores(chosen, chosen_mask), held_prefix_scores(rejected, rejected_mask)
    return centering_loss(*held, chosen_mask | rejected_mask)


class RewardTrainer(SupervisedTrainer):
    """The Trainer of a `PrefixScorer`.

    Args:
        loss: of scores, their mask, targets and strengths.
    """

    def __init__(self, *arguments: Any, loss: Callable[..., Tensor], **keywords: Any):
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
        loss = self.loss(scores, mask, targets, strengths)
        return (loss, scores) if return_outputs else loss
