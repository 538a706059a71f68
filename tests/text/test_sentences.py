# ruff: noqa: RUF001 - the marks of many scripts look like one another
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, DataError
from tokencredit.text.sentences import clause_starts, sentence_starts, text_segments


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
