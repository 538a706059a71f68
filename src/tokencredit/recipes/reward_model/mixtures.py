"""Training of several heads with a router on the prompt, each preference being that of one head.

Follows MiCRo (arXiv 2505.24846), stage 1: the likelihood of a pair is the mean of its likelihoods
under all heads, weighted by what a router reads at the end of the prompt. Departures from their
code: (1) the router reads the last token of the prompt, where theirs reads the one after it, the
first of the response; (2) the mixture is trained, where their script trains the mean over heads;
(3) heads have no frozen random part; (4) the trunk learns too.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import DataError
from tokencredit.models.heads import float32_outputs
from tokencredit.models.hf_gates import PromptGate, write_gate
from tokencredit.models.hf_objectives import gated_for_now, linear_head
from tokencredit.models.hf_trunk import states_of_one_pass, trunk_output
from tokencredit.recipes.reward_model.examples import JudgedRow, judgements_of
from tokencredit.recipes.reward_model.head_settings import MixtureSettings
from tokencredit.reward_model.losses.mixtures import mixture_losses, weight_negentropy
from tokencredit.reward_model.objectives import Judgements
from tokencredit.scorers.hf_fractions import counted_scores


class PromptRouter(nn.Module):
    """How much each head counts for a prompt, read in the pass that scores the answers.

    Args:
        model: in training, with an output of each head.
        settings: of the mixture.
        pair_losses: of one head's scores, pair by pair.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: MixtureSettings,
        pair_losses: Callable[[Judgements], Float[Tensor, "pairs"]],
    ) -> None:
        super().__init__()
        features = linear_head(model, needed_by="mixture.heads").in_features
        self.settings, self.pair_losses = settings, pair_losses
        self.gate = PromptGate(
            features,
            settings.heads,
            width=settings.width,
            layers=settings.layers,
            dropout=0.0,
            temperature=1.0,
        )
        self.gate.scale.requires_grad_(False)  # probabilities add up to 1

    def columns(self, rows: Sequence[JudgedRow], _indices: Sequence[int]) -> dict[str, Tensor]:
        """Where the prompts of a batch end.

        Raises:
            DataError: an answer has no prompt.
        """
        starts = torch.tensor([row.responses[0].start for row in rows])
        if bool((starts == 0).any()):
            raise DataError(
                "an answer has no prompt, and mixture.heads needs one, whose end a router reads; "
                "expected prompts, or a tokenizer that begins a sequence with a token"
            )
        return {"prompt_ends": starts - 1}

    def forward(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "texts sequence"],
        attention_mask: Int[Tensor, "texts sequence"],
        counted: Bool[Tensor, "texts sequence"],
        prompt_ends: Int[Tensor, "pairs"],
    ) -> tuple[Float[Tensor, "texts time heads"], Float[Tensor, "pairs heads"]]:
        """Scores by each head, and the logarithms of what each counts."""
        with trunk_output(model) as seen:
            scores = counted_scores(model, input_ids, attention_mask, counted, every_output=True)
        hidden = states_of_one_pass(model, seen, len(input_ids), needed_by="mixture.heads")
        pairs = torch.arange(len(prompt_ends), device=hidden.device)
        logits = float32_outputs(self.gate.network, hidden[pairs, prompt_ends])
        return scores, logits.log_softmax(-1)

    def loss(
        self,
        outputs: tuple[Float[Tensor, "texts time heads"], Float[Tensor, "pairs heads"]],
        inputs: dict[str, Tensor],
    ) -> Float[Tensor, ""]:
        """What the pairs of a batch cost the mixture, and the price of uneven weights."""
        scores, log_weights = outputs
        losses = torch.stack(
            [self.pair_losses(judgements_of(own, inputs)) for own in scores.unbind(-1)], dim=-1
        )
        mixed = inputs["strengths"].float() * mixture_losses(losses, log_weights)
        return mixed.mean() + self.settings.entropy_coef * weight_negentropy(log_weights)

    def view(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """The model with the weighted sum as its score."""
        return gated_for_now(model, self.gate)

    def write(self, model: PreTrainedModel, folder: Path) -> dict[str, float]:
        """Put the router into the folder, as the gate that loading finds there."""
        self.gate.cpu()
        write_gate(self.gate, torch.zeros(self.settings.heads), model, folder, against=None)
        return {}
