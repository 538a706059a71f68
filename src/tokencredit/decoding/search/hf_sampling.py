"""Whole responses drawn by `generate()`: one for each prompt, or the best of several."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.search.hf_segment_search import ResponseScorer, SearchOutput
from tokencredit.errors import ConfigError
from tokencredit.sampling import Sampling


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

    Returns:
        Responses, and as their scores those of `score`; zero where n is 1.

    Raises:
        ConfigError: `n` is less than 1, or more where the most probable token is taken.
    """
    require_different(sampling, n)
    sequences: Any = model.generate(
        prompt_ids,
        attention_mask=prompt_mask.long(),
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        pad_token_id=pad_token_id,
        eos_token_id=list(eos_token_ids) or None,
        suppress_tokens=list(sampling.suppress_tokens) or None,
        forced_eos_token_id=list(eos_token_ids) or None if sampling.force_eos else None,
        num_return_sequences=n,
        **_drawing(sampling),
    )
    batch = written_responses(prompt_ids, prompt_mask, sequences, eos_token_ids)
    lm_positions, scorer_positions = _positions(batch, n)
    if n == 1:
        zero = torch.zeros(len(prompt_ids), device=prompt_ids.device)
        return SearchOutput(batch, zero, lm_positions, 0 * scorer_positions)
    scores = score(batch).float().view(-1, n)
    best = scores.argmax(-1)
    rows = torch.arange(len(best), device=best.device) * n + best
    chosen = scores.gather(-1, best[:, None])[:, 0]
    return SearchOutput(batch[rows], chosen, lm_positions, scorer_positions)


def best_of_n_kl(n: int) -> float:
    """Most nats that best-of-n can be away from the model that it draws from.

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
    ends = torch.isin(response, response.new_tensor(eos_token_ids))
    ended_before = ends.cumsum(-1) - ends.long() > 0
    return ResponseBatch(
        prompt_ids.repeat_interleave(copies, 0),
        prompt_mask.repeat_interleave(copies, 0),
        response,
        ~ended_before,
    )


def _drawing(sampling: Sampling) -> dict[str, Any]:
    """Arguments of `generate()` that say how a token is drawn."""
    if sampling.temperature == 0.0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


def _positions(
    batch: ResponseBatch, copies: int
) -> tuple[Int[Tensor, "prompts"], Int[Tensor, "prompts"]]:
    """What `generate()` and a scoring of all copies read, as `SearchOutput` counts it.

    The last token of a response is drawn and not read; the prompt is read for every copy.
    """
    prompts, responses = batch.prompt_mask.sum(-1), batch.lengths
    read = torch.stack([prompts + responses - 1, prompts + responses]).view(2, -1, copies).sum(-1)
    return read[0], read[1]
