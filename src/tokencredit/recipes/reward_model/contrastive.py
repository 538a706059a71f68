"""Training of reward models whose features are told apart by contrast (SimCSE in Secrets II).

Every batch is read twice, each time with another draw of dropout. The two features of an answer
are to be more alike than those of different answers. Scores are those of the first reading.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, cat, nn

from tokencredit.errors import ModelError
from tokencredit.masking import last_true_index
from tokencredit.models.hf_trunk import states_of_one_pass, trunk_output
from tokencredit.recipes.reward_model.examples import judgements_of
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.reward_model.losses.regularisers import contrastive_loss
from tokencredit.scorers.hf_fractions import counted_scores


class TwoReadings:
    """Scores of a batch, and the features of its answers under two draws of dropout.

    Args:
        config: the settings.
        model: in training; its dropout becomes that of the settings.

    Raises:
        ModelError: the model has no dropout.
    """

    def __init__(self, config: TrainRewardModelConfig, model: nn.Module) -> None:
        self.config, self.settings = config, config.contrastive
        set_dropout(model, self.settings.dropout)

    def scores_and_features(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "texts sequence"],
        attention_mask: Int[Tensor, "texts sequence"],
        counted: Bool[Tensor, "texts sequence"],
        **others: Any,
    ) -> tuple[
        Float[Tensor, "texts reads"],
        Float[Tensor, "texts width"],
        Float[Tensor, "texts width"],
    ]:
        """Scores where they are read, and the last hidden state of each answer twice.

        Raises:
            ModelError: the model gives no hidden states, or reads a batch in several passes.
        """
        read = {"input_ids": input_ids, "attention_mask": attention_mask, "counted": counted}
        last = last_true_index(counted)
        scores, first = _with_features(model, {**read, **others}, last)
        _, second = _with_features(model, {**read, **others}, last)
        return scores, first, second

    def loss(self, outputs: Any, inputs: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of preferences, and what answers cost that are too much alike."""
        scores, first, second = outputs
        preference_loss = self.config.row.loss(judgements_of(scores, inputs), self.config.loss)
        if self.settings.of == "differences":
            first, second = (_differences(features) for features in (first, second))
        contrast = contrastive_loss(first, second, temperature=self.settings.temperature)
        return preference_loss + self.settings.weight * contrast


def set_dropout(model: nn.Module, share: float) -> None:
    """Set the dropout of all parts of a model that have any.

    Args:
        model: of Hugging Face.
        share: from 0 to below 1.

    Raises:
        ModelError: no part has dropout.
    """
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
            found += 1
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)
                found += 1
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no dropout, so that two readings of a text are the same; "
            "expected a model with dropout, or contrastive.weight 0"
        )


def _with_features(
    model: nn.Module, read: Mapping[str, Any], last: Int[Tensor, "texts"]
) -> tuple[Float[Tensor, "texts reads"], Float[Tensor, "texts width"]]:
    """Scores, and the hidden state of the last token that counts."""
    with trunk_output(model) as seen:
        scores = counted_scores(model, **read)
    hidden = states_of_one_pass(model, seen, len(last), needed_by="contrastive.weight")
    return scores, hidden[range(len(last)), last]


def _differences(features: Float[Tensor, "texts width"]) -> Float[Tensor, "texts width"]:
    """What the better answer has above the other, and the other way round, for each pair."""
    chosen, rejected = features.chunk(2)
    return cat([chosen - rejected, rejected - chosen])
