import dataclasses

import pytest
import torch

from tokencredit.batch import PreferenceBatch, ResponseBatch
from tokencredit.errors import ShapeError


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


@pytest.fixture
def batch() -> ResponseBatch:
    return ResponseBatch(
        prompt_ids=torch.tensor([[0, 0, 5], [6, 7, 8], [0, 3, 4]]),
        prompt_mask=bools("001", "111", "011"),
        response_ids=torch.tensor([[9, 8, 7, 0], [9, 0, 0, 0], [1, 2, 3, 4]]),
        response_mask=bools("1110", "0000", "1001"),
    )


def test_prompt_and_response_are_joined(batch):
    assert batch.input_ids.tolist() == [
        [0, 0, 5, 9, 8, 7, 0],
        [6, 7, 8, 9, 0, 0, 0],
        [0, 3, 4, 1, 2, 3, 4],
    ]


def test_attention_sees_uncounted_tokens_but_no_padding(batch):
    assert batch.attention_mask.tolist() == [
        [0, 0, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1],
    ]
    assert batch.attention_mask.dtype == torch.int64


def test_padding_is_known_by_mask_not_by_id():
    ids = torch.full((1, 3), 2)
    same = ResponseBatch(ids, bools("011"), ids, bools("110"))
    assert same.attention_mask.tolist() == [[0, 1, 1, 1, 1, 0]]


def test_lengths_count_what_counts(batch):
    assert batch.lengths.tolist() == [3, 0, 2]
    assert len(batch) == 3


@pytest.mark.parametrize(
    "rows", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])]
)
def test_rows_are_taken_from_every_tensor(batch, rows):
    part = batch[rows]
    for field in dataclasses.fields(batch):
        assert getattr(part, field.name).equal(getattr(batch, field.name)[rows])
    assert part.attention_mask.equal(batch.attention_mask[rows])


def test_moves_to_another_device(batch):
    moved = batch.to("meta")
    assert {getattr(moved, f.name).device.type for f in dataclasses.fields(moved)} == {"meta"}


def test_cannot_be_changed(batch):
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.prompt_ids = batch.response_ids


def test_a_batch_without_response_columns():
    empty = torch.zeros(2, 0, dtype=torch.long)
    batch = ResponseBatch(torch.ones(2, 1, dtype=torch.long), bools("1", "1"), empty, empty.bool())
    assert batch.attention_mask.tolist() == [[1], [1]]
    assert batch.lengths.tolist() == [0, 0]


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)

    def test_prompt_mask_of_another_shape(self):
        with pytest.raises(ShapeError, match=r"prompt_ids.*\(2, 3\).*prompt_mask.*\(2, 2\)"):
            ResponseBatch(self.ids, self.mask[:, :2], self.ids, self.mask)

    def test_response_mask_of_another_shape(self):
        with pytest.raises(ShapeError, match="response_ids"):
            ResponseBatch(self.ids, self.mask, self.ids, self.mask[:1])

    def test_one_response_without_batch_axis(self):
        with pytest.raises(ShapeError, match=r"\(batch, time\)"):
            ResponseBatch(self.ids[0], self.mask[0], self.ids, self.mask)

    def test_more_responses_than_prompts(self):
        with pytest.raises(ShapeError, match=r"1 prompts and 2 responses.*repeat prompts"):
            ResponseBatch(self.ids[:1], self.mask[:1], self.ids, self.mask)

    def test_unpaired_preferences(self):
        two = ResponseBatch(self.ids, self.mask, self.ids, self.mask)
        with pytest.raises(ShapeError, match="2 chosen and 1 rejected"):
            PreferenceBatch(two, two[:1])

    def test_margins_in_another_number(self):
        two = ResponseBatch(self.ids, self.mask, self.ids, self.mask)
        with pytest.raises(ShapeError, match=r"margin.*\(3,\).*2 pairs"):
            PreferenceBatch(two, two, torch.zeros(3))
        assert PreferenceBatch(two, two, torch.zeros(2)).margin is not None
