"""Responses drawn by `generate()` under given settings alone, from a distribution known exactly.

All shaping of the distribution (temperature, suppressed and forced tokens, top-k, top-p) happens
in one logits processor built from the functions of `logprobs`, and the same functions give the
log-probabilities later: what is scored is what was drawn from. What a checkpoint names as its own
settings of generation (a temperature, penalties, beams) never enters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from tokencredit.errors import DataError
from tokencredit.models.hf_architecture import require_room
from tokencredit.models.hf_shared_beginnings import prompts_read_once
from tokencredit.models.hf_vocabularies import token_ids_without_text
from tokencredit.sampling import (
    Sampling,
    drawable_rows,
    end_ids,
    row_of_place,
    sampling_logits,
)

Watch = Callable[[Float[Tensor, "batch vocab"], Float[Tensor, "batch vocab"]], None]


class SampledDistribution(LogitsProcessor):  # type: ignore[misc]
    """Turns a model's logits into those of the distribution that tokens are drawn from.

    Args:
        sampling: how to draw; at temperature 0 only what cannot be drawn is taken out.
        eos_token_id: ends a response; one, several or None.
        prompt_width: columns before the responses.
        watch: is told, at every step, the logits of what may be drawn and those drawn from.
    """

    def __init__(
        self,
        sampling: Sampling,
        eos_token_id: int | Sequence[int] | None,
        prompt_width: int,
        *,
        watch: Watch | None = None,
    ) -> None:
        self.sampling = sampling
        self.eos_token_id = eos_token_id
        self.prompt_width = prompt_width
        self.watch = watch
        self._drawable: Tensor | None = None

    def __call__(
        self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of this step with everything that cannot be drawn at minus infinity."""
        logits = scores.float()
        if self.sampling.bans:
            if self._drawable is None:
                rows = drawable_rows(self.sampling, scores.shape[-1], self.eos_token_id)
                self._drawable = rows.to(scores.device)
            place = torch.tensor([input_ids.shape[1] - self.prompt_width])
            drawable = self._drawable[int(row_of_place(self.sampling, place))]
            logits = logits.masked_fill(~drawable, -torch.inf)
        greedy = self.sampling.temperature == 0.0
        drawn = logits if greedy else sampling_logits(logits, None, self.sampling)
        if self.watch is not None:
            self.watch(logits, drawn)
        return drawn


@contextmanager
def without_generation_defaults(model: Any) -> Iterator[None]:
    """Leave out the settings of generation that came with the model.

    `generate()` fills from them whatever its caller left unsaid: penalties, beams, forced tokens.

    Args:
        model: of transformers, with or without PEFT adapters.
    """
    # PEFT hands its own settings to the model inside at every call.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = [(each, each.generation_config) for each in (inner, model)]
    for each, _ in kept:
        each.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for each, config in kept:
            each.generation_config = config


def generation_settings(
    sampling: Sampling, *, pad_token_id: int, eos_token_id: int | Sequence[int] | None
) -> GenerationConfig:
    """What `generate()` is to do itself, where `SampledDistribution` shapes what it draws from.

    Args:
        sampling: how many tokens, and whether they are drawn.
        pad_token_id: what stands after a finished response.
        eos_token_id: ends a response; one, several or None.
    """
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0.0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad_token_id,
        eos_token_id=list(end_ids(eos_token_id)) or None,
    )


def undrawable_ids(tokenizer: PreTrainedTokenizerBase, model: Any) -> tuple[int, ...]:
    """Ids that a model has logits for but no token, so that none may be drawn.

    Args:
        tokenizer: of the model.
        model: a causal language model, of several parts or not, whole or sharded.
    """
    width = model.config.get_text_config().vocab_size
    return tuple(token_ids_without_text(tokenizer, width))


@torch.no_grad()
def drawn_sequences(
    model: Any,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    *,
    sampling: Sampling,
    pad_token_id: int,
    eos_token_id: int | Sequence[int] | None,
    copies: int = 1,
    in_step: bool = False,
    watch: Watch | None = None,
    mixture: LogitsProcessor | None = None,
) -> Int[Tensor, "rows sequence"]:
    """Prompts with a response after each, drawn by `generate()` from `sampling_logits`.

    Args:
        model: a causal language model, with or without PEFT adapters.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        sampling: how to draw; a temperature of 0 takes the most probable token.
        pad_token_id: what stands after a finished response.
        eos_token_id: ends a response and belongs to it; one, several or None.
        copies: responses to each prompt, which stand together.
        in_step: make as many forward passes as the process with the longest responses, for weights
            that the processes gather together in every pass.
        watch: as of `SampledDistribution`.
        mixture: changes the model's logits before all that `sampling` says; None keeps them.

    Raises:
        DataError: a prompt is empty, or prompt and response do not fit the model's context.
    """
    if not bool(prompt_mask.any(-1).all()):
        raise DataError("a prompt is empty; expected at least one token, a BOS token for example")
    require_room(model, int(prompt_mask.sum(-1).max()) + sampling.max_new_tokens)
    processor = SampledDistribution(sampling, eos_token_id, prompt_ids.shape[1], watch=watch)
    config = generation_settings(sampling, pad_token_id=pad_token_id, eos_token_id=eos_token_id)
    prompt_ids = prompt_ids.repeat_interleave(copies, dim=0)
    prompt_mask = prompt_mask.repeat_interleave(copies, dim=0).long()
    read: dict[str, Any] = {}
    if not in_step:  # processes that keep in step make the same passes
        new = sampling.max_new_tokens
        read = prompts_read_once(model, prompt_ids, prompt_mask, new_tokens=new)
    with without_generation_defaults(model):
        return model.generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([mixture, processor] if mixture else [processor]),
            synced_gpus=in_step,
            **read,
        )


def response_extent(
    response_ids: Int[Tensor, "batch time"],
    eos_token_id: int | Sequence[int] | None,
    response_lengths: Int[Tensor, "batch"] | None = None,
) -> tuple[Bool[Tensor, "batch time"], Bool[Tensor, "batch"]]:
    """Mask of each response up to and including its first end of sequence, and whether it ended.

    Args:
        response_ids: padded on the right.
        eos_token_id: ends a response; one, several or None.
        response_lengths: where each is cut in any case; None for none.

    >>> response_extent(torch.tensor([[5, 2, 2], [5, 6, 7], [3, 5, 6]]), (2, 3))
    (tensor([[ True,  True, False],
            [ True,  True,  True],
            [ True, False, False]]), tensor([ True, False,  True]))
    """
    is_end = torch.isin(response_ids, response_ids.new_tensor(end_ids(eos_token_id)))
    ends_before = is_end.long().cumsum(-1) - is_end.long()
    mask = ends_before == 0
    if response_lengths is not None:
        time = torch.arange(response_ids.shape[1], device=response_ids.device)
        mask = mask & (time < response_lengths[:, None])
    return mask, (is_end & mask).any(-1)
