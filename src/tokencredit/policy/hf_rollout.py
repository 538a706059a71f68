"""Draw responses with `generate()` from a distribution that is known exactly.

All shaping of the distribution (temperature, suppressed and forced tokens, top-k, top-p) happens
in one logits processor built from the functions of `logprobs`, and the same functions give the
log-probabilities later: what is scored is what was drawn from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, DataError
from tokencredit.logprobs import sampled_logits, top_allowed


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        min_new_tokens: no end of sequence before this many tokens.
        max_new_tokens: responses are cut here.
        temperature: logits are divided by it.
        top_k: draw from this many tokens; 0 for all.
        top_p: draw from the fewest tokens with this probability together; 1 for all.
        suppress_tokens: ids that are never drawn.
        force_eos: draw the end of sequence as the last token of a response of full length.

    Raises:
        ConfigError: a number is out of its range.

    >>> Sampling(max_new_tokens=4, temperature=0.0)
    Traceback (most recent call last):
    tokencredit.errors.ConfigError: temperature is 0.0; expected a positive number
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppress_tokens: tuple[int, ...] = ()
    force_eos: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens {self.max_new_tokens};"
                " expected 0 <= min <= max and max >= 1"
            )
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}; expected a positive number")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_k is {self.top_k} and top_p {self.top_p}; expected top_k >= 0 and "
                "top_p in (0, 1]"
            )

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p cut the distribution, beyond temperature and suppression."""
        return self.top_k > 0 or self.top_p < 1.0


def drawable_tokens(
    sampling: Sampling, vocab_size: int, eos_token_id: int | None
) -> Bool[Tensor, "time vocab"]:
    """Which tokens suppression and forcing leave at each of `max_new_tokens` positions.

    Raises:
        ConfigError: a suppressed id lies outside the vocabulary.

    >>> drawable_tokens(Sampling(max_new_tokens=2, min_new_tokens=1, force_eos=True), 3, 2)
    tensor([[ True,  True, False],
            [False, False,  True]])
    """
    if any(not 0 <= token < vocab_size for token in sampling.suppress_tokens):
        raise ConfigError(
            f"suppress_tokens are {list(sampling.suppress_tokens)}; expected ids from 0 to "
            f"{vocab_size - 1}"
        )
    drawable = torch.ones(sampling.max_new_tokens, vocab_size, dtype=torch.bool)
    drawable[:, list(sampling.suppress_tokens)] = False
    if eos_token_id is not None:
        drawable[: sampling.min_new_tokens, eos_token_id] = False
        if sampling.force_eos:
            drawable[-1] = False
            drawable[-1, eos_token_id] = True
    return drawable


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


def sampling_logits(
    logits: Float[Tensor, "*batch vocab"],
    drawable: Bool[Tensor, "*#batch vocab"],
    sampling: Sampling,
) -> Float[Tensor, "*batch vocab"]:
    """Logits of the distribution that `sampling` draws from, top-k and top-p included."""
    scaled = sampled_logits(logits, temperature=sampling.temperature, allowed=drawable)
    if not sampling.truncates:
        return scaled
    allowed = top_allowed(scaled, top_k=sampling.top_k, top_p=sampling.top_p)
    return scaled.masked_fill(~allowed, -torch.inf)


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
        pad_token_id: what stands behind a finished response.
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
    context = getattr(model.config, "max_position_embeddings", None)
    width = int(prompt_mask.sum(-1).max()) + sampling.max_new_tokens
    if context is not None and width > context:
        raise DataError(
            f"the longest prompt and max_new_tokens need {width} positions; the policy has "
            f"{context}: shorten the prompts or lower max_new_tokens"
        )
    drawable = drawable_tokens(sampling, model.config.vocab_size, eos_token_id)
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
