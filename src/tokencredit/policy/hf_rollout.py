"""Draw the responses of a policy, and say where each ends."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import LogitsProcessor

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError
from tokencredit.models.hf_sampling import drawn_sequences, response_extent
from tokencredit.sampling import Sampling


def sampled_responses(
    model: Any,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    *,
    sampling: Sampling,
    pad_token_id: int,
    eos_token_id: int | Sequence[int] | None,
    response_lengths: Int[Tensor, "batch"] | None = None,
    in_step: bool = False,
    mixture: LogitsProcessor | None = None,
) -> tuple[ResponseBatch, Bool[Tensor, "batch"]]:
    """Draw one response per prompt.

    Args:
        model: a causal language model, with or without PEFT adapters. The settings of generation
            that came with it are left out.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        sampling: how to draw.
        pad_token_id: what stands after a finished response.
        eos_token_id: ends a response and belongs to it, each of several; None for responses
            without end. `turn_end_ids` finds all that a model declares.
        response_lengths: cut each response to its own length, for protocols that draw it
            beforehand; None lets responses end by themselves.
        in_step: make as many forward passes as the process with the longest responses, for weights
            that the processes gather together in every pass.
        mixture: changes the model's logits before they are shaped, as in `drawn_sequences`.

    Returns:
        The batch, and True for each response that was cut off before it ended.

    Raises:
        ConfigError: the temperature is 0, which leaves no distribution to learn from.
        DataError: a prompt is empty, or prompt and response do not fit the model's context.
    """
    if sampling.temperature == 0.0:
        raise ConfigError(
            "temperature is 0, which leaves no distribution; expected a positive number"
        )
    sequences = drawn_sequences(
        model,
        prompt_ids,
        prompt_mask,
        sampling=sampling,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        in_step=in_step,
        mixture=mixture,
    )
    response_ids = sequences[:, prompt_ids.shape[1] :]
    mask, ended = response_extent(response_ids, eos_token_id, response_lengths)
    batch = ResponseBatch(
        prompt_ids, prompt_mask, response_ids.masked_fill(~mask, pad_token_id), mask
    )
    return batch, ~ended
