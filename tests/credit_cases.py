"""Responses with all that any credit method needs to know about them, for tests of all methods."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokencredit.credit.location import LocationNormaliser

NAN = math.nan


@dataclass(frozen=True)
class Case:
    """All that any method needs about the same responses."""

    response_mask: Tensor
    sequence_scores: Tensor
    weights: Tensor
    attention: Tensor
    prefix_scores: Tensor
    policy_logprobs: Tensor
    ref_logprobs: Tensor
    token_logits: Tensor
    segment_ids: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        floats = {
            name: value.to(dtype) for name, value in vars(self).items() if value.is_floating_point()
        }
        return replace(self, **floats)

    def rows(self, rows: slice) -> "Case":
        return Case(**{name: value[rows] for name, value in vars(self).items()})

    def spread_over(self, columns: Tensor, time: int) -> "Case":
        """Column t moved to columns[t] of `time`, what lies between them unknown and masked."""
        batch = len(self.response_mask)
        attention = torch.full((batch, time, time), NAN)
        prefix_scores = torch.full((batch, time + 1), NAN)
        attention[:, columns[:, None], columns] = self.attention
        prefix_scores[:, 0] = self.prefix_scores[:, 0]
        prefix_scores[:, columns + 1] = self.prefix_scores[:, 1:]
        moved = {"attention": attention, "prefix_scores": prefix_scores}
        unknown = {"response_mask": False, "segment_ids": -1}
        for name, value in vars(self).items():
            if name not in {*moved, "sequence_scores"}:
                wide = value.new_full((batch, time, *value.shape[2:]), unknown.get(name, NAN))
                wide[:, columns] = value
                moved[name] = wide
        return replace(self, **moved)

    def with_garbage(self, garbage: float) -> "Case":
        """Other unknown numbers where no token counts."""
        return replace(
            self,
            sequence_scores=self.sequence_scores.masked_fill(~self.response_mask.any(-1), garbage),
            weights=self.weights.nan_to_num(garbage, garbage, garbage),
            attention=self.attention.nan_to_num(garbage, garbage, garbage),
            prefix_scores=self.prefix_scores.nan_to_num(garbage, garbage, garbage),
            policy_logprobs=self.policy_logprobs.nan_to_num(garbage, garbage, garbage),
            ref_logprobs=self.ref_logprobs.nan_to_num(garbage, garbage, garbage),
            token_logits=self.token_logits.nan_to_num(garbage, garbage, garbage),
        )


def softmax_below_diagonal(logits: Tensor) -> Tensor:
    time = logits.shape[-1]
    return logits.masked_fill(torch.ones(time, time).triu(1).bool(), -torch.inf).softmax(-1)


def random_case() -> Case:
    """Five responses of 6, 3, 1 and no tokens, and one with a hole, everything else unknown."""
    mask = torch.tensor(
        [
            [True] * 6,
            [True] * 3 + [False] * 3,
            [True] + [False] * 5,
            [False] * 6,
            [True, True, False, False, True, False],
        ]
    )
    attention = softmax_below_diagonal(torch.randn(5, 6, 6))
    pairs = mask[:, :, None] & mask[:, None, :]
    ends_inside = torch.cat([torch.ones(5, 1, dtype=torch.bool), mask], dim=-1)
    return Case(
        response_mask=mask,
        sequence_scores=torch.tensor([2.0, -3.0, 0.5, 7.0, 1.5]),
        weights=torch.rand(5, 6).masked_fill(~mask, NAN),
        attention=attention.masked_fill(~pairs, NAN),
        prefix_scores=torch.randn(5, 7).masked_fill(~ends_inside, NAN),
        policy_logprobs=-torch.rand(5, 6).masked_fill(~mask, NAN),
        ref_logprobs=-torch.rand(5, 6).masked_fill(~mask, NAN),
        token_logits=torch.randn(5, 6, 2).masked_fill(~mask[:, :, None], NAN),
        segment_ids=torch.tensor([0, 0, 1, 1, 1, 2]).expand(5, 6).masked_fill(~mask, -1),
    )


def with_other_ending(case: Case, changed: int) -> Case:
    """What a causal model says when token `changed` of every response and later ones differ."""
    later = torch.arange(case.response_mask.shape[1]) >= changed
    attention = torch.where(
        later[:, None], softmax_below_diagonal(torch.randn(case.attention.shape)), case.attention
    )
    ends_later = torch.cat([torch.tensor([False]), later])
    return replace(
        case,
        sequence_scores=case.sequence_scores + 1.0,
        weights=torch.rand(case.weights.shape),
        attention=attention,
        prefix_scores=torch.where(ends_later, case.prefix_scores + 1.0, case.prefix_scores),
        policy_logprobs=torch.where(later, case.policy_logprobs - 1.0, case.policy_logprobs),
        ref_logprobs=torch.where(later, case.ref_logprobs - 2.0, case.ref_logprobs),
        token_logits=torch.where(later[:, None], -case.token_logits, case.token_logits),
    )


def score(case: Case) -> Tensor:
    return case.sequence_scores.masked_fill(~case.response_mask.any(-1), 0.0)


def score_above_prompt(case: Case) -> Tensor:
    time = torch.arange(1, case.response_mask.shape[1] + 1)
    last = torch.where(case.response_mask, time, 0).amax(-1, keepdim=True)
    return case.prefix_scores.gather(-1, last)[:, 0] - case.prefix_scores[:, 0]


def kept_score(case: Case) -> Callable[[Tensor], Tensor]:
    """A score of the kept weights in which every token bears on every other."""

    def scores(keep: Tensor) -> Tensor:
        kept = torch.where(keep, case.weights.float()[:, None], 0.0).sum(-1)
        return 0.5 + kept + kept**3

    return scores


def score_above_no_tokens(case: Case) -> Tensor:
    mask = case.response_mask
    return kept_score(case)(torch.stack([mask & False, mask], dim=1)).diff(dim=-1)[:, 0]


def squared_sum(embeddings: Tensor) -> Tensor:
    return embeddings.sum((1, 2)) ** 2


def squared_sum_above_baseline(case: Case) -> Tensor:
    inside = case.response_mask[:, :, None]
    embeddings = case.token_logits.float().where(inside, 0.0)
    return squared_sum(embeddings) - squared_sum(torch.full_like(embeddings, 0.25) * inside)


BY_LOCATION = LocationNormaliser(0.8, 0.5, 0.7, 2.0)
LENGTH_MEANS = torch.tensor([0.5, -1.0, 2.0])
