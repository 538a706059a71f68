"""The model, the loss and the Trainer of reward-model training, and its scores of beginnings."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError
from tokencredit.evaluation.prefix_accuracy import FRACTIONS, scores_at_fractions
from tokencredit.masking import left_packed, masked_row_mean
from tokencredit.recipes.encoded_texts import EncodedText
from tokencredit.recipes.reward_examples import (
    ReadAt,
    read_every_token,
    read_last_token,
    scored_rows,
)
from tokencredit.recipes.reward_model_config import Objective, Positions
from tokencredit.recipes.supervised import SupervisedTrainer
from tokencredit.reward_model.hf_architecture import is_causal
from tokencredit.reward_model.hf_backbone import reward_model_output
from tokencredit.reward_model.losses import (
    centering_loss,
    held_prefix_scores,
    prefix_bradley_terry_loss,
    prefix_classification_loss,
    prefix_regression_loss,
    segment_bradley_terry_loss,
)
from tokencredit.reward_model.value_targets import q_classification_loss, q_value_loss


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


def fraction_scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    *,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
    segment_ends: ReadAt | None = None,
) -> Float[Tensor, "rows fractions"]:
    """Score of each response when 20, 40, 60, 80 and 100 % of it have been seen.

    Causal models give all of them in one pass; encoders read each cut text anew.

    Args:
        model: a reward model.
        rows: prompts with their responses.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.
        segment_ends: for each token of a row whether a segment ends there, where the score of a
            text is the mean over the ends of its segments, the last of them where it is cut; None
            where it is read at the last token seen.
    """
    model.eval()
    if is_causal(model):
        return _scores(model, rows, FRACTIONS, read_every_token, pad_id, batch_size, context,
                       segment_ends)  # fmt: skip
    parts = []
    for fraction in FRACTIONS:
        seen = [_beginning(row, fraction) for row in rows]
        parts.append(_scores(model, seen, (1.0,), read_last_token, pad_id, batch_size, context))
    return torch.cat(parts, dim=-1)


def _scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    fractions: tuple[float, ...],
    read_at: ReadAt,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
    segment_ends: ReadAt | None = None,
) -> Float[Tensor, "rows fractions"]:
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    scores = torch.empty(len(rows), len(fractions))
    for at in range(0, len(rows), batch_size):
        some = order[at : at + batch_size]
        texts = [rows[row] for row in some]
        tensors = scored_rows(texts, pad_id=pad_id, read_at=read_at)
        ids, attention_mask, counted = (tensor.to(model.device) for tensor in tensors)
        with torch.no_grad(), context:
            packed = PrefixScorer(model)(ids, attention_mask, counted)
        mask, _ = left_packed(counted, counted)
        if segment_ends is not None:
            ends = scored_rows(texts, pad_id=pad_id, read_at=segment_ends)[2].to(model.device)
            packed = running_segment_means(packed, left_packed(ends, counted)[0], mask)
        scores[some] = scores_at_fractions(packed, mask, fractions=fractions).cpu()
    return scores


def running_segment_means(
    prefix_scores: Float[Tensor, "batch time"],
    ends: Bool[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """For every prefix the mean score at the ends of its segments, of which the last is its own.

    Args:
        prefix_scores: of each prefix.
        ends: True where a segment ends.
        mask: True on tokens that count.
    """
    columns = []
    for t in range(prefix_scores.shape[-1]):
        read = ends[:, : t + 1] & mask[:, : t + 1]
        read[:, t] = mask[:, t]
        columns.append(masked_row_mean(prefix_scores[:, : t + 1].float(), read))
    return torch.stack(columns, dim=-1)


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
