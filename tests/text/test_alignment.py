import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import alignment as reference

from tokencredit.errors import ShapeError
from tokencredit.text.alignment import project_token_scores, spans_of_words

SPLITS = ("overlap", "last")
scores_of = st.floats(-10, 10, width=32)


@st.composite
def cuts(draw, length):
    """Spans that cut a text of this length in order; empty ones and repeated ones among them."""
    borders = sorted(draw(st.lists(st.integers(0, length), max_size=6)))
    spans = list(pairwise([0, *borders, length]))
    if draw(st.booleans()):
        spans = [spans[0], *spans]
    return spans


@st.composite
def scored_cuts(draw):
    length = draw(st.integers(0, 12))
    source, target = draw(cuts(length)), draw(cuts(length))
    scores = draw(st.lists(scores_of, min_size=len(source), max_size=len(source)))
    return scores, source, target


def test_overlap_literal():
    """'good' cut as go|od, paid 4, is handed to g|ood by characters."""
    projected = project_token_scores([1.0, 3.0], [(0, 2), (2, 4)], [(0, 1), (1, 4)])
    assert projected.tolist() == [0.5, 3.5]


def test_last_literal():
    projected = project_token_scores([1.0, 3.0], [(0, 2), (2, 4)], [(0, 1), (1, 4)], split="last")
    assert projected.tolist() == [0.0, 4.0]


def test_parts_of_one_character_map_part_by_part():
    """Four bytes of a character on the source side, two tokens of it on the target side."""
    source, target = [(0, 1)] * 4 + [(1, 2)], [(0, 1)] * 2 + [(1, 2)]
    for split in SPLITS:
        projected = project_token_scores([1.0, 2.0, 3.0, 4.0, 5.0], source, target, split=split)
        assert projected.tolist() == [3, 7, 5]


def test_special_tokens_pay_the_nearest_token_before():
    scores, source = [1.0, 2.0, 3.0, 4.0], [(0, 0), (0, 2), (2, 4), (4, 4)]
    for split in SPLITS:
        onto_text = project_token_scores(scores, source, [(0, 2), (2, 4)], split=split)
        assert onto_text.tolist() == [3, 7]
        # An end of sequence on both sides: the one pays the other.
        onto_end = project_token_scores(scores, source, [(0, 4), (4, 4)], split=split)
        assert onto_end.tolist() == [6, 4]


def test_characters_that_no_target_holds_are_not_lost():
    """The space between two words belongs to no target token."""
    for split in SPLITS:
        projected = project_token_scores([5.0], [(4, 5)], [(0, 4), (5, 8)], split=split)
        assert projected.sum() == 5.0


def test_nothing_onto_something_is_zero():
    assert project_token_scores([], [], [(0, 1)]).tolist() == [0.0]


def test_keeps_the_tensor_it_was_given_apart_from_its_result():
    scores = torch.tensor([1.0, 2.0])
    project_token_scores(scores, [(0, 1), (1, 2)], [(0, 1), (1, 2)])[0] = 9.0
    assert scores.tolist() == [1.0, 2.0]


@given(scored_cuts(), st.sampled_from(SPLITS))
def test_the_sum_is_conserved(case, split):
    scores, source, target = case
    projected = project_token_scores(scores, source, target, split=split)
    assert projected.shape == (len(target),)
    assert math.isclose(projected.double().sum().item(), sum(scores), rel_tol=1e-4, abs_tol=1e-4)


@given(scored_cuts(), st.sampled_from(SPLITS))
def test_the_same_spans_change_nothing(case, split):
    scores, source, _ = case
    projected = project_token_scores(scores, source, source, split=split)
    assert projected.tolist() == pytest.approx(scores, abs=1e-6)


@given(scored_cuts(), st.sampled_from(SPLITS))
def test_against_the_reference(case, split):
    scores, source, target = case
    # The loops know nothing of tokens that share a character.
    for spans in (source, target):
        filled = [span for span in spans if span[1] > span[0]]
        assume(len(filled) == len(set(filled)))
    assume(source != target)
    loops = {"overlap": reference.projected_by_overlap, "last": reference.projected_to_last}
    projected = project_token_scores(scores, source, target, split=split)
    expected = loops[split](scores, source, target)
    assert projected.tolist() == pytest.approx(expected, abs=1e-4)


@given(scored_cuts())
def test_the_last_split_pays_no_token_for_characters_behind_it(case):
    _, source, target = case
    for index, (start, end) in enumerate(source):
        scores = [float(i == index) for i in range(len(source))]
        paid = project_token_scores(scores, source, target, split="last").nonzero().flatten()
        shared = source.count((start, end)) > 1
        if end > start and not shared and source != target:
            assert target[int(paid)][1] >= end


def test_a_word_does_not_pay_the_space_before_it():
    source = spans_of_words([(0, 5), (5, 7)], " good\n\n")
    assert source == [(1, 5), (5, 7)]
    projected = project_token_scores([4.0, 1.0], source, [(0, 1), (1, 3), (3, 5), (5, 7)])
    assert projected.tolist() == [0, 2, 2, 1]


def test_long_texts_take_no_table_of_all_pairs():
    """A table of these tokens would take 43 GB."""
    source = [(3 * i, 3 * i + 3) for i in range(60_000)]
    target = [(2 * i, 2 * i + 2) for i in range(90_000)]
    scores = torch.ones(60_000)
    shared = project_token_scores(scores, source, target).view(-1, 3)
    torch.testing.assert_close(shared, torch.full_like(shared, 2 / 3))
    at_ends = project_token_scores(scores, source, target, split="last").view(-1, 3)
    assert torch.equal(at_ends, torch.tensor([0.0, 1.0, 1.0]).expand_as(at_ends))


@pytest.mark.parametrize("split", SPLITS)
def test_spans_in_any_order(split):
    """A token whose characters begin before those of the token before it, as after half a one."""
    source, target = [(3, 3), (2, 4), (0, 2)], [(2, 4), (3, 3), (0, 2)]
    projected = project_token_scores([1.0, 2.0, 4.0], source, target, split=split)
    assert projected.tolist() == {"overlap": [2, 0, 5], "last": [6, 0, 1]}[split]


@pytest.mark.parametrize(
    ("scores", "source", "target", "message"),
    [
        ([1.0], [], [(0, 1)], "1 token scores for 0 spans"),
        ([1.0], [(0, 1)], [], "to project onto none"),
        ([1.0], [(2, 1)], [(0, 2)], "ends before it starts"),
    ],
)
def test_spans_that_do_not_fit(scores, source, target, message):
    with pytest.raises(ShapeError, match=message):
        project_token_scores(scores, source, target)
