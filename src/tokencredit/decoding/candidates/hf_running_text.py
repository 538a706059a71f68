"""A model that follows running texts: keys and values are kept, and only what is new is fed."""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tokencredit.models.hf_architecture import (
    accepts,
    context_limit,
    require_evaluation,
    text_positions,
)
from tokencredit.models.hf_kept_keys import cache_argument, shared_columns


class RunningText:
    """Outputs of a causal model at the end of texts that mostly grow by one token.

    What a text shares with the one before, in all rows, is not fed again; where it differs, the
    cache is cut back to that column. So any text may follow any other, and outputs depend on the
    text alone. The model makes its own masks from the mask of the text: any attention
    implementation and any kind of layer will do.

    Args:
        module: a trunk, which gives hidden states, or a language model, which gives logits.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self.cache: Any = None
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        # Recurrent states cannot be cut back. All other layers keep every key, beyond a sliding
        # window too, since what is cut off again must have pushed nothing out.
        layers = DynamicCache(config=module.config).layers
        self.croppable = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
        )

    def outputs(
        self,
        text_ids: Int[Tensor, "batch time"],
        text_mask: Bool[Tensor, "batch time"],
        *,
        last: int = 1,
    ) -> Float[Tensor, "batch last width"]:
        """Hidden states or logits at the last columns of the texts.

        Args:
            text_ids: padded on the left.
            text_mask: True on real tokens.
            last: how many columns.

        Raises:
            ModelError: the model is in training mode.
        """
        require_evaluation(self.module)
        known = self.known_columns(text_ids, text_mask)
        known = self._cut_back(min(known, text_ids.shape[1] - last))
        output = self._feed(self.cache, text_ids[:, known:], text_mask, last)
        self._ids, self._mask = text_ids, text_mask
        return output

    def known_columns(
        self, text_ids: Int[Tensor, "batch time"], text_mask: Bool[Tensor, "batch time"]
    ) -> int:
        """How many columns from the left the texts share with those fed last."""
        return shared_columns(text_ids, text_mask, self._ids, self._mask)

    def repeat_rows(self, copies: int) -> None:
        """Go on with so many copies of each text fed last, one below the other."""
        assert self._ids is not None
        assert self._mask is not None
        self.cache.batch_repeat_interleave(copies)
        self._ids = self._ids.repeat_interleave(copies, dim=0)
        self._mask = self._mask.repeat_interleave(copies, dim=0)

    def branches(
        self, candidate_ids: Int[Tensor, "batch candidates"]
    ) -> Float[Tensor, "batch candidates width"]:
        """Outputs for each candidate after the text fed last, in a copy of the cache that is lost.

        What models with recurrent layers need, whose states cannot be cut back.
        """
        assert self._mask is not None
        batch, number = candidate_ids.shape
        rows = torch.arange(batch, device=candidate_ids.device).repeat_interleave(number)
        branched = copy.deepcopy(self.cache)
        branched.reorder_cache(rows)
        mask = pad(self._mask, (0, 1), value=True)[rows]
        output = self._feed(branched, candidate_ids.reshape(-1, 1), mask, 1)
        return output.view(batch, number, -1)

    def _cut_back(self, known: int) -> int:
        """Keep this many columns of the cache, or begin anew; how many are there now."""
        held = 0 if self._ids is None else self._ids.shape[1]
        if known <= 0 or (known < held and not self.croppable):
            self.cache = (
                DynamicCache() if self.croppable else DynamicCache(config=self.module.config)
            )
            self._ids = self._mask = None
            return 0
        if known < held:
            self.cache.crop(known - held)
            assert self._ids is not None
            assert self._mask is not None
            self._ids, self._mask = self._ids[:, :known], self._mask[:, :known]
        return known

    def _feed(self, cache: Any, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        """Feed the ids, which stand at the end of the mask."""
        options: dict[str, Any] = {}
        if accepts(self.module, "position_ids"):
            positions = text_positions(mask, limit=context_limit(self.module))
            options["position_ids"] = positions[:, -ids.shape[1] :]
        if accepts(self.module, "logits_to_keep"):
            options["logits_to_keep"] = last
        with torch.no_grad():
            output = self.module(
                input_ids=ids,
                attention_mask=mask.long(),
                **cache_argument(self.module, cache),
                use_cache=True,
                **options,
            )
        logits = getattr(output, "logits", None)
        states = output.last_hidden_state if logits is None else logits
        return states[:, -last:]
