"""Draw responses with `generate()` from a distribution that is known exactly.

All shaping of the distribution (temperature, suppressed and forced tokens, top-k, top-p) happens
in one logits processor built from the functions of `logprobs`, and the same functions give the
log-probabilities later: what is scored is what was drawn from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tokencredit.batch import ResponseBatch
from tokencredit.errors import DataError
from tokencredit.models.hf_architecture import config_value, require_room
from tokencredit.sampling import Sampling, drawable_tokens, sampling_logits


class SampledDistribution(LogitsProcessor):  # type: ignore[misc]
    """Turns a model's logits into those of the distribution that tokens are drawn from."""

    def __init__(
        self, sampling: Sampling, drawable: Bool[Tensor, "time vocab"], prompt_width: int
    ) -> None:
        self.sampling = sampling
        self.drawable = drawable
        self.prompt_width = prompt_width

    def __call__(
        self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of this step with everything that cannot be drawn at minus infinity."""
        step = input_ids.shape[1] - self.prompt_width
        return sampling_logits(scores, self.drawable[step], self.sampling)


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Leave out the generation defaults that came with the model (repetition penalties, say)."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


@torch.no_grad()
def sampled_responses(
    model: Any,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    *,
    sampling: Sampling,
    pad_token_id: int,
    eos_token_id: int | None,
    response_lengths: Int[Tensor, "batch"] | None = None,
    in_step: bool = False,
) -> tuple[ResponseBatch, Bool[Tensor, "batch"]]:
    """Draw one response per prompt.

    Args:
        model: a causal language model, with or without PEFT adapters.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        sampling: how to draw.
        pad_token_id: what stands after a finished response.
        eos_token_id: ends a response and belongs to it; None for responses without end.
        response_lengths: cut each response to its own length, for protocols that draw it
            beforehand; None lets responses end by themselves.
        in_step: make as many forward passes as the process with the longest responses, for weights
            that the processes gather together in every pass.

    Returns:
        The batch, and True for each response that was cut off before it ended.

    Raises:
        DataError: a prompt is empty, or prompt and response do not fit the model's context.
    """
    if not bool(prompt_mask.any(-1).all()):
        raise DataError("a prompt is empty; expected at least one token, a BOS token for example")
    require_room(model, int(prompt_mask.sum(-1).max()) + sampling.max_new_tokens)
    drawable = drawable_tokens(sampling, config_value(model, "vocab_size"), eos_token_id)
    processor = SampledDistribution(sampling, drawable.to(prompt_ids.device), prompt_ids.shape[1])
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
    )
    with _plain_generation(model):
        sequences = model.generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask.long(),
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
            synced_gpus=in_step,
        )
    response_ids = sequences[:, prompt_ids.shape[1] :]
    mask, ended = response_extent(response_ids, eos_token_id, response_lengths)
    batch = ResponseBatch(
        prompt_ids, prompt_mask, response_ids.masked_fill(~mask, pad_token_id), mask
    )
    return batch, ~ended


def response_extent(
    response_ids: Int[Tensor, "batch time"],
    eos_token_id: int | None,
    response_lengths: Int[Tensor, "batch"] | None = None,
) -> tuple[Bool[Tensor, "batch time"], Bool[Tensor, "batch"]]:
    """Mask of each response up to and including its first end of sequence, and whether it ended.

    >>> response_extent(torch.tensor([[5, 2, 2], [5, 6, 7]]), 2)
    (tensor([[ True,  True, False],
            [ True,  True,  True]]), tensor([ True, False]))
    """
    is_end = torch.zeros_like(response_ids, dtype=torch.bool)
    if eos_token_id is not None:
        is_end = response_ids == eos_token_id
    ends_before = is_end.long().cumsum(-1) - is_end.long()
    mask = ends_before == 0
    if response_lengths is not None:
        time = torch.arange(response_ids.shape[1], device=response_ids.device)
        mask = mask & (time < response_lengths[:, None])
    return mask, (is_end & mask).any(-1)
