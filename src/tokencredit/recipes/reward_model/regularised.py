"""Training of reward models that keeps their hidden states those of a language model (GRM).

The head of the language model that training starts from stays beside the classifier, frozen, and
says how likely the answers are by the hidden states of the very pass that scores them. It belongs
to the loss and not to the model: checkpoints and the trained model are the classifier's alone. In
the published code the head is trained too, unless adapters are.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import padded_rows
from tokencredit.errors import ModelError
from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_loading import load_model
from tokencredit.models.hf_logprobs import CHUNK_SIZE, response_logprobs
from tokencredit.models.hf_trunk import same_logits, states_of_one_pass, trunk_output
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.recipes.training.arguments import training_device
from tokencredit.reward_model.losses.regularisers import (
    hidden_state_regulariser,
    regularised_loss,
)
from tokencredit.scorers.hf_fractions import counted_scores
from tokencredit.text.hf_token_rows import response_batch


class KeptHead:
    """The head of the language model that training starts from, and what it says of a reference.

    Args:
        config: the settings.
        tokenizer: of the model in training.
        rows: pairs to learn from.

    Raises:
        ModelError: there is no language model to start from, or its logits are more than a linear
            map of its hidden states.
    """

    def __init__(
        self,
        config: TrainRewardModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[JudgedRow],
    ) -> None:
        self.settings = config.regulariser
        frozen: dict[str, Any] = {**config.loading.of_frozen, "device": training_device(config)}
        language_model = load_model(AutoModelForCausalLM, config.model, **frozen)
        self.head = _linear_head(language_model)
        self.references: list[tuple[float, float]] = []
        if self.settings.form == "dpo" and self.settings.reference == "start":
            sums = _sums(language_model, rows, tokenizer, config.training.batch_size)
            self.references = list(zip(*sums, strict=True))

    def columns(self, rows: Sequence[JudgedRow], indices: Sequence[int]) -> dict[str, Tensor]:
        """What a batch says of these rows: which tokens are responses, and their references.

        Args:
            rows: of the batch.
            indices: of the same rows among all.
        """
        texts = [one.responses[side] for side in (0, 1) for one in rows]
        responses, _ = padded_rows([text.response_mask for text in texts], fill=0, side="right")
        found = {"responses": responses.bool()}
        if self.references:
            found["references"] = torch.tensor([self.references[at] for at in indices])
        return found

    def scores_and_likelihoods(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "texts sequence"],
        attention_mask: Int[Tensor, "texts sequence"],
        counted: Bool[Tensor, "texts sequence"],
        responses: Bool[Tensor, "texts sequence"],
    ) -> tuple[Float[Tensor, "texts reads"], Float[Tensor, "texts"]]:
        """Scores where they are read, and the log-probability of each response, with gradient.

        Of the other answers it is 0 where the regulariser does not read it.

        Raises:
            ModelError: the model reads the rows of a batch in several passes.
        """
        with trunk_output(model) as seen:
            scores = counted_scores(model, input_ids, attention_mask, counted)
        hidden = states_of_one_pass(model, seen, len(input_ids), needed_by="regulariser.form")
        responses = responses[:, : hidden.shape[1]].clone()
        if self.settings.form != "dpo":
            responses[len(responses) // 2 :] = False
        predicted = responses[:, 1:]
        states = hidden[:, :-1][predicted]
        ids = input_ids[:, 1 : hidden.shape[1]][predicted]
        parts = zip(*(torch.split(one, CHUNK_SIZE) for one in (states, ids)), strict=True)
        logprobs = [checkpoint(self._logprobs, *part, use_reentrant=False) for part in parts]
        found = scores.new_zeros(predicted.shape)
        found[predicted] = torch.cat(logprobs)
        return scores, found.sum(-1)

    def _logprobs(
        self, states: Float[Tensor, "tokens width"], ids: Int[Tensor, "tokens"]
    ) -> Float[Tensor, "tokens"]:
        """What the head says of tokens by the states before them, in float32."""
        with torch.autocast(states.device.type, enabled=False):
            return token_logprobs(self.head.to(states.device)(states.float()), ids)

    def loss(
        self,
        preference_loss: Float[Tensor, ""],
        likelihoods: Float[Tensor, "texts"],
        inputs: dict[str, Tensor],
    ) -> Float[Tensor, ""]:
        """The loss of a batch with what keeps the hidden states."""
        chosen, rejected = likelihoods.chunk(2)
        references = inputs.get("references")
        refs = (None, None) if references is None else references.unbind(-1)
        regulariser = hidden_state_regulariser(
            chosen,
            rejected_logprobs=rejected,
            form=self.settings.form or "sft",
            scale=self.settings.scale,
            chosen_ref_logprobs=refs[0],
            rejected_ref_logprobs=refs[1],
        )
        return regularised_loss(preference_loss, regulariser, weight=self.settings.weight)


def _linear_head(language_model: PreTrainedModel) -> nn.Module:
    """The head alone, in float32, frozen.

    Raises:
        ModelError: the logits are not what it makes of the last hidden states.
    """
    head: nn.Module = deepcopy(language_model.get_output_embeddings()).float()
    ids = torch.tensor([[1, 2, 3]], device=language_model.device)
    with torch.no_grad(), trunk_output(language_model) as seen:
        own = language_model(input_ids=ids, use_cache=False).logits[0, -1:]
        hidden = seen[-1][1].last_hidden_state if seen else None
        same = hidden is not None and same_logits(own, head(hidden[0, -1:].float()).to(own.dtype))
    if not same:
        raise ModelError(
            f"{type(language_model).__name__} makes more of its last hidden states than its output "
            "head does, a soft cap or a scale for example; expected a model with a linear head, or "
            "no regulariser.form"
        )
    return head.requires_grad_(False)


def _sums(
    language_model: PreTrainedModel,
    rows: Sequence[JudgedRow],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> list[list[float]]:
    """Log-probabilities of chosen and of rejected responses by the frozen language model."""
    found = []
    for side in (0, 1):
        texts = [one.responses[side] for one in rows]
        batch = response_batch(texts, pad_id=int(tokenizer.pad_token_id))
        logprobs = response_logprobs(language_model, batch, micro_batch_size=batch_size)
        # What stands after a response, the end of a chat turn, belongs to no response.
        masks, _ = padded_rows(
            [text.response_mask[text.start :] for text in texts], fill=0, side="right"
        )
        found.append((logprobs.cpu() * masks[:, : logprobs.shape[1]]).sum(-1).tolist())
    return found
