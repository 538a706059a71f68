"""What a reward model says about its own tokens, carried over to a policy's tokens."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch, ResponseScores
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.masking import last_true_index
from tokencredit.text.alignment import Span, project_token_scores, spans_of_words
from tokencredit.text.hf_decoding import DecodedResponse, decoded_response


def attended_tokens(batch: ResponseBatch) -> Bool[Tensor, "batch time"]:
    """True on every response token that a model reads, also on those that do not count."""
    return batch.attention_mask[:, batch.prompt_ids.shape[1] :].bool()


def decoded_responses(
    tokenizer: PreTrainedTokenizerBase, batch: ResponseBatch
) -> list[DecodedResponse]:
    """Text of every prompt and response, with the characters of each attended token.

    A response that was cut off inside a character ends before it: the tokens that began it stand
    for nothing, as they did while the response was written.
    """
    decoded = [
        decoded_response(tokenizer, prompt[prompt_mask].tolist(), ids[mask].tolist())
        for prompt, prompt_mask, ids, mask in zip(
            batch.prompt_ids,
            batch.prompt_mask,
            batch.response_ids,
            attended_tokens(batch),
            strict=True,
        )
    ]
    return [_of_whole_characters(row) for row in decoded]


def _of_whole_characters(row: DecodedResponse) -> DecodedResponse:
    response = row.response.rstrip("\ufffd")
    end = len(response)
    spans = [(min(start, end), min(stop, end)) for start, stop in row.spans]
    return DecodedResponse(row.prompt, response, spans, [min(at, end) for at in row.ends])


def projected_scores(
    scores: ResponseScores,
    response_mask: Bool[Tensor, "batch source"],
    spans: list[list[Span]],
    decoded: list[DecodedResponse],
    time: int,
) -> ResponseScores:
    """Carry the scores of responses over to other tokens of the same responses.

    Attention is shared by characters. The score of a prefix counts from the token that completes
    it, so that no token is paid for what comes after it.

    Args:
        scores: in the reward model's tokens.
        response_mask: True on those of the response.
        spans: character span of each of them.
        decoded: the responses in the policy's tokens.
        time: columns of the result.
    """
    target_spans = [row.spans for row in decoded]
    attention = scores.attention
    if attention is not None:
        words = [
            source if source == row.spans else spans_of_words(source, row.response)
            for source, row in zip(spans, decoded, strict=True)
        ]
        attention = projected_rows(attention, words, target_spans, time, split="overlap")

    def projected(numbers: Tensor | None) -> Tensor | None:
        if numbers is None:
            return None
        steps = prefix_difference_credit(numbers, response_mask)
        steps = projected_rows(steps, spans, target_spans, time, split="last")
        return torch.cat([numbers[:, :1], steps], dim=-1).cumsum(-1)

    return ResponseScores(
        scores.sequence_scores,
        projected(scores.prefix_scores),
        attention,
        projected(scores.position_scores),
    )


def projected_rows(
    values: Float[Tensor, "batch source"],
    source_spans: list[list[Span]],
    target_spans: list[list[Span]],
    time: int,
    *,
    split: Literal["overlap", "last"],
) -> Float[Tensor, "batch {time}"]:
    """Numbers of the tokens of one tokenizer, carried over to those of another, row by row.

    Args:
        values: of the source tokens.
        source_spans: characters of each of them.
        target_spans: characters of each target token.
        time: columns of the result.
        split: as in `project_token_scores`.
    """
    projected = values.new_zeros(len(values), time)
    for row, (source, target) in enumerate(zip(source_spans, target_spans, strict=True)):
        if source:
            projected[row, : len(target)] = project_token_scores(
                values[row, : len(source)], source, target, split=split
            )
    return projected


def ended_scores(
    scores: ResponseScores, response_mask: Bool[Tensor, "batch time"]
) -> ResponseScores:
    """Put the sequence score in place of the last counted prefix score.

    They differ where the reward model reads closing tokens after the response.

    Args:
        scores: of responses; without prefix scores they stay as they are.
        response_mask: True on response tokens that count.
    """
    if scores.prefix_scores is None:
        return scores
    end = last_true_index(response_mask)[:, None] + 1
    prefix_scores = scores.prefix_scores.scatter(-1, end, scores.sequence_scores[:, None])
    return replace(scores, prefix_scores=prefix_scores)
