import pytest
import torch

from tokencredit.text.hf_token_rows import (
    EncodedText,
    padded_rows,
    read_last_token,
    response_batch,
    right_padded,
    scored_rows,
)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_any_length_are_padded_on_their_side(side):
    rows = [[1, 2, 3], [], [4]]
    ids, mask = padded_rows(rows, fill=9, side=side)
    assert ids.dtype == torch.long
    for row, padded, real in zip(rows, ids, mask, strict=True):
        assert padded[real].tolist() == row
        assert padded[~real].tolist() == [9] * (3 - len(row))
        filled = real.tolist() if side == "left" else real.tolist()[::-1]
        assert filled == sorted(filled)


def test_rows_without_anything_are_no_columns():
    ids, mask = padded_rows([[], []], fill=0, side="left")
    assert ids.shape == mask.shape == (2, 0)


def test_every_way_to_pad_is_this_one():
    rows = [EncodedText([5, 6, 7], [False, True, True]), EncodedText([8, 9], [False, True])]
    ids, attention_mask, response_mask = right_padded(rows, pad_id=3)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 3]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert response_mask.tolist() == [[False, True, True], [False, True, False]]
    assert scored_rows(rows, pad_id=3, read_at=read_last_token)[2].tolist() == [
        [False, False, True],
        [False, True, False],
    ]
    batch = response_batch([*rows, EncodedText([1, 2, 4], [False, False, True])], pad_id=3)
    assert batch.prompt_ids.tolist() == [[3, 5], [3, 8], [1, 2]]
    assert batch.prompt_mask.tolist() == [[False, True], [False, True], [True, True]]
    assert batch.response_ids.tolist() == [[6, 7], [9, 3], [4, 3]]
    assert batch.response_mask.tolist() == [[True, True], [True, False], [True, False]]
