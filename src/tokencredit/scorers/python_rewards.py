"""Rewards that are Python functions of a text, asked for the text up to each token where needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.errors import DataError
from tokencredit.judge.evidence import QuotedCriterion
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.scorers.quotes import with_quotes
from tokencredit.text.hf_decoding import DecodedResponse
from tokencredit.text.hf_reading import Reading
from tokencredit.text.segments import segment_ends

TextReward = Callable[[list[Any], list[str]], Sequence[float]]
"""A reward written in Python: from prompts and responses to one number per response."""
QuotesOf = Callable[[Sequence[Prompt], Sequence[str]], Sequence[Sequence[QuotedCriterion]]]
"""From prompts and responses to what a judge says of each by its criteria, with quotes."""


@dataclass(frozen=True)
class FunctionScorer:
    """A reward written in Python, which reads text.

    Attributes:
        function: from prompts and responses to one number per response.
        writer: how the model reads that writes the responses.
        name: for messages.
        prefixes: whether it is asked for the text up to every token too, once for each different
            text of a response.
        at_ends: whether the texts up to the ends of segments are enough.
        model: of this process that the function asks; None for none.
        quotes: of a judge that quotes evidence, about responses that it has scored; None for what
            quotes none.
        criteria: names of those that the judge quotes evidence for.
    """

    function: TextReward
    writer: Reading
    name: str = "the function"
    prefixes: bool = False
    at_ends: bool = False
    model: nn.Module | None = None
    quotes: QuotesOf | None = None
    criteria: tuple[str, ...] = ()

    @property
    def gives(self) -> frozenset[str]:
        """What methods can be made from."""
        found = frozenset({"sequence_scores", "kept_tokens"})
        found |= {"quoted_scores"} if self.quotes is not None else set()
        return found | {"prefix_scores", "position_scores"} if self.prefixes else found

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,  # noqa: ARG002 - every scorer is asked in the same way
        conversations: Sequence[Prompt] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,  # noqa: ARG002 - a text alone is read
        segment_ids: Int[Tensor, "batch time"] | None = None,
    ) -> ResponseScores:
        """Scores of whole responses by their text, and of the text up to each token.

        Args:
            batch: responses of the policy.
            attention: there is none.
            conversations: what was asked; None takes the text of the prompt's ids.
            ended: not looked at: the function reads texts, which nothing closes.
            segment_ids: of the tokens: prefixes are asked for at the ends of segments alone, and
                hold up to the next end. None asks at every token.

        Raises:
            DataError: the function does not give one finite number per response.
        """
        decoded = decoded_responses(self.writer.tokenizer, batch)
        prompts: list[Prompt] = (
            [row.prompt for row in decoded] if conversations is None else list(conversations)
        )
        device = batch.response_ids.device
        if not self.prefixes:
            responses = [row.response for row in decoded]
            scores = function_scores(self.function, prompts, responses, name=self.name)
            whole = ResponseScores(scores.to(device), None, None)
            return self._with_quotes(whole, prompts, decoded, batch)
        # Characters that are whole before the first token and after each one; the last is the score
        # of the response, whatever the ids after it stand for.
        counts = None if segment_ids is None else segment_ends(segment_ids).tolist()
        ends = [
            (0, *(row.ends if counts is None else _held(row.ends, counts[at])), len(row.response))
            for at, row in enumerate(decoded)
        ]
        asked = list(dict.fromkeys((row, end) for row, places in enumerate(ends) for end in places))
        known = function_scores(
            self.function,
            [prompts[row] for row, _ in asked],
            [decoded[row].response[:end] for row, end in asked],
            name=self.name,
        )
        found = dict(zip(asked, known.tolist(), strict=True))
        prefix_scores = torch.zeros(len(batch), batch.response_ids.shape[1] + 1)
        for row, places in enumerate(ends):
            values = [found[row, end] for end in places[:-1]]
            prefix_scores[row, : len(values)] = torch.tensor(values)
        sequence = torch.tensor([found[row, places[-1]] for row, places in enumerate(ends)])
        so_far = ResponseScores(sequence.to(device), prefix_scores.to(device), None)
        return self._with_quotes(so_far, prompts, decoded, batch)

    def _with_quotes(
        self,
        scores: ResponseScores,
        prompts: Sequence[Prompt],
        decoded: Sequence[DecodedResponse],
        batch: ResponseBatch,
    ) -> ResponseScores:
        if self.quotes is None:
            return scores
        said = self.quotes(prompts, [row.response for row in decoded])
        found = with_quotes(scores.sequence_scores, said, decoded, batch.response_mask)
        if scores.prefix_scores is None:
            return found
        # Criteria are no objectives here, since nothing was said by them of prefixes.
        return replace(scores, quoted_scores=found.quoted_scores)


def _held(ends: Sequence[int], counts: Sequence[bool]) -> list[int]:
    """The last of these ends that counts, at each place; 0 before the first."""
    held, found = 0, []
    for end, ends_segment in zip(ends, counts, strict=False):
        held = end if ends_segment else held
        found.append(held)
    return found


def function_scores(
    function: TextReward, prompts: list[Prompt], responses: list[str], *, name: str
) -> Float[Tensor, "texts"]:
    """What a function says of these texts.

    Args:
        function: from prompts and responses to one number per response.
        prompts: texts or conversations.
        responses: one per prompt.
        name: of the function, for messages.

    Raises:
        DataError: it does not give one finite number for each.
    """
    found = list(function(prompts, responses))
    try:
        scores = torch.tensor([float(score) for score in found])
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} gives {found[:3]}; expected one number per response") from error
    if len(scores) != len(responses) or not bool(scores.isfinite().all()):
        raise DataError(
            f"{name} gives {len(scores)} scores for {len(responses)} responses, of which "
            f"{int(scores.isfinite().sum())} are finite; expected one finite number for each"
        )
    return scores
