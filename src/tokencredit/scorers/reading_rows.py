"""Responses of a policy as a reward model reads them, whoever computes its scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.text.hf_decoding import DecodedResponse
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import WrittenRows, ended_responses, prompts_of, written_rows


@dataclass(frozen=True)
class TextRows:
    """Responses in the tokens of a reward model that reads other tokens than the policy.

    Attributes:
        encoded: in its tokens.
        decoded: in the policy's.
        asked: what they answer.
        reading: how the reward model reads.
    """

    encoded: EncodedResponses
    decoded: list[DecodedResponse]
    asked: Sequence[Prompt]
    reading: Reading

    def beginnings(self, row: int, texts: Sequence[str]) -> EncodedResponses:
        """Beginnings of one response, which have not ended."""
        again = [self.asked[row]] * len(texts)
        return self.reading.encoded(again, texts, ended=False, empty="keep")


def rows_as_written(
    reading: Reading,
    writer: Reading,
    batch: ResponseBatch,
    conversations: Sequence[Prompt] | None = None,
    attention_mask: Bool[Tensor, "batch sequence"] | None = None,
    *,
    ended: Bool[Tensor, "batch"] | None = None,
) -> WrittenRows | None:
    """Responses with the ids that were drawn, as a reward model reads them.

    None where it has other tokens, or reads prompt and response as a pair.

    Args:
        reading: how the reward model reads.
        writer: how the model reads that wrote the responses.
        batch: in the writer's tokens.
        conversations: what was asked; None takes the prompt's ids.
        attention_mask: the tokens that the reward model reads, where the batch was encoded for it.
        ended: True for responses that have ended; None for those whose last token says so.
    """
    if attention_mask is not None:
        return WrittenRows(batch, attention_mask.bool())
    if reading.template == "pair":
        return None
    if not shares_vocabulary(reading.tokenizer, writer.tokenizer):
        return None
    end_tokens = with_end_token(writer, batch)
    return written_rows(
        reading, batch, conversations, end_tokens if ended is None else ended, end_tokens
    )


def rows_of_text(
    reading: Reading,
    writer: Reading,
    batch: ResponseBatch,
    conversations: Sequence[Prompt] | None,
    *,
    max_length: int | None,
    ended: Bool[Tensor, "batch"] | None = None,
) -> TextRows:
    """Responses decoded, and cut into the tokens of a reward model anew.

    Args:
        reading: how the reward model reads.
        writer: how the model reads that wrote the responses.
        batch: in the writer's tokens.
        conversations: what was asked; None takes the text of the prompt's ids.
        max_length: tokens that the reward model can read; None for any number.
        ended: as of `rows_as_written`.

    Raises:
        DataError: a text is longer than that, or has no prompt.
        ModelError: the reward model's tokenizer lacks what is needed.
    """
    decoded = decoded_responses(writer.tokenizer, batch)
    asked = conversations
    if asked is None:
        asked = prompts_of(reading, batch, writer.tokenizer)
    encoded = reading.encoded(
        asked,
        [row.response for row in decoded],
        ended=(with_end_token(writer, batch) if ended is None else ended).tolist(),
        max_length=max_length,
        empty="keep",
        device=batch.prompt_ids.device,
    )
    return TextRows(encoded, decoded, asked, reading)


def scores_of_columns(
    scores: ResponseScores, written: Bool[Tensor, "batch time"]
) -> ResponseScores:
    """Scores in the columns of the writer, zero after each response, where it is closed.

    Args:
        scores: with columns of closing tokens after those of the responses.
        written: True on the tokens of the responses that the reward model reads.
    """
    time = written.shape[1]
    there = torch.cat([torch.ones_like(written[:, :1]), written], dim=-1)

    def kept(numbers: Tensor | None) -> Tensor | None:
        return None if numbers is None else numbers[:, : time + 1].masked_fill(~there, 0.0)

    return ResponseScores(
        scores.sequence_scores,
        kept(scores.prefix_scores),
        None if scores.attention is None else scores.attention[:, :time],
        kept(scores.position_scores),
    )


def with_end_token(writer: Reading, batch: ResponseBatch) -> Bool[Tensor, "batch"]:
    """True for responses whose last token is one by which their writer ends."""
    return ended_responses(batch, writer.turn_ends).any(-1)
