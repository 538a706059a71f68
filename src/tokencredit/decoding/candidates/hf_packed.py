"""All candidates of a text in one forward pass: queries that see the text and themselves.

A step feeds [last token, c_1 ... c_k] after the keys that are kept, with a mask of our own and
each candidate at the position that comes next, then cuts the candidates off again. The last token
is fed with them, so that the scorer need not be told which candidate was drawn.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScores
from tokencredit.errors import ModelError
from tokencredit.models.heads import float32_outputs, scalar_scores
from tokencredit.models.hf_architecture import (
    accepts,
    context_limit,
    require_evaluation,
    require_prefix_scores,
    require_room,
    sequence_classifier,
    text_positions,
    vocabulary_width,
)
from tokencredit.models.hf_kept_keys import attention_windows, cache_argument, shared_columns

# Queries of one pass: a long prompt would need a mask of its length squared.
_CHUNK = 512


class PackedCache:
    """Keys and values of a batch, and for each column its position and whether it counts.

    Args:
        module: a trunk or a language model.

    Raises:
        ModelError: its attention does not take a mask of our own.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        windows = attention_windows(module)
        if windows is None:
            raise ModelError(
                f"{type(module).__name__} (attention {module.config._attn_implementation!r}) does "
                "not take a mask of our own; expected layers of full or sliding attention, by "
                "'sdpa' or 'eager': load it so, or take method='rows'"
            )
        self.module = module
        self.windows = windows
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # Without a config every layer keeps all keys; sliding windows are in our mask.
        self.cache = DynamicCache()
        self.positions: Tensor | None = None
        self.counts: Tensor | None = None

    @property
    def width(self) -> int:
        """How many columns are kept."""
        return 0 if self.positions is None else self.positions.shape[1]

    def drop(self, columns: int) -> None:
        """Cut off the last columns."""
        if columns >= self.width:
            self.clear()
        elif columns > 0:
            assert self.positions is not None
            assert self.counts is not None
            self.cache.crop(-columns)
            self.positions = self.positions[:, :-columns]
            self.counts = self.counts[:, :-columns]

    @torch.no_grad()
    def feed(
        self,
        ids: Int[Tensor, "batch queries"],
        positions: Int[Tensor, "batch queries"],
        counts: Bool[Tensor, "batch queries"],
        sees: Bool[Tensor, "batch queries queries"],
        *,
        last: int,
    ) -> Any:
        """The model's output at the last columns, which join those that are kept.

        Args:
            ids: to feed; where they do not count, anything.
            positions: of each in its text.
            counts: False on padding, which nobody sees.
            sees: which of these columns each one sees; never one to its right. What is kept from
                before is seen by all, and so are all columns but the last ones by those after them.
            last: how many columns of output are wanted.
        """
        require_evaluation(self.module)
        ids = ids.masked_fill(~counts, 0)
        limit = context_limit(self.module)
        positions = positions.clamp(0, None if limit is None else limit - 1)
        total, start = ids.shape[1], 0
        while True:
            stop = total if total - start - last <= _CHUNK else start + _CHUNK
            columns = slice(start, stop)
            output = self._pass(
                ids[:, columns],
                positions[:, columns],
                counts[:, columns],
                sees[:, columns, columns],
                last if stop == total else 1,
            )
            if stop == total:
                return output
            start = stop

    def _pass(self, ids: Tensor, positions: Tensor, counts: Tensor, sees: Tensor, last: int) -> Any:
        """One forward pass."""
        before = self.width
        kept_positions, kept = self.positions, self.counts
        if kept_positions is not None and kept is not None:
            visible = torch.cat([kept[:, None].expand(-1, ids.shape[1], -1), sees], dim=-1)
            kept_positions = torch.cat([kept_positions, positions], dim=-1)
            kept = torch.cat([kept, counts], dim=-1)
        else:
            visible, kept_positions, kept = sees, positions, counts
        visible = visible & kept[:, None]
        itself = torch.arange(ids.shape[1], device=ids.device)
        visible[:, itself, before + itself] = True  # a row of zeros would be a division by zero
        distances = positions[:, :, None] - kept_positions[:, None]
        masks = {
            kind: self._additive(visible if window is None else visible & (distances < window))
            for kind, window in self.windows.items()
        }
        options = {"logits_to_keep": last} if accepts(self.module, "logits_to_keep") else {}
        output = self.module(
            input_ids=ids,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions,
            **cache_argument(self.module, self.cache),
            use_cache=True,
            **options,
        )
        self.positions, self.counts = kept_positions, kept
        return output

    def _additive(self, visible: Tensor) -> Tensor:
        """A mask that is added to the logits: eager attention would add a bool one as well."""
        dtype = self.module.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


class PackedText:
    """Running texts in a `PackedCache`: feeds what is new with all candidates after it."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.packed = PackedCache(module)
        self.ids: Tensor | None = None
        self.mask: Tensor | None = None

    def step(self, batch: CandidateBatch) -> Any:
        """The model's output; its last columns are the end of the text and each candidate."""
        text_ids, text_mask = batch.text_ids, batch.text_mask
        number, time = batch.candidate_ids.shape[1], text_ids.shape[1]
        known = min(shared_columns(text_ids, text_mask, self.ids, self.mask), time - 1)
        self.packed.drop(self.packed.width - known)
        positions = text_positions(text_mask)
        ids = torch.cat([text_ids[:, known:], batch.candidate_ids], dim=-1)
        counts = torch.cat([text_mask[:, known:], batch.candidate_mask], dim=-1)
        next_positions = (positions[:, -1:] + 1).expand(-1, number)
        positions = torch.cat([positions[:, known:], next_positions], dim=-1)
        sees = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        sees[:, time - known :] = False  # no candidate is seen but by itself
        self.ids = self.mask = None  # in case the pass fails
        output = self.packed.feed(
            ids, positions, counts, sees.expand(len(ids), -1, -1), last=number + 1
        )
        self.packed.drop(number)
        self.ids, self.mask = text_ids, text_mask
        return output


class PackedScorer:
    """Scores every candidate in one pass over the trunk of a reward model.

    Args:
        model: a causal sequence-classification model.

    Raises:
        ModelError: it has no score at every prefix, or takes no mask of our own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = sequence_classifier(model)
        require_prefix_scores(self.model, instead="method='full'")
        self.text = PackedText(self.model.base_model)
        self.vocab: int | None = vocabulary_width(self.model)

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by one pass over what is new, all candidates as queries of it.

        Raises:
            DataError: a text with one more token is longer than the model reads.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.model.device)
        require_room(self.model, batch.longest + 1)
        output = self.text.step(batch)
        hidden = output.last_hidden_state[:, -1 - batch.candidate_ids.shape[1] :]
        with torch.no_grad():
            scores = scalar_scores(float32_outputs(self.model.score, hidden))
        return CandidateScores(scores[:, 1:], scores[:, 0])
