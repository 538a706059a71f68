"""Rows of `train-preferences`: answers as token ids, with what was said of them, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokencredit.batch import Prompt, padded_rows
from tokencredit.preference.hf_answers import JudgedAnswers
from tokencredit.recipes.preferences.settings import TrainPreferencesConfig
from tokencredit.recipes.reward_model.vocabulary_turns import ended_row
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, read_response, scored_rows


@dataclass(frozen=True)
class AnswerRow:
    """Answers to one prompt.

    Attributes:
        texts: as token ids; from the first response token to the end of the row everything counts.
        prompts: what was asked, for a reward model that renders it itself.
        scores: of each; None where the loss asks for none.
        soft_label: probability that the first is better; likewise.
    """

    texts: tuple[EncodedText, ...]
    prompts: tuple[Prompt, ...]
    scores: tuple[float, ...] | None = None
    soft_label: float | None = None

    def __len__(self) -> int:
        return max(map(len, self.texts))

    @property
    def response_lengths(self) -> list[int]:
        """Tokens of each response."""
        return [len(text) - text.start for text in self.texts]


def answer_rows(
    config: TrainPreferencesConfig, reading: Reading, data: Sequence[JudgedAnswers]
) -> list[AnswerRow]:
    """Answers as token ids, cut as the settings say.

    A response that ended ends with the token that ended its turn: what a chat template writes after
    that is left out, since no policy writes it.

    Args:
        config: the settings.
        reading: of the model.
        data: rows of the data.

    Raises:
        DataError, ModelError: as `Reading.groups`.
    """
    groups = reading.groups(
        [row.prompts for row in data],
        [row.responses for row in data],
        ended=[row.ended for row in data],
        max_length=config.max_length,
        truncation=config.truncation,
    )
    return [
        AnswerRow(
            tuple(ended_row(text, turn_ends=reading.turn_ends) for text in texts),
            row.prompts,
            row.scores,
            row.soft_label,
        )
        for texts, row in zip(groups, data, strict=True)
    ]


def with_scores(row: AnswerRow, scores: Sequence[float]) -> AnswerRow:
    """The row with other scores."""
    return replace(row, scores=tuple(scores))


SAID = ("row", "scores", "soft_labels", "constants", "edited")
"""Columns of a batch that are not for the model."""


def answer_batch(
    rows: Sequence[AnswerRow],
    numbers: Sequence[int],
    *,
    pad_id: int,
    constants: Sequence[Sequence[Tensor]] = (),
    edited: Sequence[Sequence[Tensor]] | None = None,
    taught: Sequence[Sequence[Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Answers to several prompts, those of a prompt together, padded on the right.

    Args:
        rows: all of the data.
        numbers: which of them.
        pad_id: fills padding.
        constants: for each row and each of its answers (tokens, numbers) of its response.
        edited: likewise (tokens), True on tokens that an edit changed; None for none.
        taught: likewise (tokens, numbers), what teachers say of each token; None for none.

    Returns:
        `input_ids`, `attention_mask` and `counted` (answers, sequence); `row` (rows); `present`
        (rows, width), where an answer is; `scores` likewise; `soft_labels` (rows); `constants`
        and `taught` (answers, time, numbers) and `edited` (answers, time), response tokens from
        column 0 on.
    """
    some = [rows[number] for number in numbers]
    texts = [text for row in some for text in row.texts]
    ids, attention_mask, counted = scored_rows(texts, pad_id=pad_id, read_at=read_response)
    counts = [len(row.texts) for row in some]
    present, _ = padded_rows([[True] * count for count in counts], fill=False, side="right")
    batch = {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "counted": counted,
        "row": torch.tensor(numbers),
        "present": present.bool(),
    }
    if some[0].scores is not None:
        scores = torch.zeros(present.shape)
        scores[batch["present"]] = torch.tensor([one for row in some for one in row.scores or ()])
        batch["scores"] = scores
    if some[0].soft_label is not None:
        batch["soft_labels"] = torch.tensor([row.soft_label or 0.0 for row in some])
    if constants:
        batch["constants"] = _padded([one for number in numbers for one in constants[number]])
    if edited is not None:
        flags = [one for number in numbers for one in edited[number]]
        batch["edited"] = _padded(flags).bool()
    if taught is not None:
        batch["taught"] = _padded([one for number in numbers for one in taught[number]])
    return batch


def _padded(values: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
