"""What a reward model says of candidate tokens, whoever asks it, and in what units."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.masking import masked_row_mean, masked_sum


@dataclass(frozen=True)
class CandidateBatch:
    """Running texts, and the tokens that may come next in each.

    A row without candidates is finished.

    Attributes:
        text_ids: padded on the left; anything where the mask is False.
        text_mask: True on real tokens.
        candidate_ids: the tokens that may come next.
        candidate_mask: True on candidates that count.
    """

    text_ids: Int[Tensor, "batch time"]
    text_mask: Bool[Tensor, "batch time"]
    candidate_ids: Int[Tensor, "batch candidates"]
    candidate_mask: Bool[Tensor, "batch candidates"]

    def to(self, device: torch.device) -> "CandidateBatch":
        """This batch on another device: where the reward model is."""
        return CandidateBatch(
            self.text_ids.to(device),
            self.text_mask.to(device),
            self.candidate_ids.to(device),
            self.candidate_mask.to(device),
        )

    @property
    def active(self) -> Bool[Tensor, "batch"]:
        """Rows that are not finished."""
        return self.candidate_mask.any(-1)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is not finished; 0 where all are.

        >>> text, candidates = torch.tensor([[7, 5]]), torch.tensor([[1, 2, 3]])
        >>> CandidateBatch(text, text > 6, candidates, candidates > 1).longest
        1
        """
        lengths = self.text_mask.sum(-1) * self.active
        return int(lengths.max()) if len(lengths) else 0


class CandidateScores(NamedTuple):
    """Scores of a text with each of several next tokens.

    Attributes:
        candidates: of the text with each candidate, in nats, float32; anything where the mask of
            the candidates is False.
        prefix: of the text alone; zero from scorers that score tokens and not texts.
    """

    candidates: Float[Tensor, "batch candidates"]
    prefix: Float[Tensor, "batch"]


@runtime_checkable
class CandidateScorer(Protocol):
    """A callable from running texts and their candidates to scores.

    It may remember the texts of the call before to do less, and must not let them change a score:
    any text may follow any other. A row that is finished is not scored, and whatever it holds
    changes nothing for the others.

    Attributes:
        vocab: ids from here on are unknown to the scorer; None where it knows all.
    """

    vocab: int | None

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores of each text with each of its candidates."""
        ...


class ScoreSpread(NamedTuple):
    """How far the scores of candidates lay apart so far, one entry per row.

    Attributes:
        squares: sum of squared deviations from the mean of the candidates of a step.
        freedom: how many deviations these are, less one for each step.
    """

    squares: Float[Tensor, "batch"]
    freedom: Float[Tensor, "batch"]


def updated_spread(
    scores: Float[Tensor, "batch candidates"],
    candidate_mask: Bool[Tensor, "batch candidates"],
    *,
    spread: ScoreSpread | None = None,
) -> ScoreSpread:
    """The spread with the candidates of one more step.

    Args:
        scores: of the candidates, in nats.
        candidate_mask: True on candidates that count; rows without any change nothing.
        spread: of the steps before; None before the first.

    >>> mask = torch.tensor([[True, True, False]])
    >>> updated_spread(torch.tensor([[1.0, 3.0, 9.0]]), mask)
    ScoreSpread(squares=tensor([2.]), freedom=tensor([1.]))
    """
    counts = candidate_mask & (scores > -torch.inf)
    values = scores.float().masked_fill(~counts, 0.0)
    deviations = values - masked_row_mean(values, counts)[:, None]
    squares = masked_sum(deviations.square(), counts)
    freedom = (counts.sum(-1) - 1).clamp(min=0).float()
    if spread is None:
        return ScoreSpread(squares, freedom)
    return ScoreSpread(spread.squares + squares, spread.freedom + freedom)


def standardised_scores(
    scores: Float[Tensor, "batch candidates"], spread: ScoreSpread
) -> Float[Tensor, "batch candidates"]:
    """Scores in units of their running standard deviation over candidates.

    One `guidance_beta` then suits reward models of any scale. Each row has its own deviation, so
    that no response depends on the rest of the batch.

    Args:
        scores: of the candidates of a step.
        spread: of all steps up to and with this one.

    Returns:
        Scores, float32; unchanged where no two candidates have been seen or all scored alike.

    >>> scores, mask = torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])
    >>> standardised_scores(scores, updated_spread(scores, mask))
    tensor([[0.7071, 2.1213]])
    """
    deviation = (spread.squares / spread.freedom.clamp(min=1.0)).sqrt()
    return scores.float() / torch.where(deviation > 0, deviation, 1.0)[:, None]
