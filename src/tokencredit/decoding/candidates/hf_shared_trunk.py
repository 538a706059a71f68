"""Scores by a head on the trunk of the language model that generates."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.decoding.candidates.hf_packed import PackedText
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScores
from tokencredit.models.heads import float32_outputs, scalar_scores
from tokencredit.models.hf_architecture import require_room, vocabulary_width
from tokencredit.models.hf_kept_keys import shared_columns


class SharedTrunkScorer:
    """Scores by a head on the language model's own trunk: the pass that scores predicts as well.

    In `guided_generate` the reward model then costs no pass of its own; in plain `generate()` the
    language model runs beside it.

    Args:
        model: the causal language model that generates.
        head: from hidden states (..., width) to (..., 1) or, for two classes, (..., 2).

    Raises:
        ModelError: the language model takes no mask of our own.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Module) -> None:
        self.model = model
        self.head = head
        self.text = PackedText(model)
        self.vocab: int | None = vocabulary_width(model)
        self._candidates: Tensor | None = None
        self._logits: Tensor | None = None

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by one pass of the language model, whose logits are kept for `next_logits`.

        Raises:
            DataError: a text with one more token is longer than the model reads.
            ModelError: the language model is in training mode, or the head has not one or two
                outputs.
        """
        batch = batch.to(self.model.device)
        require_room(self.model, batch.longest + 1)
        hidden = self._step(batch)
        with torch.no_grad():
            scores = scalar_scores(float32_outputs(self.head, hidden))
        return CandidateScores(scores[:, 1:], scores[:, 0])

    def next_logits(
        self, text_ids: Int[Tensor, "batch time"], text_mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the token after each text, from the pass that scored it if there was one."""
        time = text_ids.shape[1]
        if self._candidates is None or self._logits is None or self.text.ids is None:
            return self._first_logits(text_ids, text_mask)
        if self._candidates.shape != (len(text_ids), self._logits.shape[1] - 1):
            return self._first_logits(text_ids, text_mask)
        shared = shared_columns(text_ids, text_mask, self.text.ids, self.text.mask)
        if shared != time - 1 or self.text.ids.shape[1] != time - 1:
            return self._first_logits(text_ids, text_mask)
        is_last = self._candidates == text_ids[:, -1:]
        if not bool((is_last.any(-1) | self._finished).all()):
            return self._first_logits(text_ids, text_mask)
        rows = torch.arange(len(text_ids), device=text_ids.device)
        return self._logits[rows, 1 + is_last.long().argmax(-1)]

    def _first_logits(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Logits by a pass over what is new of the text, without candidates."""
        self._step(CandidateBatch(text_ids, text_mask, text_ids[:, :0], text_mask[:, :0]))
        assert self._logits is not None
        return self._logits[:, 0]

    def _step(self, batch: CandidateBatch) -> Tensor:
        """Hidden states at the end of the text and of each candidate; logits are remembered."""
        states: list[Tensor] = []
        trunk = self.model.base_model
        hook = trunk.register_forward_hook(
            lambda _module, _inputs, output: states.append(output.last_hidden_state)
        )
        try:
            output = self.text.step(batch)
        finally:
            hook.remove()
        last = batch.candidate_ids.shape[1] + 1
        self._candidates, self._logits = batch.candidate_ids, output.logits[:, -last:].float()
        self._finished = ~batch.active
        return states[-1][:, -last:]
