"""Prompts and responses as rows of token ids, with a label on each token of the response."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.alignment import Span
from tokencredit.errors import DataError
from tokencredit.preference.edits import EditedResponse, edit_labels
from tokencredit.preference.pairs import Prompt
from tokencredit.preference.spans import SpanLabelledResponse, token_span_labels
from tokencredit.preference.steps import StepLabels, step_segment_ids
from tokencredit.recipes.corpus import IGNORED
from tokencredit.recipes.encoded_texts import EncodedText
from tokencredit.recipes.reward_texts import encoded_prompts
from tokencredit.recipes.token_classifier_config import LabelSource, TrainTokenClassifierConfig

Labelled = EditedResponse | SpanLabelledResponse | StepLabels
# Number of the label of a token that an edit kept; it comes behind the two classes.
_KEPT = 2


@dataclass(frozen=True)
class LabelledText:
    """A prompt and its response with a label on each token.

    Attributes:
        text: token ids.
        labels: for each of them the number of its label, IGNORED where it has none.
    """

    text: EncodedText
    labels: list[int]

    def __len__(self) -> int:
        return len(self.text)


def label_targets(labels: LabelSource, classes: int) -> Float[Tensor, "numbers classes"]:
    """The probability of each class that each label stands for; kept tokens are of either."""
    own = torch.eye(classes)
    return torch.cat([own, own.new_full((1, 2), 0.5)]) if labels == "edits" else own


def labelled_texts(
    config: TrainTokenClassifierConfig, tokenizer: PreTrainedTokenizerBase, data: Sequence[Labelled]
) -> list[LabelledText]:
    """Rows of token ids with labels, cut to `max_length`; an edit makes two of them.

    Raises:
        DataError: labels and text do not fit each other, or `max_length` leaves no label.
        ModelError: texts stand alone and the tokenizer has no token to begin them.
    """
    prompts = [row.prompt for row in data]
    edits = [row for row in data if isinstance(row, EditedResponse)]
    if edits:
        rejected = list(_encoded(config, tokenizer, prompts, [row.rejected for row in edits]))
        edited = list(_encoded(config, tokenizer, prompts, [row.edited for row in edits]))
        numbered = _numbered_edits([row for row, _ in rejected], [row for row, _ in edited])
    else:
        responses = [_response(config, row) for row in data]
        encoded = _encoded(config, tokenizer, prompts, responses)
        numbered = [
            (text, _numbers(config, row, number, response, spans))
            for number, (row, response, (text, spans)) in enumerate(
                zip(data, responses, encoded, strict=True)
            )
        ]
    return [_shortened(text, numbers, config.max_length) for text, numbers in numbered]


def _response(config: TrainTokenClassifierConfig, row: Labelled) -> str:
    if isinstance(row, StepLabels):
        return row.response(step_separator=config.step_separator)
    assert isinstance(row, SpanLabelledResponse)
    return row.response


def _encoded(
    config: TrainTokenClassifierConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    chunk: int = 256,
) -> Iterator[tuple[EncodedText, list[Span]]]:
    """Token ids of each prompt and response, and the characters of each response token."""
    chats = any(isinstance(prompt, list) for prompt in prompts)
    for at in range(0, len(responses), chunk):
        encoded = encoded_prompts(
            tokenizer,
            prompts[at : at + chunk],
            responses[at : at + chunk],
            template="chat" if chats else "plain",
            append_eos=config.append_eos,
        )
        no_prompt = torch.zeros_like(encoded.batch.prompt_mask)
        counts = torch.cat([no_prompt, encoded.batch.response_mask], dim=-1)
        real = encoded.attention_mask.bool()
        rows = zip(encoded.batch.input_ids, real, counts, encoded.response_spans, strict=True)
        for ids, is_real, mask, spans in rows:
            yield EncodedText(ids[is_real].tolist(), mask[is_real].tolist()), spans


def _numbered_edits(
    rejected: Sequence[EncodedText], edited: Sequence[EncodedText]
) -> list[tuple[EncodedText, list[int]]]:
    """Both sides of every edit with their labels: 0 taken out, 1 put in, 2 kept."""
    numbered = []
    for before, after in zip(rejected, edited, strict=True):
        put_in, taken_out = edit_labels(_response_ids(before), _response_ids(after))
        numbered.append((before, [0 if label else _KEPT for label in taken_out]))
        numbered.append((after, [1 if label else _KEPT for label in put_in]))
    return numbered


def _response_ids(text: EncodedText) -> list[int]:
    rows = zip(text.input_ids, text.response_mask, strict=True)
    return [token for token, counts in rows if counts]


def _numbers(
    config: TrainTokenClassifierConfig,
    row: Labelled,
    number: int,
    response: str,
    spans: Sequence[Span],
) -> list[int]:
    """The label of each response token; of a step, only the last one has any."""
    try:
        if isinstance(row, StepLabels):
            steps = step_segment_ids(row.completions, spans, step_separator=config.step_separator)
            following = [*steps[1:], None]
            return [
                int(row.labels[step]) if step != after else IGNORED
                for step, after in zip(steps, following, strict=True)
            ]
        assert isinstance(row, SpanLabelledResponse)
        return token_span_labels(
            response,
            row.spans,
            spans,
            severities=config.severities,
            overlapping=config.overlapping,
        )
    except DataError as error:
        raise DataError(f"{config.data}, example {number}: {error}") from error


def _shortened(text: EncodedText, numbers: Sequence[int], length: int) -> LabelledText:
    """The row without the start of its prompt, and then without the end of its response."""
    left = iter(numbers)
    labels = [next(left) if counts else IGNORED for counts in text.response_mask]
    cut = max(0, min(len(text) - length, text.start - 1))
    keep = slice(cut, cut + length)
    if all(label == IGNORED for label in labels[keep]):
        raise DataError(
            f"a response of {len(text) - text.start} tokens has no label in the first of them that "
            f"max_length {length} leaves; expected the end of a step: set a larger max_length"
        )
    return LabelledText(EncodedText(text.input_ids[keep], text.response_mask[keep]), labels[keep])
