import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import DataError
from tokencredit.preference.marked_texts import (
    MarkedText,
    marked_by_half,
    marked_words,
    marks_of_annotators,
    words_of,
)


@given(st.text(alphabet="a, é\n\t\u2028日", max_size=30))
def test_words_hold_every_visible_character_once(text):
    words = words_of(text)
    assert [text[a:b] for a, b in words] == text.split()
    assert all(a < b for a, b in words)


@given(
    st.text(alphabet="ab  ", min_size=1, max_size=15),
    st.lists(st.tuples(st.integers(0, 14), st.integers(1, 15)), max_size=3),
)
def test_a_word_is_marked_if_one_of_its_characters_is(text, spans):
    spans = [(a, b) for a, b in spans if a < b]
    characters = {at for a, b in spans for at in range(a, b)}
    words = words_of(text)
    expected = [any(at in characters for at in range(a, b)) for a, b in words]
    assert marked_words(words, spans) == expected


def test_marks_word_by_word():
    text = MarkedText("", "not a good film", (((0, 3), (6, 10)), ((12, 13),), ()), 0)
    marks = marks_of_annotators(text)
    assert marks == [[True, False, True, False], [False] * 3 + [True], [False] * 4]
    assert marked_by_half(marks) == [False] * 4
    assert marked_by_half(marks[:2]) == [True, False, True, True]
    assert marked_by_half(marks[:1]) == marks[0]


@pytest.mark.parametrize(
    ("annotators", "label", "message"),
    [
        ((), None, "without annotators"),
        ((((0, 5),),), None, r"span \(0, 5\) of a response of 4 characters"),
        ((((-1, 2),),), None, "0 <= start < end"),
        ((((2, 2),),), None, "0 <= start < end"),
        ((((0, 1),),), 2, "label is 2"),
    ],
)
def test_marks_that_cannot_be(annotators, label, message):
    with pytest.raises(DataError, match=message):
        MarkedText("", "text", annotators, label)


def test_the_marks_of_nobody():
    with pytest.raises(DataError, match="no annotator"):
        marked_by_half([])
