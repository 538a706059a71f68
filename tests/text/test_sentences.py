# ruff: noqa: RUF001 - the marks of many scripts look like one another
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, DataError
from tokencredit.text.sentences import (
    clause_starts,
    phrase_starts,
    sentence_starts,
    span_starts,
    text_segments,
)


def cut(text, starts):
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def sentences(*pieces):
    """The text of these pieces, to be cut back into them."""
    return pytest.param(list(pieces), id="".join(pieces)[:40].replace("\n", " "))


@pytest.mark.parametrize(
    "pieces",
    [
        sentences("It was good. ", "It was long."),
        sentences("all small. ", "still two sentences."),
        sentences("the film is good . ", "the plot is bad ."),
        sentences("What?! ", "Yes! ", "Oh..."),
        sentences("Great! ! ! ", "Really."),
        sentences("... and so. ", "Then"),
        sentences("It cost $3.50 or 1,000.25 in all. ", "Version v1.2.3 of file.txt."),
        sentences("Dr. Fox met Mrs. Low and J. R. Wolf. ", "They ate."),
        sentences("See e.g. this, i.e. that, cf. Fig. 3 and no. 5. ", "Oh no. ", "Yes."),
        sentences("Fruit, nuts, etc. are fine. ", "Fruit, nuts, etc. ", "The end."),
        sentences(
            "She left the U.S. Army at 5 p.m. on Monday. ", "He left the U.S. ", "It rained."
        ),
        sentences("So did I. ", "Nobody came."),
        sentences("Well... maybe. ", "Well… ", "Maybe."),
        sentences(
            'He said "Stop." ', "Then he left. ", '"Really?" she asked. ', '"No!" ', "He ran."
        ),
        sentences("(It was fine.) ", "She (at 5 a.m.) slept."),
        sentences("(Dr. Fox came.) ", "We left."),
        sentences("1. First point\n", "2. Second point. ", "More.\n", "a. Third\n\n", "End"),
        sentences("A heading\n", "A line.\n\n\n", "Another"),
        sentences("Mr.\n", "Low"),
        sentences("これは良い。", "本当に？", "はい！！", "3.5点"),
        sentences("彼は「良い！」と言った。", "そして「悪い。」"),
        sentences("好。", "“真的？”", "他说。"),
        sentences("मैं यहाँ हूँ। ", "तुम कहाँ हो?"),
        sentences("ما هذا؟ ", "نعم۔"),
        sentences("Naïve café 🙂. ", "Great! ", "🙂 Next"),
        sentences("No end"),
        sentences("..."),
    ],
)
def test_sentences(pieces):
    text = "".join(pieces)
    assert cut(text, sentence_starts(text)) == pieces


@pytest.mark.parametrize(
    "pieces",
    [
        sentences("At 10:30, ", "the film began; ", "it cost 1,000: ", "a lot. ", "Then"),
        sentences('"Yes," ', "he said."),
        sentences("The film — ", "long — ", "was good - ", "or was it–not -- ", "no"),
        sentences("A well-known film"),
        sentences("Items:\n", "- one, ", "two\n", "- three"),
        sentences("苹果、", "梨，", "好；", "也好。", "完"),
        sentences("نعم، ", "لا"),
    ],
)
def test_clauses(pieces):
    text = "".join(pieces)
    assert cut(text, clause_starts(text)) == pieces


@pytest.mark.parametrize(
    "pieces",
    [
        sentences("The old man sat ", "on the bench, ", "and it rained."),
        sentences("He wrote ", "of the sea ", "which was sold ", "by him. ", "Then ", "the end."),
        sentences("One two three four five ", "six seven ", "without end"),
        sentences("He said ", "“in time” ", "(or so he thought). ", "Good"),
        sentences("It ", "wasn’t bad / ", "and / so what"),
        sentences("We saw this-and-that ", "AND ALSO cats"),
        sentences("走，", "他说的话很长很长。", "完"),
        sentences("..."),
    ],
)
def test_phrases(pieces):
    text = "".join(pieces)
    assert cut(text, phrase_starts(text)) == pieces


def test_phrases_have_at_most_so_many_words():
    assert phrase_starts("a b c d", length=1) == [0, 2, 4, 6]
    assert phrase_starts("dogs eat / cats often", length=2) == [0, 11]
    assert phrase_starts("") == []
    with pytest.raises(ConfigError, match="length is 0; expected phrases of at least 1 word"):
        phrase_starts("a", length=0)


words = st.sampled_from(
    ["the", "of", "was", "And", "cat", "dog's", "3.5", "-", "end.", "so,", "“a"]
)


@given(st.lists(words, min_size=1, max_size=25), st.integers(1, 4))
def test_phrases_refine_clauses_and_none_is_longer_or_cuts_a_word(parts, length):
    text = " ".join(parts)
    starts = phrase_starts(text, length=length)
    assert starts == sorted(set(starts))
    assert set(clause_starts(text)) <= set(starts)
    for piece in cut(text, starts):
        assert sum(any(c.isalnum() for c in word) for word in piece.split()) <= length
    assert all(start == 0 or text[start - 1] == " " for start in starts)


