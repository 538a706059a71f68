"""Whole responses drawn by `generate()`: one for each prompt, or the best of several."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.rules import guidance_kl
from tokencredit.decoding.search.hf_segment_search import ResponseScorer, SearchOutput
from tokencredit.errors import ConfigError
from tokencredit.masking import masked_sum
from tokencredit.models.hf_sampling import drawn_sequences, response_extent
from tokencredit.sampling import Sampling

Drawing = Callable[
    [Int[Tensor, "prompts prompt"], Bool[Tensor, "prompts prompt"], int],
    Int[Tensor, "rows sequence"],
]
"""From prompts and a number of copies to prompts with so many responses to each, as
`drawn_sequences` gives them: what draws in a model's place."""


@torch.no_grad()
def best_of_n(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    score: ResponseScorer,
    sampling: Sampling,
    *,
    n: int,
    eos_token_ids: tuple[int, ...] = (),
    pad_token_id: int = 0,
    draw: Drawing | None = None,
) -> SearchOutput:
    """The best of n responses to each prompt; with n of 1 the only one, which nobody scores.

    Args:
        model: a causal language model in evaluation mode.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        score: of whole responses.
        sampling: how tokens are drawn, from the global random numbers.
        n: responses that are drawn for each prompt.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.
        draw: what draws in the model's place; None for the model.

    Returns:
        Responses, and as their scores those of `score`; zero where n is 1. There the divergence
        from the language model, of what may be drawn, is known too: temperature, top-k and top-p
        make it. Of what something else has drawn it is not.

    Raises:
        ConfigError: `n` is less than 1, or more where the most probable token is taken.
        DataError: a prompt is empty, or does not fit the context with its response.
    """
    require_different(sampling, n)
    divergences: list[Tensor] = []

    def watch(plain: Tensor, drawn: Tensor) -> None:
        divergences.append(_divergence(plain, drawn, sampling))

    if draw is not None:
        sequences = draw(prompt_ids, prompt_mask, n)
    else:
        sequences = drawn_sequences(
            model,
            prompt_ids,
            prompt_mask,
            sampling=sampling,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_ids,
            copies=n,
            watch=watch if n == 1 and not sampling.is_plain else None,
        )
    batch = written_responses(prompt_ids, prompt_mask, sequences, eos_token_ids)
    lm_positions, scorer_positions = _positions(batch, n)
    if n == 1:
        zero = torch.zeros(len(prompt_ids), device=prompt_ids.device)
        kl = zero if sampling.is_plain else None
        if divergences:
            kl = masked_sum(torch.stack(divergences, -1), batch.response_mask)
        return SearchOutput(batch, zero, lm_positions, 0 * scorer_positions, kl)
    numbers = torch.arange(len(batch), device=prompt_ids.device) // n
    scores = score(batch, numbers).float().view(-1, n)
    best = scores.argmax(-1)
    rows = torch.arange(len(best), device=best.device) * n + best
    chosen = scores.gather(-1, best[:, None])[:, 0]
    return SearchOutput(batch[rows], chosen, lm_positions, scorer_positions)


def best_of_n_kl(n: int) -> float:
    """Most nats that best-of-n can be away from the distribution that it draws from.

    Source: Beirami et al. 2024, arXiv 2401.01879, who show log n - (n - 1) / n to be a bound.

    >>> best_of_n_kl(1)
    0.0
    """
    return math.log(n) - (n - 1) / n


def require_different(sampling: Sampling, n: int) -> None:
    """Reject a number of responses that cannot differ from each other.

    Raises:
        ConfigError: `n` is less than 1, or more where the most probable token is taken.
    """
    if n < 1 or (n > 1 and sampling.temperature == 0.0):
        raise ConfigError(
            f"n is {n} and temperature {sampling.temperature}; expected at least 1 response, and a "
            "positive temperature for more, which would all be the same"
        )


def written_responses(
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    sequences: Int[Tensor, "rows sequence"],
    eos_token_ids: tuple[int, ...],
) -> ResponseBatch:
    """Prompts and what follows them, up to and with the first end of sequence.

    Args:
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        sequences: prompts and responses as `generate()` gives them, the same number for each.
        eos_token_ids: end a response.
    """
    copies = len(sequences) // len(prompt_ids)
    response = sequences[:, prompt_ids.shape[1] :]
    return ResponseBatch(
        prompt_ids.repeat_interleave(copies, 0),
        prompt_mask.repeat_interleave(copies, 0),
        response,
        response_extent(response, eos_token_ids)[0],
    )


def _divergence(
    plain: Float[Tensor, "rows vocab"], drawn: Float[Tensor, "rows vocab"], sampling: Sampling
) -> Float[Tensor, "rows"]:
    """How far from the language model the next token is drawn, in nats."""
    if sampling.temperature == 0.0:  # one token for certain
        return -plain.log_softmax(-1).amax(-1)
    return guidance_kl(drawn, plain)


def _positions(
    batch: ResponseBatch, copies: int
) -> tuple[Int[Tensor, "prompts"], Int[Tensor, "prompts"]]:
    """What `generate()` and a scoring of all copies read, as `SearchOutput` counts it.

    The last token of a response is drawn and not read. The prompt counts for every copy, also where
    `generate()` is handed its keys: whether it is depends on the batch.
    """
    prompts, responses = batch.prompt_mask.sum(-1), batch.lengths
    read = torch.stack([prompts + responses - 1, prompts + responses]).view(2, -1, copies).sum(-1)
    return read[0], read[1]
