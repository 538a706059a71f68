import random

import pytest
from reference.edits import cost_of_labels, edit_distance

from tokencredit.errors import DataError
from tokencredit.preference.labels import EditedResponse, edit_labels


@pytest.mark.parametrize(
    ("rejected", "edited", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], ([0, 0, 0], [0, 0, 0])),
        ([1, 2, 3], [1, 9, 3], ([0, 1, 0], [0, -1, 0])),
        ([1, 3], [1, 2, 3], ([0, 1, 0], [0, 0])),
        ([1, 2, 3], [1, 3], ([0, 0], [0, -1, 0])),
        ([1, 2], [3, 4, 5], ([1, 1, 1], [-1, -1])),
        ([], [7, 8], ([1, 1], [])),
        ([7], [], ([], [-1])),
        ([], [], ([], [])),
    ],
)
def test_by_hand(rejected, edited, expected):
    assert edit_labels(rejected, edited) == expected


@pytest.mark.parametrize("seed", range(40))
def test_labels_are_those_of_a_shortest_edit(seed):
    draw = random.Random(seed)
    rejected = [draw.randrange(4) for _ in range(draw.randrange(12))]
    edited = [draw.randrange(4) for _ in range(draw.randrange(12))]
    put_in, taken_out = edit_labels(rejected, edited)
    assert set(put_in) <= {0, 1}
    assert set(taken_out) <= {0, -1}
    kept = [token for token, label in zip(rejected, taken_out, strict=True) if not label]
    assert kept == [token for token, label in zip(edited, put_in, strict=True) if not label]
    assert cost_of_labels(taken_out, put_in) == edit_distance(rejected, edited)


def test_the_other_way_round_costs_the_same_and_keeps_as_much():
    one, other = [1, 2, 3, 4, 5], [2, 3, 9, 5, 5, 6]
    there, back = edit_labels(one, other), edit_labels(other, one)
    assert sum(map(abs, there[0])) == sum(map(abs, back[1]))
    assert sum(map(abs, there[1])) == sum(map(abs, back[0]))


def test_an_edit_changes_something():
    with pytest.raises(DataError, match="both 'the same'; expected two different texts"):
        EditedResponse("", "the same", "the same")
    assert EditedResponse("", "one", "other").edited == "other"
