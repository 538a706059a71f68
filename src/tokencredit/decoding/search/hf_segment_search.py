"""Searches over beginnings of responses: trees that are pruned, samples that are rejected early."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.search.hf_branching_texts import BranchingTexts
from tokencredit.decoding.search.rules import (
    best_candidates,
    require_finite_scores,
    surviving_candidates,
    survivor_counts,
)
from tokencredit.errors import ConfigError
from tokencredit.sampling import Sampling

ResponseScorer = Callable[[ResponseBatch, Int[Tensor, "batch"]], Float[Tensor, "batch"]]
"""From responses, finished or not, and the number of the prompt that each answers, to scores."""


@dataclass(frozen=True)
class SearchOutput:
    """One response per prompt, and what was read for it.

    Positions are tokens that a model read, each pass counted: prompt and response, rejected ones
    too, padding not, and nothing saved by what rows of one batch share. So methods can be compared
    at equal cost, whatever the batch.

    Attributes:
        batch: the responses.
        scores: what the search found them worth, float32, in the unit of its scorer.
        lm_positions: read by the language model that wrote.
        scorer_positions: read by whatever judged, in the tokens of the language model.
        kl: divergence of each response from the language model, in nats; None where it is not
            known.
    """

    batch: ResponseBatch
    scores: Float[Tensor, "prompts"]
    lm_positions: Int[Tensor, "prompts"]
    scorer_positions: Int[Tensor, "prompts"]
    kl: Float[Tensor, "prompts"] | None = None


class CountedScorer:
    """Scores of beginnings, and how many tokens were read for those of each prompt.

    Args:
        score: of responses, finished or not.
        prompts: how many prompts there are.
        passes: how often `score` reads a text.
    """

    def __init__(self, score: ResponseScorer, prompts: int, *, passes: int = 1) -> None:
        self.score = score
        self.passes = passes
        self.positions = torch.zeros(prompts, dtype=torch.long)

    def __call__(
        self, texts: BranchingTexts, wanted: Bool[Tensor, "rows"]
    ) -> Float[Tensor, "rows"]:
        """Scores of the rows that are wanted, float32, zero of the others.

        Raises:
            NumericError: a score is NaN or infinite.
        """
        scores = torch.zeros(len(wanted), dtype=torch.float32, device=wanted.device)
        if not bool(wanted.any()):
            return scores
        batch, prompts = texts.responses()[wanted.nonzero()[:, 0]], texts.prompts[wanted]
        scores[wanted] = self.score(batch, prompts).detach().to(scores)
        sums = scores.new_zeros(len(texts.prompt_ids)).index_add(0, prompts, scores[wanted])
        require_finite_scores(sums, "responses to prompts")
        read = self.passes * batch.attention_mask.sum(-1)
        self.positions = self.positions.to(read.device).index_add(0, prompts, read)
        return scores


def tree_search(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    score: ResponseScorer,
    sampling: Sampling,
    *,
    keep: int,
    children: int,
    lengths: Sequence[int],
    final_score: ResponseScorer | None = None,
    passes: int = 1,
    eos_token_ids: tuple[int, ...] = (),
    pad_token_id: int = 0,
    generator: torch.Generator | None = None,
) -> SearchOutput:
    """Responses that grow layer by layer: the best beginnings are kept, and each branches again.

    `keep=1` and a few tokens per layer are blockwise controlled decoding, more kept are beam search
    over chunks. Few long layers, pruned by an implicit reward (`implicit_scorer`) with the reward
    model as `final_score`, are TreeBoN. One layer is best-of-n. A beginning that has ended stands
    once among the candidates, with the score that it has.

    Args:
        model: a causal language model in evaluation mode.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        score: of beginnings, by which they are pruned.
        sampling: how tokens are drawn.
        keep: beginnings that go on after each layer.
        children: how many continuations of each; the first layer draws `keep * children`.
        lengths: tokens of each layer, `max_new_tokens` in all.
        final_score: by which the response is chosen; `score` by default.
        passes: how often `score` reads a text, for the count.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.
        generator: of the random numbers; the global one by default.

    Raises:
        ConfigError: a number is less than 1, or the lengths do not sum to `max_new_tokens`.
        DataError: a prompt is empty, or does not fit the context with its response.
        ModelError: the model is in training mode.
        NumericError: a score is NaN or infinite.

    Source: Mudgal et al. 2024, arXiv 2310.17022 (blockwise); Qiu et al. 2024, arXiv 2410.16033
    (TreeBoN). That TreeBoN draws the same number of nodes in every layer is from memory, as no code
    of its authors was found. In the code of CARDS the name stands for another search, rejection of
    segments by the implicit reward.
    """
    if min(keep, children, *lengths) < 1 or sum(lengths) != sampling.max_new_tokens:
        raise ConfigError(
            f"keep is {keep}, children {children} and the layers have {list(lengths)} tokens; "
            f"expected at least 1 of each, and {sampling.max_new_tokens} tokens in all"
        )
    texts = BranchingTexts(
        model,
        prompt_ids,
        prompt_mask,
        sampling,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        generator=generator,
    )
    number, pruner = len(prompt_ids), CountedScorer(score, len(prompt_ids), passes=passes)
    chooser = pruner if final_score is None else CountedScorer(final_score, number)
    width = keep * children
    texts.select(texts.prompts.repeat_interleave(width))
    rows = torch.arange(number * width, device=prompt_ids.device)
    scores, distinct = torch.zeros(len(rows), device=rows.device), rows >= 0
    for layer, tokens in enumerate(lengths):
        writing = ~texts.finished
        texts.write(tokens)
        if layer == len(lengths) - 1 or bool(texts.finished.all()):
            break
        scores = torch.where(writing, pruner(texts, writing), scores)
        parents = _best_rows(scores, distinct, number, keep).repeat_interleave(children)
        texts.select(parents)
        scores = scores[parents]
        distinct = ~texts.finished | (rows % children == 0)
    unscored = writing & distinct if final_score is None else distinct
    scores = torch.where(unscored, chooser(texts, unscored), scores)
    read = pruner.positions if final_score is None else pruner.positions + chooser.positions
    return _output(texts, scores, _best_rows(scores, distinct, number, 1), read)


def speculative_rejection(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    score: ResponseScorer,
    sampling: Sampling,
    *,
    n: int,
    rejection_share: float = 0.5,
    check_every: int = 16,
    eos_token_ids: tuple[int, ...] = (),
    pad_token_id: int = 0,
    generator: torch.Generator | None = None,
) -> SearchOutput:
    """Best-of-n that gives up the least promising beginnings on its way.

    Every few tokens all beginnings are scored and the worst share of them is rejected; the best of
    what is left at the end is the response. One that has ended costs nothing more and stays for
    that choice even if it is rejected. No beginning is scored where none is to be rejected, so
    that without rejection this is best-of-n.

    Args:
        model: a causal language model in evaluation mode.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        score: of beginnings and responses.
        sampling: how tokens are drawn.
        n: responses that are begun for each prompt.
        rejection_share: of the beginnings still running, rejected at each check.
        check_every: tokens between two checks.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.
        generator: of the random numbers; the global one by default.

    Raises:
        ConfigError: a number is less than 1, or the share not in [0, 1).
        DataError: a prompt is empty, or does not fit the context with its response.
        ModelError: the model is in training mode.
        NumericError: a score is NaN or infinite.

    Source: Sun et al. 2024, arXiv 2410.20290. There, memory decides when to check: a device is
    filled with beginnings, and rejection makes room when it is full. Here checks are a fixed number
    of tokens apart, so that results do not depend on the device.
    """
    if n < 1 or check_every < 1:
        raise ConfigError(f"n is {n} and check_every {check_every}; expected at least 1")
    texts = BranchingTexts(
        model,
        prompt_ids,
        prompt_mask,
        sampling,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        generator=generator,
    )
    scorer = CountedScorer(score, len(prompt_ids))
    texts.select(texts.prompts.repeat_interleave(n))
    # Where each candidate stands among the texts; -1 once it is dropped.
    rows = torch.arange(len(prompt_ids) * n, device=prompt_ids.device).view(-1, n)
    running = rows >= 0
    scores = torch.full(rows.shape, -torch.inf, device=rows.device)
    changed = running
    while True:
        texts.write(check_every)
        done = bool(texts.finished.all())
        counts = survivor_counts(running, rejection_share=rejection_share)
        if not done and torch.equal(counts, running.sum(-1)):
            continue
        there = rows >= 0
        scores[changed] = scorer(texts, changed[there])[rows[changed]]
        if done:
            break
        running = surviving_candidates(scores, running, rejection_share=rejection_share)
        ended = torch.zeros_like(there)
        ended[there] = texts.finished
        there = running | ended
        texts.select(rows[there])
        rows = torch.where(there, there.flatten().cumsum(0).view_as(rows) - 1, -1)
        scores = scores.masked_fill(~there, -torch.inf)
        changed = there & ~ended
    best = best_candidates(scores, keep=1)
    return _output(texts, scores[there], rows.gather(-1, best)[:, 0], scorer.positions)


def _best_rows(
    scores: Float[Tensor, "rows"], distinct: Bool[Tensor, "rows"], prompts: int, keep: int
) -> Int[Tensor, "kept"]:
    """Rows of the best beginnings of each prompt, where all prompts have as many rows."""
    of_prompt = scores.masked_fill(~distinct, -torch.inf).view(prompts, -1)
    best = best_candidates(of_prompt, keep=keep)
    first = torch.arange(prompts, device=best.device)[:, None] * of_prompt.shape[1]
    return (first + best).flatten()


def _output(
    texts: BranchingTexts,
    scores: Float[Tensor, "rows"],
    best: Int[Tensor, "prompts"],
    scorer_positions: Int[Tensor, "prompts"],
) -> SearchOutput:
    """The best rows as responses, no wider than the longest of them."""
    batch = texts.responses()[best]
    widest = int(batch.response_mask.sum(-1).max())
    trimmed = ResponseBatch(
        batch.prompt_ids,
        batch.prompt_mask,
        batch.response_ids[:, :widest],
        batch.response_mask[:, :widest],
    )
    return SearchOutput(trimmed, scores[best], texts.positions, scorer_positions)
