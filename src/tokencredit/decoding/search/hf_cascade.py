"""Rejection sampling segment by segment (CARDS)."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.decoding.search.hf_branching_texts import BranchingTexts
from tokencredit.decoding.search.hf_segment_search import (
    CountedScorer,
    ResponseScorer,
    SearchOutput,
)
from tokencredit.decoding.search.rules import (
    acceptance_probabilities,
    ends_segment,
    require_threshold_settings,
    segment_thresholds,
)
from tokencredit.errors import ConfigError
from tokencredit.logprobs import token_entropies
from tokencredit.ranges import require_at_least
from tokencredit.sampling import Sampling


@dataclass(frozen=True)
class CardsSettings:
    """CARDS: segments that are each drawn until one is good enough."""

    target_reward: float | None = None
    """What a good response scores, in units of the reward model; needed."""
    acceptance_beta: float = 0.7
    """How far below the threshold a score may be, in the same unit."""
    threshold_start: float = 0.5
    """Where the threshold starts: 0 is the score of the prompt, 1 is `target_reward`."""
    entropy_threshold: float = 3.0
    """Entropy of the next token, in nats, at which a segment ends."""
    min_segment_tokens: int = 4
    """A segment does not end by entropy before this many tokens."""
    max_segment_tokens: int = 64
    """Most tokens of a segment."""
    max_proposals: int = 20
    """After this many rejections in one place, the best of them is taken."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_proposals")
        target = 0.0 if self.target_reward is None else self.target_reward
        require_threshold_settings(target, self.threshold_start)
        none = torch.zeros(0)  # the rules refuse settings out of their range for no rows as well
        acceptance_probabilities(none, none, acceptance_beta=self.acceptance_beta)
        ends_segment(
            none,
            none.long(),
            entropy_threshold=self.entropy_threshold,
            min_segment_tokens=self.min_segment_tokens,
            max_segment_tokens=self.max_segment_tokens,
        )


