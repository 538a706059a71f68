import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.batch import (
    PreferenceBatch,
    ResponseBatch,
    padded_rows,
    rows_of_like_length,
)
from tokencredit.errors import ShapeError

SIDES = ("left", "right")


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


def test_rows_are_padded_towards_the_border_of_prompt_and_response():
    batch = ResponseBatch.of_rows([[5], [6, 7, 8]], [[9, 8], [1]], pad_token_id=2)
    assert batch.prompt_ids.tolist() == [[2, 2, 5], [6, 7, 8]]
    assert batch.prompt_mask.equal(bools("001", "111"))
    assert batch.response_ids.tolist() == [[9, 8], [1, 2]]
    assert batch.response_mask.equal(bools("11", "10"))
    assert {t.dtype for t in (batch.prompt_ids, batch.response_ids)} == {torch.int64}


def test_padding_of_rows_is_known_by_mask_where_the_pad_token_is_a_word():
    batch = ResponseBatch.of_rows([[2]], [[2, 2]], pad_token_id=2)
    assert batch.attention_mask.tolist() == [[1, 1, 1]]
    assert batch.lengths.tolist() == [2]


def test_masks_of_rows_say_which_tokens_count():
    batch = ResponseBatch.of_rows(
        [[5], [6]], [[9, 8, 7], [1]], masks=[[True, False, True], [False]], pad_token_id=0
    )
    assert batch.response_mask.equal(bools("101", "000"))
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_rows_may_be_empty():
    batch = ResponseBatch.of_rows([[], [6]], [[9], []], masks=[[True], []], pad_token_id=0)
    assert batch.prompt_mask.equal(bools("0", "1"))
    assert batch.response_mask.equal(bools("1", "0"))
    nothing = ResponseBatch.of_rows([[5]], [[]], pad_token_id=0)
    assert nothing.response_ids.shape == (1, 0)


def test_a_batch_of_no_rows():
    batch = ResponseBatch.of_rows([], [], pad_token_id=0)
    assert len(batch) == 0
    assert batch.input_ids.shape == batch.attention_mask.shape == (0, 0)
    assert batch.lengths.tolist() == []


def test_rows_on_a_device():
    batch = ResponseBatch.of_rows([[5]], [[9]], pad_token_id=0, device="meta")
    assert {getattr(batch, f.name).device.type for f in dataclasses.fields(batch)} == {"meta"}


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=5), st.sampled_from(SIDES))
def test_padded_rows_hold_their_rows(rows, side):
    values, real = padded_rows(rows, fill=-1, side=side)
    assert [row[own].tolist() for row, own in zip(values, real, strict=True)] == rows
    assert values[~real].eq(-1).all()
    border = real if side == "right" else real.flip(-1)
    assert border.equal(border.long().cummin(-1).values.bool()) if rows else len(real) == 0


@given(st.lists(st.integers(0, 9), max_size=9), st.one_of(st.none(), st.integers(1, 4)))
def test_rows_of_like_length_are_all_rows_the_longest_first(lengths, size):
    batches = rows_of_like_length(torch.tensor(lengths, dtype=torch.long), size)
    order = [row for batch in batches for row in batch.tolist()]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(0 < len(batch) <= (size or len(lengths)) for batch in batches)


@given(st.lists(st.integers(0, 9), max_size=9), st.none() | st.integers(1, 4), st.integers(1, 30))
def test_rows_of_like_length_keep_to_their_tokens_and_waste_none(lengths, size, tokens):
    batches = rows_of_like_length(torch.tensor(lengths, dtype=torch.long), size, tokens=tokens)
    order = [row for batch in batches for row in batch.tolist()]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for at, batch in enumerate(batches):
        longest = max(1, lengths[int(batch[0])])
        assert len(batch) == 1 or len(batch) * longest <= tokens
        full = len(batch) == size or (len(batch) + 1) * longest > tokens
        assert full or at == len(batches) - 1


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

    def test_rows_in_another_number(self):
        with pytest.raises(ShapeError, match="2 prompts and 1 responses"):
            ResponseBatch.of_rows([[5], [6]], [[9]], pad_token_id=0)

    @pytest.mark.parametrize("masks", [[[True]], [[True], [True]], [[True, False], []]])
    def test_masks_of_another_length_than_their_rows(self, masks):
        with pytest.raises(ShapeError, match=r"masks have .* responses of \[2, 1\] tokens"):
            ResponseBatch.of_rows([[5], [6]], [[9, 8], [7]], masks=masks, pad_token_id=0)
