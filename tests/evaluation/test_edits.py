import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import DataError
from tokencredit.evaluation.bootstrap import mean_interval
from tokencredit.evaluation.edits import attribute_effects
from tokencredit.evaluation.pair_scores import wilson_interval


def test_changes_are_those_of_each_attribute_alone():
    names = ["tone", "length", "tone", "tone"]
    original, edited = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.5, 3.0, 2.0])
    tone, length = attribute_effects(names, original, edited)
    assert (tone.attribute, tone.edits, length.attribute) == ("tone", 3, "length")
    assert tone.change == pytest.approx((-1 + 0 - 2) / 3)
    assert (tone.low, tone.high) == mean_interval(torch.tensor([-1.0, 0.0, -2.0]))
    assert tone.falls == pytest.approx(2.5 / 3)
    assert (tone.falls_low, tone.falls_high) == wilson_interval(2.5, 3)
    assert length.change == pytest.approx(0.5)
    assert tone.compared == 0
    assert math.isnan(tone.flips)


def test_an_edit_turns_a_pair_where_the_other_answer_comes_out_ahead():
    original, edited = torch.tensor([2.0, 2.0, 0.0, 2.0]), torch.tensor([0.5, 1.5, 3.0, 0.0])
    other = torch.tensor([1.0, 1.0, 1.0, math.nan])
    (found,) = attribute_effects(["tone"] * 4, original, edited, other=other)
    assert (found.compared, found.flips) == (3, pytest.approx(2 / 3))
    assert (found.flips_low, found.flips_high) == wilson_interval(2, 3)


@given(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=6), st.floats(-9, 9, width=16))
def test_a_constant_added_to_all_scores_changes_nothing(values, constant):
    original = torch.tensor(values, dtype=torch.float64)
    edited, other = original.flip(0) / 2, original / 4
    (one,) = attribute_effects(["a"] * len(values), original, edited, other=other, resamples=20)
    (moved,) = attribute_effects(
        ["a"] * len(values), original + constant, edited + constant, other=other + constant,
        resamples=20,
    )  # fmt: skip
    assert moved.change == pytest.approx(one.change)


def test_no_edits_are_refused():
    with pytest.raises(DataError, match="at least one edit"):
        attribute_effects([], torch.zeros(0), torch.zeros(0))
