import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import baselines as reference

from tokencredit.errors import DataError
from tokencredit.evaluation.agreement import token_auroc
from tokencredit.evaluation.baselines import (
    early_position_scores,
    late_position_scores,
    lexicon_weights,
    naive_bayes_weights,
    plain_word,
    random_scores,
    weighted_word_scores,
    word_length_scores,
)

WORDS = ["It's", "a", '"semi-serious"', "FILM,", "—", "naïve!", "3D"]
texts = st.lists(
    st.lists(st.sampled_from(["good", "Good,", "bad", "film", "a", "..."]), min_size=1).map(
        " ".join
    ),
    min_size=1,
    max_size=5,
)


def test_literals():
    assert word_length_scores(WORDS).tolist() == [3, 1, 11, 4, 0, 5, 2]
    assert late_position_scores(WORDS[:3]).tolist() == [0, 0.5, 1]
    assert early_position_scores(WORDS[:3]).tolist() == [1, 0.5, 0]
    weights = {"film": 2.0, "naïve": -1.0, "": 9.0}
    assert weighted_word_scores(WORDS, weights).tolist() == [0, 0, 0, 2, 9, -1, 0]


def test_words_by_the_reference():
    assert [plain_word(word) for word in WORDS] == [reference.plain(word) for word in WORDS]
    assert word_length_scores(WORDS).tolist() == [reference.length(word) for word in WORDS]


@given(good=texts, bad=texts, pseudocount=st.sampled_from([0.5, 1.0, 3.0]))
def test_naive_bayes_against_the_reference(good, bad, pseudocount):
    labels = [1] * len(good) + [0] * len(bad)
    if not any(map(plain_word, " ".join(good).split())):
        good[0] = "good"
    if not any(map(plain_word, " ".join(bad).split())):
        bad[0] = "bad"
    weights = naive_bayes_weights(good + bad, labels, pseudocount=pseudocount)
    for word, weight in weights.items():
        expected = reference.naive_bayes_weight(word, good, bad, pseudocount)
        assert weight == pytest.approx(expected, abs=1e-9)
    assert "" not in weights


def test_naive_bayes_of_turned_labels_is_turned():
    some, labels = ["a good film", "a bad film", "a bad plot"], [1, 0, 0]
    weights = naive_bayes_weights(some, labels)
    turned = naive_bayes_weights(some, [1 - label for label in labels])
    assert weights == pytest.approx({word: -weight for word, weight in turned.items()})
    assert weights["good"] > 0 > weights["bad"]


def test_the_two_positions_split_the_auroc():
    marks = torch.tensor([[True, False, False, True, False, False, False]])
    mask = torch.ones(1, 7).bool()
    late = token_auroc(late_position_scores(WORDS)[None], marks, mask)
    early = token_auroc(early_position_scores(WORDS)[None], marks, mask)
    assert late + early == pytest.approx(1.0)


@pytest.mark.parametrize(
    "scores", [word_length_scores, late_position_scores, early_position_scores, random_scores]
)
def test_one_score_per_word_of_any_number(scores):
    assert scores([]).shape == (0,)
    assert scores(["one"]).shape == (1,)
    assert scores(WORDS).dtype == torch.float32
    assert scores(WORDS).isfinite().all()


def test_random_scores_depend_on_the_document_and_the_seed():
    first = random_scores(WORDS)
    assert torch.equal(first, random_scores(list(WORDS)))
    assert not torch.equal(first, random_scores(WORDS, seed=1))
    assert not torch.equal(first[:-1], random_scores(WORDS[:-1]))
    assert len(first.unique()) == len(WORDS)


def test_lexicons_are_read_as_they_stand():
    lines = ["Good\t1.5\n", "\n", ":-)\t2\n", "bad\t-1.0\n", "good\t3\n"]
    assert lexicon_weights(lines) == {"good": 3.0, ":-)": 2.0, "bad": -1.0}


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a"], [1, 0], "1 texts and 2 labels"),
        (["a", "b"], [1, 2], "one label per text"),
        (["a", "b"], [1, 1], "no words in texts of label 0"),
        (["a", "..."], [0, 1], "no words in texts of label 1"),
    ],
)
def test_texts_that_cannot_be_counted(texts, labels, message):
    with pytest.raises(DataError, match=message):
        naive_bayes_weights(texts, labels)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["\n"], "is empty"),
        (["good\t1", "bad -1"], "line 2 .* tab"),
        (["good\tvery"], "line 1"),
    ],
)
def test_lines_that_are_no_lexicon(lines, message):
    with pytest.raises(DataError, match=message):
        lexicon_weights(lines)
