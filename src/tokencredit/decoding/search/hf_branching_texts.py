"""Texts that are written, copied and cut back together, over one cache of keys and values."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.candidates.hf_running_text import RunningText
from tokencredit.decoding.rules import chosen_tokens
from tokencredit.errors import DataError
from tokencredit.masking import last_true_index, left_packed
from tokencredit.models.hf_architecture import require_room
from tokencredit.sampling import Sampling, drawable_rows, row_of_place, sampling_logits

Stops = Callable[[Float[Tensor, "rows vocab"], Int[Tensor, "rows"]], Bool[Tensor, "rows"]]


class _CopiedText(RunningText):
    """A running text whose rows can be copied and moved in the cache."""

    fed: Int[Tensor, "rows"]

    def _feed(self, cache: object, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        self.fed = mask[:, -ids.shape[1] :].sum(-1)
        return super()._feed(cache, ids, mask, last)

    @property
    def held(self) -> int:
        """How many columns the cache holds."""
        return 0 if self._ids is None else self._ids.shape[1]

    def rearrange(
        self,
        rows: Int[Tensor, "new"],
        columns: Int[Tensor, "new width"],
        ids: Int[Tensor, "new width"],
        mask: Bool[Tensor, "new width"],
    ) -> None:
        """Make the cache that of other texts.

        Args:
            rows: which row each of them was.
            columns: which column of it each of its columns was.
            ids: of the texts.
            mask: True on their real tokens, all of which the cache holds.
        """
        if not self.croppable or not self.held or not ids.shape[1]:
            # Recurrent states know no columns: the texts are read again.
            self._cut_back(0)
            return
        columns = columns.clamp(max=self.held - 1)  # Padding may have stood in the column after.
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[rows[:, None], :, columns].transpose(1, 2)
                layer.values = layer.values[rows[:, None], :, columns].transpose(1, 2)
        self._ids, self._mask = ids, mask


class BranchingTexts:
    """Beginnings of responses to several prompts, any number for each.

    While some rows are written, others wait: their new columns are padding, which the mask hides.
    `select` copies rows, cuts them back, drops them, and moves all to the right again, keys and
    values with them. So what was cut off is in no cache, and where a model counts distances by
    columns, as sliding windows do, there is no gap inside a text that is written.

    Args:
        model: a causal language model in evaluation mode.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        sampling: how tokens are drawn.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.
        generator: of the random numbers; the global one by default.

    Raises:
        DataError: a prompt is empty, or does not fit the context with `max_new_tokens` after it.
        ModelError: the model is in training mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_ids: Int[Tensor, "prompts prompt"],
        prompt_mask: Bool[Tensor, "prompts prompt"],
        sampling: Sampling,
        *,
        eos_token_ids: tuple[int, ...] = (),
        pad_token_id: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not bool(prompt_mask.any(-1).all()):
            raise DataError("a prompt is empty; expected at least one token, a BOS token say")
        require_room(model, int(prompt_mask.sum(-1).max()) + sampling.max_new_tokens)
        self.sampling = sampling
        self.pad_token_id = pad_token_id
        self.generator = generator
        self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
        self.ids, self.mask = prompt_ids, prompt_mask
        self.prompts = torch.arange(len(prompt_ids), device=prompt_ids.device)
        self.positions = torch.zeros_like(self.prompts)
        self._ends = self.prompts.new_tensor(eos_token_ids)
        self._drawable: Tensor | None = None
        self._text = _CopiedText(model)
        if prompt_ids.shape[1] > 1:
            # Read once, however many responses are to begin here.
            self._text.outputs(prompt_ids[:, :-1], prompt_mask[:, :-1])
            self.positions += self._text.fed

    @property
    def lengths(self) -> Int[Tensor, "rows"]:
        """Response tokens of each row."""
        return self.mask.sum(-1) - self.prompt_mask.sum(-1)[self.prompts]

    @property
    def finished(self) -> Bool[Tensor, "rows"]:
        """Rows that have ended or are as long as may be."""
        last = self.ids.gather(-1, last_true_index(self.mask)[:, None])[:, 0]
        ended = torch.isin(last, self._ends) & (self.lengths > 0)
        return ended | (self.lengths >= self.sampling.max_new_tokens)

    def next_logits(self, writing: Bool[Tensor, "rows"]) -> Float[Tensor, "rows vocab"]:
        """Logits of the next token, minus infinity where it cannot be drawn.

        Rows that are not being written get zeros, and their tokens are not counted.

        Raises:
            ConfigError: a suppressed id lies outside the vocabulary.
        """
        logits = self._text.outputs(self.ids, self.mask)[:, -1].float()
        self.positions.index_add_(0, self.prompts, self._text.fed * writing)
        if self.sampling.bans:
            logits = logits.masked_fill(~self._drawable_next(logits.shape[-1]), -torch.inf)
        return logits.masked_fill(~writing[:, None], 0.0)

    def _drawable_next(self, vocab: int) -> Bool[Tensor, "rows vocab"]:
        """Which tokens can be drawn in the next place of each row."""
        if self._drawable is None:
            rows = drawable_rows(self.sampling, vocab, self._ends.tolist())
            self._drawable = rows.to(self.ids.device)
        places = self.lengths.clamp(max=self.sampling.max_new_tokens - 1)
        return self._drawable[row_of_place(self.sampling, places)]

    def append(self, tokens: Int[Tensor, "rows"], writing: Bool[Tensor, "rows"]) -> None:
        """Add one more column: a token where a row is written, padding elsewhere."""
        column = tokens.masked_fill(~writing, self.pad_token_id)[:, None]
        self.ids = torch.cat([self.ids, column], dim=-1)
        self.mask = torch.cat([self.mask, writing[:, None]], dim=-1)

    def write(self, tokens: int, *, stops: Stops | None = None) -> None:
        """Draw tokens for every row that is not finished.

        Args:
            tokens: at most this many for each row.
            stops: from the next token's logits and the number of tokens drawn so far to whether a
                row takes no more; it is asked before every token.
        """
        writing = ~self.finished
        drawn = torch.zeros_like(self.prompts)
        for _ in range(tokens):
            if not bool(writing.any()):
                break
            logits = self.next_logits(writing)
            if stops is not None:
                writing = writing & ~stops(logits, drawn)
                if not bool(writing.any()):
                    break
            self.append(self._draw(logits), writing)
            drawn = drawn + writing
            writing = writing & ~self.finished

    def _draw(self, logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, "rows"]:
        """A token for every row."""
        if self.sampling.temperature == 0.0:
            return chosen_tokens(logits, temperature=0.0)
        logits = sampling_logits(logits, None, self.sampling)
        return chosen_tokens(logits, generator=self.generator)

    def select(self, rows: Int[Tensor, "new"], lengths: Int[Tensor, "new"] | None = None) -> None:
        """Go on with copies of these rows, in this order.

        Args:
            rows: any of them any number of times.
            lengths: keep this many response tokens of each; all by default.
        """
        kept = self.mask[rows]
        if lengths is not None:
            real = self.prompt_mask.sum(-1)[self.prompts[rows]] + lengths
            kept = kept & (kept.cumsum(-1) <= real[:, None])
        width = int(kept.sum(-1).max())
        columns = kept.long().argsort(dim=-1, stable=True)[:, -width:]
        read = width if self._text.held == self.ids.shape[1] else width - 1
        self.ids, self.mask = self.ids[rows[:, None], columns], kept.gather(-1, columns)
        self.prompts = self.prompts[rows]
        self._text.rearrange(rows, columns[:, :read], self.ids[:, :read], self.mask[:, :read])

    def extend(self, ids: Int[Tensor, "rows more"], mask: Bool[Tensor, "rows more"]) -> None:
        """Put known tokens after the texts, padded on the right, and read them."""
        self.ids = torch.cat([self.ids, ids.masked_fill(~mask, self.pad_token_id)], dim=-1)
        self.mask = torch.cat([self.mask, mask], dim=-1)
        self._text.outputs(self.ids, self.mask)
        self.positions.index_add_(0, self.prompts, mask.sum(-1))
        self.select(torch.arange(len(self.prompts), device=self.prompts.device))

    def tokens_from(
        self, start: Int[Tensor, "rows"] | None = None
    ) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
        """Response tokens from these places on, padded on the right; all by default."""
        before = self.prompt_mask.sum(-1)[self.prompts] + (0 if start is None else start)
        wanted = self.mask & (self.mask.cumsum(-1) > before[:, None])
        ids, mask = left_packed(self.ids, wanted)
        return ids.masked_fill(~mask, self.pad_token_id), mask

    def responses(self) -> ResponseBatch:
        """Prompt and response of every row; a masked column where nothing is written yet."""
        ids, mask = self.tokens_from()
        if not ids.shape[1]:
            ids, mask = pad(ids, (0, 1), value=self.pad_token_id), pad(mask, (0, 1))
        prompts = self.prompts
        return ResponseBatch(self.prompt_ids[prompts], self.prompt_mask[prompts], ids, mask)
