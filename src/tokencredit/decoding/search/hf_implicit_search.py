"""Searches by the implicit reward of a model that DPO trained: beams, and the scorer of TreeBoN."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.search.hf_branching_texts import BranchingTexts
from tokencredit.decoding.search.hf_segment_search import ResponseScorer, SearchOutput
from tokencredit.decoding.search.implicit_rules import extended_beams, weighted_implicit_rewards
from tokencredit.errors import ConfigError
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.sampling import Sampling


def implicit_scorer(model: PreTrainedModel, reference: PreTrainedModel) -> ResponseScorer:
    """The weighted implicit reward of beginnings, for `tree_search`; reads each text twice.

    Args:
        model: the one that DPO trained.
        reference: the one that it started from, which must read the same ids.
    """

    def scores(batch: ResponseBatch, _prompts: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        logprobs, ref_logprobs = (response_logprobs(each, batch) for each in (model, reference))
        return weighted_implicit_rewards(
            logprobs, ref_logprobs.to(logprobs.device), batch.response_mask.to(logprobs.device)
        )

    return scores


@torch.no_grad()
def implicit_beam_search(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    sampling: Sampling,
    *,
    beams: int = 5,
    top_k: int = 10,
    reference: PreTrainedModel | None,
    eos_token_ids: tuple[int, ...] = (),
    pad_token_id: int = 0,
) -> SearchOutput:
    """The response with the largest sum of implicit rewards that beam search finds.

        Σ_t (log π_DPO(y_t | x, y_{<t}) − log π_ref(y_t | x, y_{<t}))

    Nothing is drawn. A response that has ended stays among the beams with its sum as it is: the
    rewards of tokens have either sign, so that neither short nor long ones are at an advantage.

    Args:
        model: the one that DPO trained, in evaluation mode. It writes.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        sampling: where responses end; temperature, top-k and top-p of it are not used.
        beams: beginnings that are followed.
        top_k: of each, this many most probable tokens by `model` are tried; 0 for all. Log-ratios
            of tokens that neither model would write are noise.
        reference: the model that DPO started from; None searches by the likelihood of `model`
            alone, as the paper does.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.

    Returns:
        Responses, and as their scores the sums in nats.

    Raises:
        ConfigError: `beams` is less than 1 or `top_k` negative.
        DataError: a prompt is empty, or does not fit the context with its response.
        ModelError: a model is in training mode.
        NumericError: a model gives NaN.

    Source: Rafailov et al. 2024, arXiv 2404.12358, beam search with a DPO model. That it goes by
    likelihood there, and which tokens are candidates, is from memory of the paper.
    """
    if beams < 1 or top_k < 0:
        raise ConfigError(f"beams is {beams} and top_k {top_k}; expected beams >= 1 and top_k >= 0")

    def begun(writer: PreTrainedModel) -> BranchingTexts:
        return BranchingTexts(
            writer,
            prompt_ids,
            prompt_mask,
            _within_width(sampling, writer),
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
        )

    texts = begun(model)
    compared = None if reference is None else begun(reference)
    followed = [texts] if compared is None else [texts, compared]
    copies = texts.prompts.repeat_interleave(beams)
    for each in followed:
        each.select(copies)
    shape = (len(prompt_ids), beams)
    totals = torch.full(shape, -torch.inf, device=prompt_ids.device)
    totals[:, 0] = 0.0
    first = torch.arange(shape[0], device=prompt_ids.device)[:, None] * beams
    while True:
        ended = texts.finished.view(shape)
        writing = ~ended & (totals > -torch.inf)
        if not bool(writing.any()):
            break
        ids, additions = _candidates(texts, compared, writing.flatten(), top_k)
        step = extended_beams(totals, additions.view(*shape, -1), ended)
        rows = (first + step.parents).flatten()
        tokens = ids[rows].gather(-1, step.choices.view(-1, 1))[:, 0]
        totals = step.totals
        takes_one = ~ended.flatten()[rows] & (totals > -torch.inf).flatten()
        for each in followed:
            each.select(rows)
            each.append(tokens, takes_one)
    best = totals.argmax(-1)
    read = torch.zeros_like(texts.positions) if compared is None else compared.positions
    return SearchOutput(
        texts.responses()[(first[:, 0] + best)],
        totals.gather(-1, best[:, None])[:, 0],
        texts.positions,
        read,
    )


def _within_width(sampling: Sampling, model: PreTrainedModel) -> Sampling:
    """How to draw from a model that may have fewer logits than its reference, or more."""
    width = model.config.get_text_config().vocab_size
    kept = tuple(token for token in sampling.suppress_tokens if token < width)
    return replace(sampling, suppress_tokens=kept)


def _candidates(
    texts: BranchingTexts,
    compared: BranchingTexts | None,
    writing: Bool[Tensor, "rows"],
    top_k: int,
) -> tuple[Int[Tensor, "rows candidates"], Float[Tensor, "rows candidates"]]:
    """The tokens that are tried in each row, and what each adds."""
    logprobs = texts.next_logits(writing).log_softmax(-1)
    likely, ids = logprobs.topk(min(top_k or logprobs.shape[-1], logprobs.shape[-1]))
    if compared is None:
        return ids, likely
    ref_logprobs = compared.next_logits(writing).log_softmax(-1).to(likely.device)
    additions = likely - ref_logprobs.gather(-1, ids)
    return ids, additions.masked_fill(likely == -torch.inf, -torch.inf)
