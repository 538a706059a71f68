"""What a judge quotes as evidence, on the tokens of a policy."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.batch import ObjectiveScores, ResponseScores
from tokencredit.judge.evidence import QuotedCriterion
from tokencredit.text.alignment import Span, spans_of_words
from tokencredit.text.hf_decoding import DecodedResponse


def with_quotes(
    scores: Float[Tensor, "batch"],
    said: Sequence[Sequence[QuotedCriterion]],
    decoded: Sequence[DecodedResponse],
    response_mask: Bool[Tensor, "batch time"],
) -> ResponseScores:
    """Scores of a judge with its criteria as objectives, each on the tokens that are quoted for it.

    A criterion is handed out in equal parts to the tokens that counts and have a character, other
    than the spaces they begin with, in one of its quotes. Without such a token it is on none.

    Args:
        scores: of the judge.
        said: of each response its criteria, all in the same order.
        decoded: the responses, with the characters of each token.
        response_mask: True on response tokens that count.
    """
    time = response_mask.shape[1]
    marked = [
        [_quoted_shares(one.spans, row, response_mask[at]) for one in criteria]
        for at, (criteria, row) in enumerate(zip(said, decoded, strict=True))
    ]
    total = torch.zeros(len(said), time)
    objectives: dict[str, ObjectiveScores] = {}
    for place, one in enumerate(said[0] if said else ()):
        of_responses = torch.tensor([criteria[place].score for criteria in said])
        weights = torch.tensor([criteria[place].share for criteria in said])
        quoted = of_responses[:, None] * torch.stack([shares[place] for shares in marked])
        total += weights[:, None] * quoted
        own = ResponseScores(
            of_responses.to(scores), None, None, quoted_scores=quoted.to(scores.device)
        )
        objectives[one.name] = ObjectiveScores(own, weights.to(scores))
    return ResponseScores(
        scores, None, None, objectives=objectives, quoted_scores=total.to(scores.device)
    )


def _quoted_shares(
    quotes: Sequence[Span], row: DecodedResponse, counts: Bool[Tensor, "time"]
) -> Float[Tensor, "time"]:
    """Equal parts of one for the tokens that some quotes touch."""
    touched = torch.zeros(len(counts))
    for place, (start, end) in enumerate(spans_of_words(row.spans, row.response)):
        if counts[place] and any(start < stop and begin < end for begin, stop in quotes):
            touched[place] = 1.0
    return touched / touched.sum().clamp(min=1.0)