def test_units_that_something_else_finds_begin_where_it_says():
    text = "It was, I think, good."
    assert span_starts(text, [(0, 6), (8, 15), (17, 21)]) == [0, 8, 17]
    assert span_starts(text, [(3, 6), (17, 21)]) == [0, 17]
    assert span_starts(text, []) == [0]
    assert span_starts("", []) == []


@given(st.data())
def test_characters_outside_all_units_go_with_the_one_before(data):
    text = data.draw(st.text("ab ", min_size=1, max_size=12))
    edges = data.draw(st.sets(st.integers(0, len(text)), max_size=6).map(sorted))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    expected = [max(0, sum(start <= at for start, _ in spans) - 1) for at in range(len(text))]
    letters = [(at, at + 1) for at in range(len(text))]
    found = text_segments(letters, text, kind="spans", function=lambda _: spans)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 4)], r"the span \(0, 4\) of a unit in a text of 3 characters; expected 0 <= start"),
        ([(-1, 2)], r"the span \(-1, 2\)"),
        ([(1, 1)], r"the span \(1, 1\)"),
        ([(1, 2), (0, 1)], "begins before the one before it has ended, at 2"),
        ([(0, 2), (1, 3)], "begins before the one before it has ended, at 2"),
        ([(0, 1, 2)], r"\(0, 1, 2\) is no span of a unit; expected \(start, end\)"),
        ([(0.5, 1)], r"\(0.5, 1\) is no span"),
        ([3], "3 is no span"),
    ],
)
def test_units_that_are_no_spans_of_the_text(unchecked, spans, message):
    with pytest.raises(DataError, match=message):
        text_segments([(0, 3)], "abc", kind="spans", function=lambda _: spans)


@pytest.mark.parametrize(
    ("kind", "function"), [("spans", None), ("phrase", lambda text: [(0, len(text))])]
)
def test_a_function_belongs_to_spans_alone(kind, function):
    with pytest.raises(ConfigError, match=f"kind is '{kind}' with(out)? a function; expected"):
        text_segments([(0, 1)], "a", kind=kind, function=function)


def test_the_length_of_phrases_arrives():
    spans = [(0, 1), (1, 3), (3, 5)]
    assert text_segments(spans, "x y z", kind="phrase").tolist() == [0, 0, 0]
    assert text_segments(spans, "x y z", kind="phrase", length=1).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="length is 0"):
        text_segments(spans, "x y z", kind="phrase", length=0)


@given(st.text(st.sampled_from("aB1 .!?…\"',;:—-\n。」etcI"), max_size=30))
def test_pieces_are_not_empty_and_clauses_refine_sentences(text):
    whole, parts = sentence_starts(text), clause_starts(text)
    assert whole == sorted(set(whole))
    assert whole[:1] == ([0] if text else [])
    if len(parts) > 1:
        assert all(any(c.isalnum() for c in piece) for piece in cut(text, parts))
    assert set(whole) <= set(parts)


def test_tokens_go_where_their_first_letter_does():
    """A token that begins with the space before its word belongs to the word's sentence."""
    text = "So it is. Yes, good."
    spans = [(0, 2), (2, 5), (5, 8), (8, 9), (9, 13), (13, 14), (14, 15), (15, 20), (20, 20)]
    assert text_segments(spans, text, kind="sentence").tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert text_segments(spans, text, kind="clause").tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]


def test_bytes_of_one_character_stay_together():
    spans = [(0, 1), (0, 1), (0, 1), (1, 2), (2, 3), (2, 3)]
    assert text_segments(spans, "好。是", kind="sentence").tolist() == [0, 0, 0, 0, 1, 1]


def test_tokens_without_characters_go_with_the_token_before():
    spans = [(0, 0), (0, 3), (3, 3), (3, 5), (5, 5)]
    assert text_segments(spans, "Ah. B", kind="sentence").tolist() == [0, 0, 0, 1, 1]
    assert text_segments([(0, 4), (4, 4), (4, 5)], "Ah. B", kind="clause").tolist() == [0, 0, 1]
    assert text_segments([(0, 0)], "", kind="sentence").tolist() == [0]
    assert text_segments([], "", kind="sentence").tolist() == []


def test_a_token_that_swallows_a_sentence_leaves_no_gap():
    assert text_segments([(0, 10), (10, 12)], "A b. Cc. D e", kind="sentence").tolist() == [0, 1]


def test_no_such_kind(unchecked):
    with pytest.raises(ConfigError, match="kind is 'word'"):
        text_segments([(0, 1)], "a", kind="word")


@pytest.mark.parametrize("span", [(0, 9), (2, 1)])
def test_spans_are_those_of_the_text(span):
    with pytest.raises(DataError, match="in a text of 3 characters"):
        text_segments([span], "abc", kind="clause")


@pytest.mark.parametrize("cut", [sentence_starts, clause_starts])
def test_marks_without_words_take_no_time_that_grows_with_their_square(cut):
    """So many of them are a moment, or minutes and the end of the test."""
    assert len(cut("So. " + ". ! , " * 30_000 + "Yes")) == 2
