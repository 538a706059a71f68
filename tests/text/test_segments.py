import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import segments as reference

from tokencredit.errors import ConfigError, DataError, NumericError, ShapeError
from tokencredit.text.segments import (
    SegmentSettings,
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
    require_tiling,
    segment_ends,
    segment_lengths,
)

NAN = math.nan
seeds = st.integers(0, 10**6)


def random_lengths(mask, seed=0, **options):
    return random_ngram_segments(mask, generator=torch.Generator().manual_seed(seed), **options)


def made_by_everyone(seed):
    """A mask with holes and what every function that makes segments does with it."""
    torch.manual_seed(seed)
    mask, is_eos = torch.rand(4, 9) < 0.6, torch.rand(4, 9) < 0.2
    unsure = 3 * torch.rand(4, 9).masked_fill(~mask, NAN)
    return mask, {
        "n-gram": ngram_segments(mask, n=2),
        "random": random_lengths(mask, seed, lengths=[1, 2]),
        "perplexity": perplexity_segments(-unsure, mask),
        "entropy": entropy_segments(unsure, mask, threshold=2.0, is_eos=is_eos),
    }


@given(seeds)
def test_all_of_them_tile_every_response(seed):
    mask, made = made_by_everyone(seed)
    for segment_ids in made.values():
        require_tiling(segment_ids, mask)
        assert segment_lengths(segment_ids).sum(-1).tolist() == mask.sum(-1).tolist()
        assert torch.equal(segment_ends(segment_ids).sum(-1), segment_ids.amax(-1) + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "spans"}, "kind is 'spans' and function None; expected module:function"),
        ({"kind": "phrase", "function": "m:f"}, "function 'm:f'; expected kind 'spans' with it"),
        ({"kind": "phrase", "length": 0}, "length is 0"),
        ({"use": "macro-actions"}, "expected a kind of segments"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        SegmentSettings(**settings)


def test_ngram_literal():
    mask = torch.tensor([[False, True, True, False, True, True, True]])
    assert ngram_segments(mask, n=2).tolist() == [[-1, 0, 0, -1, 1, 1, 2]]
    assert ngram_segments(mask, n=1).tolist() == [[-1, 0, 1, -1, 2, 3, 4]]
    assert ngram_segments(mask, n=9).tolist() == [[-1, 0, 0, -1, 0, 0, 0]]


@given(seeds, st.integers(1, 5))
def test_ngrams_against_the_reference(seed, n):
    torch.manual_seed(seed)
    mask = torch.rand(4, 9) < 0.6
    assert ngram_segments(mask, n=n).tolist() == [reference.ngrams(row, n) for row in mask.tolist()]


def test_ngrams_need_a_token():
    with pytest.raises(ConfigError, match="n is 0"):
        ngram_segments(torch.ones(1, 2, dtype=torch.bool), n=0)


@given(seeds, st.integers(1, 2))
def test_random_lengths_are_drawn_once_each_and_the_rest_is_one_segment(seed, repeats):
    pool = sorted([1, 2, 3, 5, 10] * repeats)
    mask = torch.ones(3, 50, dtype=torch.bool)
    segment_ids = random_lengths(mask, seed, repeats=repeats)
    for ids, lengths in zip(
        segment_ids.tolist(), segment_lengths(segment_ids).tolist(), strict=True
    ):
        *drawn, rest = [length for length in lengths if length]
        assert sorted(drawn) == pool
        assert rest == 50 - sum(pool)
        assert ids == reference.of_lengths([True] * 50, drawn)


def test_what_a_row_draws_does_not_depend_on_its_padding():
    short = torch.ones(3, 12, dtype=torch.bool)
    wide = torch.nn.functional.pad(short, (2, 5), value=False)
    assert torch.equal(random_lengths(wide)[:, 2:14], random_lengths(short))
    assert not torch.equal(random_lengths(short, 0), random_lengths(short, 1))
    assert len({tuple(row) for row in random_lengths(short).tolist()}) > 1


def test_every_order_of_the_lengths_is_as_likely():
    mask = torch.ones(6000, 6, dtype=torch.bool)
    counts = Counter(map(tuple, random_lengths(mask, lengths=[1, 2, 3]).tolist()))
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 150


@pytest.mark.parametrize("options", [{"lengths": []}, {"lengths": [2, 0]}, {"repeats": 0}])
def test_random_lengths_are_positive(options):
    with pytest.raises(ConfigError, match="expected positive numbers"):
        random_lengths(torch.ones(1, 2, dtype=torch.bool), **options)


def test_perplexity_literal():
    """Perplexities 2, 4, 4, 3, 5: it rises at the second and at the last token."""
    logprobs = -torch.tensor([[2.0, 4.0, 4.0, 3.0, 5.0]]).log()
    ids = perplexity_segments(logprobs, torch.ones(1, 5, dtype=torch.bool))
    assert ids.tolist() == [[0, 1, 1, 1, 2]]


@given(seeds)
def test_perplexity_against_the_reference(seed):
    torch.manual_seed(seed)
    logprobs, mask = -torch.randint(1, 5, (4, 8)).double(), torch.rand(4, 8) < 0.6
    expected = [
        reference.perplexity(*row) for row in zip(logprobs.tolist(), mask.tolist(), strict=True)
    ]
    assert perplexity_segments(logprobs.masked_fill(~mask, NAN), mask).tolist() == expected


def test_entropy_literal():
    """The first token begins a segment anyway, and 2.0 does not exceed 2.0."""
    entropies, mask = torch.tensor([[0.0, 2.1, 2.0, 5.0, 9.0]]), torch.ones(1, 5, dtype=torch.bool)
    is_eos = torch.tensor([[False] * 4 + [True]])
    cut = entropy_segments(entropies, mask, threshold=2.0)
    assert cut.tolist() == [[0, 1, 1, 2, 3]]
    kept = entropy_segments(entropies, mask, threshold=2.0, is_eos=is_eos)
    assert kept.tolist() == [[0, 1, 1, 2, 2]]


@given(seeds, st.sampled_from([0.0, 0.5, 1.0]))
def test_entropy_against_the_reference(seed, threshold):
    torch.manual_seed(seed)
    mask, is_eos = torch.rand(4, 8) < 0.6, torch.rand(4, 8) < 0.2
    entropies = torch.rand(4, 8, dtype=torch.float64)
    rows = zip(entropies.tolist(), mask.tolist(), is_eos.tolist(), strict=True)
    expected = [reference.entropy(own, counts, threshold, eos) for own, counts, eos in rows]
    actual = entropy_segments(
        entropies.masked_fill(~mask, NAN), mask, threshold=threshold, is_eos=is_eos
    )
    assert actual.tolist() == expected


def test_threshold_nought_gives_tokens_and_infinity_one_segment():
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    entropies = 0.01 + torch.rand(2, 6)
    by_token = entropy_segments(entropies, mask, threshold=0.0)
    assert torch.equal(by_token, ngram_segments(mask, n=1))
    whole = entropy_segments(entropies, mask, threshold=math.inf)
    assert torch.equal(whole, ngram_segments(mask, n=6))


def test_an_end_of_sequence_alone_is_a_segment_all_the_same():
    one = torch.tensor([[True]])
    assert entropy_segments(torch.ones(1, 1), one, threshold=0.0, is_eos=one).tolist() == [[0]]


def test_nan_inside_the_mask_is_an_error():
    values, mask = torch.tensor([[-1.0, NAN]]), torch.tensor([[True, True]])
    with pytest.raises(NumericError, match="ref_logprobs holds NaN inside response_mask"):
        perplexity_segments(values, mask)
    with pytest.raises(NumericError, match="entropies holds NaN inside response_mask"):
        entropy_segments(values, mask, threshold=1.0)


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_fit():
    values, mask = torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"ref_logprobs has shape \(2, 3\)"):
        perplexity_segments(values, mask)
    with pytest.raises(ShapeError, match=r"entropies has shape \(2, 3\)"):
        entropy_segments(values, mask, threshold=1.0)
    with pytest.raises(ShapeError, match=r"is_eos has shape \(2, 3\)"):
        entropy_segments(torch.zeros(2, 4), mask, threshold=1.0, is_eos=values.bool())
    with pytest.raises(ShapeError, match=r"segment_ids has shape \(2, 3\)"):
        require_tiling(values.long(), mask)


