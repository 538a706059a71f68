"""Rows of token ids with a label on each response token, and what a token classifier learns."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.batch import Prompt, padded_rows
from tokencredit.errors import DataError
from tokencredit.evaluation.agreement import token_auroc
from tokencredit.preference.labels import (
    EditedResponse,
    SpanLabelledResponse,
    StepLabels,
    edit_labels,
    step_segment_ids,
    token_span_labels,
)
from tokencredit.recipes.language_model.corpus import IGNORED
from tokencredit.recipes.reward_model.settings import LabelSource, TrainTokenClassifierConfig
from tokencredit.reward_model.hf_token_classifier import token_logits
from tokencredit.text.alignment import Span
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import CHUNK, EncodedText, right_padded, unpadded_texts

LabelledRow = EditedResponse | SpanLabelledResponse | StepLabels


# Number of the label of a token that an edit kept; it comes after the two classes.
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


def labelled_text(row: LabelledRow) -> str:
    """What tells two rows of the same prompt apart."""
    if isinstance(row, EditedResponse):
        return row.rejected
    return row.response if isinstance(row, SpanLabelledResponse) else "".join(row.completions)


def labelled_texts(
    config: TrainTokenClassifierConfig,
    reading: Reading,
    data: Sequence[LabelledRow],
) -> list[LabelledText]:
    """Rows of token ids with labels, cut to `max_length`; an edit makes two of them.

    Raises:
        DataError: labels and text do not fit each other, or `max_length` leaves no label.
        ModelError: as `Reading.encoded`.
    """
    prompts = [row.prompt for row in data]
    edits = [row for row in data if isinstance(row, EditedResponse)]
    if edits:
        rejected = list(_encoded_rows(reading, prompts, [row.rejected for row in edits]))
        edited = list(_encoded_rows(reading, prompts, [row.edited for row in edits]))
        numbered = _numbered_edits([row for row, _ in rejected], [row for row, _ in edited])
    else:
        responses = [_response(config, row) for row in data]
        encoded = _encoded_rows(reading, prompts, responses)
        numbered = [
            (text, _label_numbers(config, row, number, response, spans))
            for number, (row, response, (text, spans)) in enumerate(
                zip(data, responses, encoded, strict=True)
            )
        ]
    return [_shortened_row(text, numbers, config.max_length) for text, numbers in numbered]


def _response(config: TrainTokenClassifierConfig, row: LabelledRow) -> str:
    if isinstance(row, StepLabels):
        return row.response(step_separator=config.step_separator)
    assert isinstance(row, SpanLabelledResponse)
    return row.response


def _encoded_rows(
    reading: Reading,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
) -> Iterator[tuple[EncodedText, list[Span]]]:
    """Token ids of each prompt and response, and the characters of each response token."""
    for at in range(0, len(responses), CHUNK):
        encoded = reading.encoded(prompts[at : at + CHUNK], responses[at : at + CHUNK])
        yield from zip(unpadded_texts(encoded), encoded.response_spans, strict=True)


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


def _label_numbers(
    config: TrainTokenClassifierConfig,
    row: LabelledRow,
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


def _shortened_row(text: EncodedText, numbers: Sequence[int], length: int) -> LabelledText:
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


def token_batch(rows: Sequence[LabelledText], *, pad_id: int) -> dict[str, Tensor]:
    """Rows padded on the right: `input_ids`, `attention_mask` and `token_labels`."""
    ids, attention_mask, _ = right_padded([row.text for row in rows], pad_id=pad_id)
    labels, _ = padded_rows([row.labels for row in rows], fill=IGNORED, side="right")
    return {"input_ids": ids, "attention_mask": attention_mask, "token_labels": labels}


def padded_logits(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Int[Tensor, "batch sequence"],
) -> Float[Tensor, "batch sequence classes"]:
    """Logits of every token of rows that are padded on the right, with gradient."""
    return token_logits(model, input_ids, attention_mask.sum(-1))


def labelled_logits(
    model: PreTrainedModel,
    rows: Sequence[LabelledText],
    *,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> tuple[Float[Tensor, "tokens classes"], Int[Tensor, "tokens"]]:
    """The logits of all labelled tokens of all rows, and their labels.

    Args:
        model: a token classifier.
        rows: in any order; the tokens that are given come in another.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.
    """
    model.eval()
    order = sorted(rows, key=len, reverse=True)
    logits, labels = [], []
    for at in range(0, len(order), batch_size):
        batch = token_batch(order[at : at + batch_size], pad_id=pad_id)
        numbers = batch.pop("token_labels")
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad(), context:
            given = padded_logits(model, **inputs).float().cpu()
        logits.append(given[numbers != IGNORED])
        labels.append(numbers[numbers != IGNORED])
    return torch.cat(logits), torch.cat(labels)


def class_report(
    logits: Float[Tensor, "tokens classes"], labels: Int[Tensor, "tokens"], names: Sequence[str]
) -> dict[str, Any]:
    """How well the classes of tokens are told apart.

    Args:
        logits: of each token.
        labels: the class of each token; those that are no class (kept by an edit) do not count.
        names: of the classes.

    Returns:
        `tokens`; `accuracy` of the most likely class; `majority`, the accuracy of always naming the
        most frequent one; and under `classes` for each its `tokens`, `f1`, and `auroc` against all
        others. What is not defined, since no token is of a class or all are, is None.
    """
    counted = labels < len(names)
    logits, labels = logits[counted], labels[counted]
    likely = logits.argmax(-1)
    tokens = len(labels)
    sizes = labels.bincount(minlength=len(names))
    return {
        "tokens": tokens,
        "accuracy": int((likely == labels).sum()) / tokens if tokens else None,
        "majority": int(sizes.max()) / tokens if tokens else None,
        "classes": {
            name: _of_one_class(logits.softmax(-1)[:, index], likely == index, labels == index)
            for index, name in enumerate(names)
        },
    }


def _of_one_class(scores: Tensor, named: Tensor, true: Tensor) -> dict[str, float | int | None]:
    size = int(named.sum() + true.sum())
    auroc = float(token_auroc(scores[None], true[None], torch.ones_like(true)[None]))
    return {
        "tokens": int(true.sum()),
        "f1": 2 * int((named & true).sum()) / size if size else None,
        "auroc": None if auroc != auroc else auroc,
    }
