import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError
from tokencredit.preference.pairs import beginning, prefix_lengths, prefix_pairs

EOS = 0
IDS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


def as_published(chosen: list[int], rejected: list[int], start: int) -> list[tuple[list, list]]:
    """Both filled to one length first, then cut at every length, equal beginnings included."""
    longest = max(len(chosen), len(rejected))
    chosen = chosen + [EOS] * (longest - len(chosen))
    rejected = rejected + [EOS] * (longest - len(rejected))
    return [(chosen[:k], rejected[:k]) for k in range(start, longest + 1)]


def test_literal():
    """Equal for two tokens; then one has ended and is filled up."""
    pairs = list(prefix_pairs([7, 8], [7, 8, 5, 6], filler=EOS))
    assert pairs == [([7, 8, 0], [7, 8, 5]), ([7, 8, 0, 0], [7, 8, 5, 6])]


def test_without_a_filler_the_shorter_answer_stays_whole():
    pairs = list(prefix_pairs([7], [8, 5, 6]))
    assert pairs == [([7], [8]), ([7], [8, 5]), ([7], [8, 5, 6])]


@given(IDS, IDS, st.integers(1, 2))
def test_the_pairs_are_those_published_without_the_equal_ones(chosen, rejected, start):
    expected = [pair for pair in as_published(chosen, rejected, start) if pair[0] != pair[1]]
    pairs = list(prefix_pairs(chosen, rejected, filler=EOS, start=start))
    if expected:  # whole answers shorter than `start` are a pair all the same
        assert pairs == expected


@given(IDS, IDS, st.integers(1, 7), st.integers(1, 4), st.sampled_from([None, EOS]))
def test_whole_answers_are_the_last_pair(chosen, rejected, start, step, filler):
    pairs = list(prefix_pairs(chosen, rejected, filler=filler, start=start, step=step))
    assert all(one != other for one, other in pairs)
    longest = max(len(chosen), len(rejected))
    if chosen == rejected:
        assert pairs == []
    else:
        assert pairs[-1] == (
            beginning(chosen, longest, filler=filler),
            beginning(rejected, longest, filler=filler),
        )


def test_steps_count_from_the_start_whatever_is_left_out():
    assert prefix_lengths([1] * 10, [2] * 4, step=4) == [1, 5, 9, 10]
    assert prefix_lengths([3, 3, *[1] * 8], [3, 3, 2], step=4) == [5, 9, 10]


def test_an_answer_that_ends_where_the_other_writes_the_filler_is_the_same():
    assert prefix_lengths([5], [5, EOS], filler=EOS) == []
    assert prefix_lengths([5], [5, EOS]) == [2]


@pytest.mark.parametrize("options", [{"start": 0}, {"step": 0}])
def test_lengths_are_positive(options):
    with pytest.raises(ConfigError, match="is 0; expected at least 1 token"):
        list(prefix_pairs([1], [2], **options))