def cascade_sampling(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    score: ResponseScorer,
    sampling: Sampling,
    *,
    target_reward: float,
    acceptance_beta: float = 0.7,
    threshold_start: float = 0.5,
    entropy_threshold: float = 3.0,
    min_segment_tokens: int = 4,
    max_segment_tokens: int = 64,
    max_proposals: int = 20,
    eos_token_ids: tuple[int, ...] = (),
    pad_token_id: int = 0,
    generator: torch.Generator | None = None,
) -> SearchOutput:
    """Responses whose segments are each drawn until one is good enough.

    A segment ends where the next token is uncertain. It is kept with the probability that
    `acceptance_probabilities` gives its text, else another is drawn in its place. What is rejected
    is cut from the cache. Prompts of a batch go each their own way.

    Args:
        model: a causal language model in evaluation mode.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        score: of prompts alone, beginnings and responses.
        sampling: how tokens are drawn.
        target_reward: what a response should score, in the unit of `score`: that of good responses
            by this very reward model. Minus infinity accepts everything.
        acceptance_beta: how far below the threshold a score may lie, in the same unit.
        threshold_start: where the threshold begins, see `segment_thresholds`.
        entropy_threshold: of the next token, in nats, at which a segment ends.
        min_segment_tokens: no end by entropy before this many.
        max_segment_tokens: an end in any case.
        max_proposals: when so many were rejected in one place, the best of them is taken.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.
        generator: of the random numbers; the global one by default.

    Raises:
        ConfigError: a setting is out of its range.
        DataError: a prompt is empty, or does not fit the context with its response.
        ModelError: the model is in training mode.
        NumericError: a score is NaN or infinite.

    Source: Li et al. 2024, arXiv 2406.16306; numbers are those of the published code. That draws
    with the acceptance beta as temperature, never stops at an end of sequence, and takes the best
    of 21 without a test of the last; its cache, switched off there, came with a mask cut to one
    column, which changes the logits.
    """
    if max_proposals < 1:
        raise ConfigError(f"max_proposals is {max_proposals}; expected at least 1")
    thresholds = partial(
        segment_thresholds,
        target_reward=target_reward,
        max_new_tokens=sampling.max_new_tokens,
        threshold_start=threshold_start,
    )
    accepted_with = partial(acceptance_probabilities, acceptance_beta=acceptance_beta)
    ends = partial(
        ends_segment,
        entropy_threshold=entropy_threshold,
        min_segment_tokens=min_segment_tokens,
        max_segment_tokens=max_segment_tokens,
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
    scorer = CountedScorer(score, len(prompt_ids))
    starts = torch.zeros_like(texts.prompts)
    prompt_scores = scorer(texts, starts == 0)
    # Settings out of their range are refused before anything is drawn.
    thresholds(starts, prompt_scores), accepted_with(prompt_scores, prompt_scores)
    ends(prompt_scores, starts)
    best = _BestSegments(len(starts), max_segment_tokens, starts)
    scores = prompt_scores
    while not bool(texts.finished.all()):
        proposing = ~texts.finished
        texts.write(
            max_segment_tokens, stops=lambda logits, drawn: ends(token_entropies(logits), drawn)
        )
        proposed = scorer(texts, proposing)
        probabilities = accepted_with(proposed, thresholds(texts.lengths, prompt_scores))
        accepted = proposing & _happens(probabilities, proposing, generator)
        best.add(texts, starts, proposed, proposing)
        taken = proposing & ~accepted & (best.proposals >= max_proposals)
        scores = torch.where(accepted, proposed, torch.where(taken, best.scores, scores))
        texts.select(texts.prompts, torch.where(proposing & ~accepted, starts, texts.lengths))
        if bool(taken.any()):
            mask = best.mask & taken[:, None]
            widest = int(mask.sum(-1).max())
            texts.extend(best.ids[:, :widest], mask[:, :widest])
        best.forget(accepted | taken)
        starts = texts.lengths
    return SearchOutput(texts.responses(), scores, texts.positions, scorer.positions)


def _happens(
    probabilities: Float[Tensor, "rows"],
    wanted: Bool[Tensor, "rows"],
    generator: torch.Generator | None,
) -> Bool[Tensor, "rows"]:
    """Whether something of each probability happens; what is certain needs no random number."""
    certain = probabilities >= 1.0
    if bool((certain | ~wanted).all()):
        return certain
    device = probabilities.device if generator is None else generator.device
    drawn = torch.rand(len(probabilities), generator=generator, device=device)
    return drawn.to(probabilities.device) < probabilities


class _BestSegments:
    """The best proposal so far in each row's present place, and how many there were."""

    def __init__(self, rows: int, width: int, like: Int[Tensor, "rows"]) -> None:
        self.ids = like.new_zeros(rows, width)
        self.mask = torch.zeros_like(self.ids, dtype=torch.bool)
        self.proposals = like.new_zeros(rows)
        self.scores = torch.full((rows,), -torch.inf, device=like.device)

    def add(
        self,
        texts: BranchingTexts,
        starts: Int[Tensor, "rows"],
        scores: Float[Tensor, "rows"],
        proposing: Bool[Tensor, "rows"],
    ) -> None:
        """Count the tokens from `starts` on as one more proposal of the rows that made one."""
        self.proposals = self.proposals + proposing
        better = proposing & (scores > self.scores)
        ids, mask = texts.tokens_from(starts)
        self.scores = torch.where(better, scores, self.scores)
        self.ids[better] = 0
        self.mask[better] = False
        self.ids[better, : ids.shape[1]] = ids[better]
        self.mask[better, : ids.shape[1]] = mask[better]

    def forget(self, rows: Bool[Tensor, "rows"]) -> None:
        """Begin anew in these rows."""
        self.proposals = self.proposals.masked_fill(rows, 0)
        self.scores = self.scores.masked_fill(rows, -torch.inf)
