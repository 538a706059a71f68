"""The parts of reward-model training between the data and the Trainer."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError
from tokencredit.evaluation.prefix_accuracy import FRACTIONS, scores_at_fractions
from tokencredit.masking import left_packed
from tokencredit.recipes.encoded_texts import EncodedText, right_padded
from tokencredit.recipes.reward_model_config import Objective, Positions
from tokencredit.recipes.supervised import SupervisedTrainer
from tokencredit.reward_model.hf_architecture import is_causal
from tokencredit.reward_model.hf_backbone import reward_model_output
from tokencredit.reward_model.losses import (
    centering_loss,
    held_prefix_scores,
    prefix_bradley_terry_loss,
    prefix_classification_loss,
)


@dataclass(frozen=True)
class Judged:
    """What one row of the data says.

    Attributes:
        responses: the chosen and the rejected one, or the one with a label.
        target: the margin in nats, or the label.
    """

    responses: tuple[EncodedText, ...]
    target: float

    def __len__(self) -> int:
        return max(map(len, self.responses))


def reward_batch(
    judged: Sequence[Judged], *, pad_id: int, positions: Positions
) -> dict[str, Tensor]:
    """Rows of several judgements padded on the right: all first responses, then all second ones.

    Returns:
        `input_ids`, `attention_mask`, `targets`, and `counted`: True where scores are read.
    """
    rows = [row for side in zip(*(one.responses for one in judged), strict=True) for row in side]
    ids, attention_mask, counted = scored_rows(rows, pad_id=pad_id, positions=positions)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "counted": counted,
        "targets": torch.tensor([one.target for one in judged]),
    }


def scored_rows(
    rows: Sequence[EncodedText], *, pad_id: int, positions: Positions
) -> tuple[
    Int[Tensor, "batch sequence"], Int[Tensor, "batch sequence"], Bool[Tensor, "batch sequence"]
]:
    """Token ids, attention mask, and where scores are read.

    That is the last token of a row, where the whole is scored; with `every`, which needs a causal
    model, also each token of the response.
    """
    ids, attention_mask, counted = right_padded(rows, pad_id=pad_id)
    if positions == "last":
        counted = torch.zeros_like(counted)
    counted[torch.arange(len(rows)), attention_mask.sum(-1) - 1] = True
    return ids, attention_mask, counted


class PrefixScorer(nn.Module):
    """A reward model whose forward gives the scores that the loss is made of.

    A module around the model, so that wrappers for several processes see every forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"],
        counted: Bool[Tensor, "batch sequence"],
    ) -> Float[Tensor, "batch time"]:
        """Scores at the counted tokens, moved to the left end.

        An encoder has one score, that of the whole, whatever is counted.
        """
        output = reward_model_output(self.model, input_ids, attention_mask)
        if output.position_scores is None:
            return output.sequence_scores[:, None]
        return left_packed(output.position_scores, counted)[0]


def reward_loss(
    scores: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    targets: Float[Tensor, "judged"],
    *,
    objective: Objective,
    centering: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of a batch; with one column, of whole responses.

    Args:
        scores: of prefixes, in nats; for pairs first all chosen, then all rejected rows.
        mask: True on prefixes that are there.
        targets: margins in nats, or labels.
        objective: what the rows are.
        centering: weight of the squared sum of a pair's scores.
    """
    if objective == "classification":
        return prefix_classification_loss(scores, targets, mask)
    chosen, rejected = scores.chunk(2)
    chosen_mask, rejected_mask = mask.chunk(2)
    loss = prefix_bradley_terry_loss(chosen, rejected, chosen_mask, rejected_mask, margin=targets)
    if centering:
        loss = loss + centering * centering_loss(
            held_prefix_scores(chosen, chosen_mask),
            held_prefix_scores(rejected, rejected_mask),
            chosen_mask | rejected_mask,
        )
    return loss


class RewardTrainer(SupervisedTrainer):
    """The Trainer of a `PrefixScorer`."""

    def __init__(self, *arguments: Any, objective: Objective, centering: float, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.objective: Objective = objective
        self.centering = centering

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the Trainer passes it by name
    ) -> Any:
        """The mean over judgements, which the Trainer divides by the accumulated passes."""
        targets = inputs.pop("targets")
        scores = model(**inputs)
        mask, _ = left_packed(inputs["counted"], inputs["counted"])
        loss = reward_loss(
            scores, mask, targets, objective=self.objective, centering=self.centering
        )
        return (loss, scores) if return_outputs else loss


def fraction_scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    *,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> Float[Tensor, "rows fractions"]:
    """Score of each response when 20, 40, 60, 80 and 100 % of it have been seen.

    Causal models give all of them in one pass; encoders read each cut text anew.

    Args:
        model: a reward model.
        rows: prompts with their responses.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.
    """
    model.eval()
    if is_causal(model):
        return _scores(model, rows, FRACTIONS, "every", pad_id, batch_size, context)
    parts = []
    for fraction in FRACTIONS:
        seen = [_beginning(row, fraction) for row in rows]
        parts.append(_scores(model, seen, (1.0,), "last", pad_id, batch_size, context))
    return torch.cat(parts, dim=-1)


def _scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    fractions: tuple[float, ...],
    positions: Positions,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> Float[Tensor, "rows fractions"]:
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    scores = torch.empty(len(rows), len(fractions))
    for at in range(0, len(rows), batch_size):
        some = order[at : at + batch_size]
        tensors = scored_rows([rows[row] for row in some], pad_id=pad_id, positions=positions)
        ids, attention_mask, counted = (tensor.to(model.device) for tensor in tensors)
        with torch.no_grad(), context:
            packed = PrefixScorer(model)(ids, attention_mask, counted)
        mask, _ = left_packed(counted, counted)
        scores[some] = scores_at_fractions(packed, mask, fractions=fractions).cpu()
    return scores


def _beginning(row: EncodedText, fraction: float) -> EncodedText:
    """The row without the end of its response; what stands behind the response stays."""
    at = [index for index, counts in enumerate(row.response_mask) if counts]
    kept = at[: max(1, math.ceil(fraction * len(at) - 1e-9))]
    keep = [*range(kept[-1] + 1), *range(at[-1] + 1, len(row))]
    return EncodedText([row.input_ids[i] for i in keep], [row.response_mask[i] for i in keep])


def lora_model(model: PreTrainedModel, *, rank: int, alpha: int) -> Any:
    """The model with adapters on its linear layers; they and the head are trained, the rest not.

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
    adapter = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=alpha, target_modules="all-linear")
    return get_peft_model(model, adapter)
