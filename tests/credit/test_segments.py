import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import segments as reference

from tokencredit.credit.location import LocationNormaliser
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.credit.segments import segment_credit, utterance_credit
from tokencredit.errors import ConfigError, DataError, ShapeError
from tokencredit.policy.advantages import rewards_to_go
from tokencredit.text.pooling import segment_average_scores
from tokencredit.text.segments import ngram_segments, random_ngram_segments

NAN = math.nan
seeds = st.integers(0, 10**6)
spreads = st.sampled_from(["even", "end", "copy"])
NORMALISER = LocationNormaliser(0.8, 0.5, 0.7, 2.0, floor=0.3)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 8, generator=generator) < 0.6
    segment_ids = random_ngram_segments(mask, lengths=[1, 2, 3], generator=generator)
    prefix_scores = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    inside = torch.nn.functional.pad(mask, (1, 0), value=False)
    return prefix_scores.masked_fill(~inside, NAN), segment_ids, mask


def test_literal():
    prefix_scores = torch.tensor([[9.0, 8.0, 4.0, 7.0, 6.0]])
    mask, ids = torch.tensor([[True] * 4]), torch.tensor([[0, 0, 1, 1]])
    assert segment_credit(prefix_scores, ids, mask).tolist() == [[2.0, 2.0, 3.0, 3.0]]
    at_the_end = segment_credit(prefix_scores, ids, mask, spread="end")
    assert at_the_end.tolist() == [[0.0, 4.0, 0.0, 6.0]]
    normaliser = LocationNormaliser(0.0, 0.0, 4.0, 0.5)
    normal = segment_credit(prefix_scores, ids, mask, normaliser=normaliser)
    assert normal.tolist() == [[0.0, 0.0, 2.0, 2.0]]


@given(seeds, spreads, st.sampled_from([None, NORMALISER]))
def test_against_the_reference(seed, spread, normaliser):
    prefix_scores, segment_ids, mask = drawn(seed)
    parameters = None if normaliser is None else list(vars(normaliser).values())
    expected = [
        reference.segment_credit(scores, ids, parameters, spread)
        for scores, ids in zip(prefix_scores.tolist(), segment_ids.tolist(), strict=True)
    ]
    actual = segment_credit(prefix_scores, segment_ids, mask, normaliser=normaliser, spread=spread)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected))


@given(seeds)
def test_a_row_sums_to_its_score_times_its_segments(seed):
    prefix_scores, segment_ids, mask = drawn(seed)
    means = segment_average_scores(prefix_scores, segment_ids)
    expected = (means * (segment_ids.amax(-1) + 1)).float()
    for spread in ("even", "end"):
        actual = segment_credit(prefix_scores, segment_ids, mask, spread=spread)
        torch.testing.assert_close(actual.sum(-1), expected)


def test_one_segment_at_the_end_is_terminal():
    prefix_scores, mask = torch.randn(3, 6), torch.arange(5) < torch.tensor([[5], [3], [0]])
    scores = prefix_scores[torch.arange(3), mask.sum(-1)]
    whole = segment_credit(prefix_scores, ngram_segments(mask, n=5), mask, spread="end")
    torch.testing.assert_close(whole, terminal_credit(scores, mask))


def test_by_token_it_is_the_running_sum_of_prefix_differences():
    prefix_scores, mask = torch.randn(3, 6), torch.ones(3, 5, dtype=torch.bool)
    prefix_scores[:, 0] = 0.0
    by_token = segment_credit(prefix_scores, ngram_segments(mask, n=1), mask)
    differences = prefix_difference_credit(prefix_scores, mask)
    torch.testing.assert_close(by_token, differences.cumsum(-1))


def test_without_a_normaliser_and_at_the_end_it_is_causal():
    prefix_scores, mask = torch.randn(1, 7), torch.ones(1, 6, dtype=torch.bool)
    other = torch.where(torch.arange(7) > 4, prefix_scores + 1.0, prefix_scores)
    ids = ngram_segments(mask, n=3)
    for spread, causal in (("end", True), ("even", False), ("copy", False)):
        before, after = (
            segment_credit(scores, ids, mask, spread=spread)[0, :4]
            for scores in (prefix_scores, other)
        )
        assert torch.equal(before, after) == causal


def test_utterances_literal():
    mask, ids = torch.tensor([[True, True, False, True]]), torch.tensor([[0, 0, -1, 1]])
    scores = torch.tensor([[2.0, -1.0, NAN]])
    assert utterance_credit(scores, ids, mask).tolist() == [[2.0, 2.0, 0.0, -1.0]]
    at_the_end = utterance_credit(scores, ids, mask, spread="end")
    assert at_the_end.tolist() == [[0.0, 2.0, 0.0, -1.0]]


def test_one_utterance_copied_is_what_its_end_gives_from_each_token_on():
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    ids, scores = ngram_segments(mask, n=4), torch.tensor([[2.0], [-3.0]])
    at_the_end = utterance_credit(scores, ids, mask, spread="end")
    torch.testing.assert_close(rewards_to_go(at_the_end, mask), utterance_credit(scores, ids, mask))


@given(seeds, spreads)
def test_utterances_against_the_reference(seed, spread):
    _, segment_ids, mask = drawn(seed)
    scores = torch.randn(4, 8, dtype=torch.float64)
    expected = [
        reference.spread(own[: max(ids) + 1], ids, spread)
        for own, ids in zip(scores.tolist(), segment_ids.tolist(), strict=True)
    ]
    actual = utterance_credit(scores, segment_ids, mask, spread=spread)
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_segments_must_tile():
    mask, ids = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, -1]])
    with pytest.raises(DataError, match="segment_ids of row 0"):
        segment_credit(torch.zeros(1, 3), ids, mask)
    with pytest.raises(DataError, match="segment_ids of row 0"):
        utterance_credit(torch.zeros(1, 1), ids, mask)


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_fit():
    mask, ids = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]])
    with pytest.raises(ShapeError, match="2 prefix scores for 2 tokens"):
        segment_credit(torch.zeros(1, 2), ids, mask)
    with pytest.raises(ShapeError, match="segment_ids has shape"):
        segment_credit(torch.zeros(1, 3), ids[:, :1], mask)
    with pytest.raises(ShapeError, match=r"segment_values have shape \(1, 1\) for 2 segments"):
        utterance_credit(torch.zeros(1, 1), ids, mask)


@pytest.mark.usefixtures("unchecked")
def test_no_such_spread():
    mask, ids = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]])
    with pytest.raises(ConfigError, match="how is 'start'"):
        segment_credit(torch.zeros(1, 3), ids, mask, spread="start")
    with pytest.raises(ConfigError, match="how is 'start'"):
        utterance_credit(torch.zeros(1, 2), ids, mask, spread="start")