@given(seeds)
def test_ends_and_lengths_against_the_reference(seed):
    torch.manual_seed(seed)
    segment_ids = random_lengths(torch.rand(4, 9) < 0.6, seed, lengths=[1, 2, 3])
    for ids, ends, lengths in zip(
        segment_ids.tolist(),
        segment_ends(segment_ids).tolist(),
        segment_lengths(segment_ids).tolist(),
        strict=True,
    ):
        own = reference.members(ids)
        assert [t for t, is_end in enumerate(ends) if is_end] == [columns[-1] for columns in own]
        assert [length for length in lengths if length] == [len(columns) for columns in own]


def test_no_columns_and_no_tokens():
    empty = torch.zeros(2, 0, dtype=torch.bool)
    none = torch.zeros(2, 3, dtype=torch.bool)
    for mask in (empty, none):
        segment_ids = ngram_segments(mask, n=2)
        require_tiling(segment_ids, mask)
        assert segment_ends(segment_ids).shape == mask.shape
        assert not segment_ends(segment_ids).any()
        assert segment_lengths(segment_ids).tolist() == [[0], [0]]
        assert perplexity_segments(torch.zeros(mask.shape), mask).shape == mask.shape


@pytest.mark.parametrize(
    "ids", [[1, 1, 2], [0, 2, 2], [0, 1, 0]], ids=["begins at 1", "leaves one out", "comes back"]
)
def test_ids_that_are_no_runs_from_nought_are_refused(ids):
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(DataError, match=rf"segment_ids of row 1 are \[{ids[0]}, "):
        require_tiling(torch.tensor([[0, 0, 1], ids]), mask)


@pytest.mark.parametrize("ids", [[[0, 0, -1]], [[0, 0, 1]]])
def test_segments_must_cover_the_mask_and_nothing_else(ids):
    mask = torch.tensor([[True, True, ids[0][2] < 0]])
    with pytest.raises(DataError, match="row 0 and response_mask differ"):
        require_tiling(torch.tensor(ids), mask)
