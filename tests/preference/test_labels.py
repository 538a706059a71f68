import random
from itertools import pairwise

import pytest
from reference.spans import token_labels

from tokencredit.errors import DataError
from tokencredit.preference.labels import LabelledSpan, token_span_labels

TEXT = "the plot is so bad, really"
WORDS = [(0, 3), (3, 8), (8, 11), (11, 14), (14, 18), (18, 19), (19, 26)]
SEVERITIES = ["minor", "major", "critical"]


def labels(*spans: tuple[int, int, str], tokens=WORDS, **options) -> list[int]:
    labelled = [LabelledSpan(*span) for span in spans]
    return token_span_labels(TEXT, labelled, tokens, severities=SEVERITIES, **options)


def test_tokens_take_the_label_of_the_span_that_they_share_a_character_with():
    assert labels() == [0] * 7
    assert labels((4, 8, "minor")) == [0, 1, 0, 0, 0, 0, 0]
    assert labels((13, 16, "critical")) == [0, 0, 0, 3, 3, 0, 0]
    assert labels((0, 26, "major")) == [2] * 7


def test_a_span_that_ends_with_a_space_leaves_the_next_word_alone():
    assert labels((0, 4, "minor")) == [1, 0, 0, 0, 0, 0, 0]


def test_a_token_of_spaces_alone_is_labelled():
    apart = [(0, 3), (3, 4), (4, 8)]
    assert labels((0, 4, "minor"), tokens=apart) == [1, 1, 0]


def test_nothing_is_moved_to_fit():
    assert labels((3, 4, "major")) == [0] * 7
    assert labels((20, 26, "major"), tokens=WORDS[:4]) == [0] * 4


@pytest.mark.parametrize("first", [(4, 11, "minor"), (8, 14, "critical")])
def test_the_worst_label_wins_in_any_order(first):
    both = [(4, 11, "minor"), (8, 14, "critical")]
    ordered = both if first == both[0] else both[::-1]
    assert labels(*ordered) == [0, 1, 3, 3, 0, 0, 0]


def test_a_token_between_two_spans_takes_the_worse_label():
    assert labels((14, 16, "minor"), (16, 18, "major"), overlapping="error")[4] == 2


def test_special_tokens_and_bytes_of_one_character():
    tokens = [(0, 3), (3, 8), (3, 8), (26, 26)]
    assert labels((5, 6, "major"), tokens=tokens) == [0, 2, 2, 0]
    assert labels((25, 26, "major"), tokens=tokens)[-1] == 0


@pytest.mark.parametrize("seed", range(30))
def test_character_by_character(seed):
    draw = random.Random(seed)
    cuts = sorted({0, len(TEXT), *(draw.randrange(len(TEXT)) for _ in range(8))})
    tokens = list(pairwise(cuts))
    spans = []
    for _ in range(draw.randrange(5)):
        start, end = sorted(draw.sample(range(len(TEXT) + 1), 2))
        spans.append((start, end, draw.choice(SEVERITIES)))
    assert labels(*spans, tokens=tokens) == token_labels(TEXT, spans, tokens, SEVERITIES)


@pytest.mark.parametrize("span", [(-1, 3), (3, 3), (5, 2)])
def test_a_span_holds_characters(span):
    with pytest.raises(DataError, match=r"holds no character; expected 0 <= start < end"):
        LabelledSpan(*span, "minor")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(20, 27, "minor")], r"ends after the text, which has 26 characters"),
        ([(0, 3, "awful")], r"'awful'; expected one of \['minor', 'major', 'critical'\]"),
        ([(8, 11, "minor"), (4, 9, "minor")], r"\(4, 9\) .* and \(8, 11\) .* share characters"),
    ],
)
def test_spans_that_do_not_fit_are_errors(spans, message):
    with pytest.raises(DataError, match=message):
        labels(*spans, overlapping="error")
