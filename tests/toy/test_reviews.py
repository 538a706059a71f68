import math
import random
import statistics
from collections import Counter
from itertools import pairwise

import pytest

from tokencredit.toy.lexicon import BORDERS, INTENSIFIERS, NEGATIONS, SENTIMENT
from tokencredit.toy.reviews import (
    REVIEW_LENGTHS,
    VOCABULARY,
    sample_pairs,
    sample_prompt,
    sample_review,
)
from tokencredit.toy.truth import split_words, true_reward


@pytest.fixture(scope="module")
def reviews() -> list[str]:
    rng = random.Random(0)
    return [sample_review(rng) for _ in range(2000)]


def test_the_same_seed_gives_the_same_reviews():
    assert sample_review(random.Random(7)) == sample_review(random.Random(7))
    assert sample_pairs(random.Random(7), 3) == sample_pairs(random.Random(7), 3)
    assert sample_review(random.Random(7)) != sample_review(random.Random(8))


def test_global_chance_plays_no_part():
    random.seed(1)
    pairs = sample_pairs(random.Random(7), 3)
    random.seed(2)
    assert sample_pairs(random.Random(7), 3) == pairs


def test_word_classes_do_not_overlap():
    classes = [set(SENTIMENT), set(NEGATIONS), set(INTENSIFIERS), set(BORDERS)]
    assert sum(map(len, classes)) == len(set().union(*classes))


def test_sentiment_words_are_as_strong_on_both_sides():
    strengths = Counter(SENTIMENT.values())
    assert strengths == Counter({-value: count for value, count in strengths.items()})
    assert {abs(value) for value in SENTIMENT.values()} == {0.5, 1.0, 2.0}


def test_reviews_hold_only_the_vocabulary_and_all_of_it(reviews: list[str]):
    assert {word for review in reviews for word in split_words(review)} == set(VOCABULARY)
    assert 150 <= len(VOCABULARY) <= 250
    assert not any("{" in review for review in reviews)


def test_lengths_are_in_range(reviews: list[str]):
    lengths = [len(split_words(review)) for review in reviews]
    assert min(lengths) >= REVIEW_LENGTHS[0]
    assert max(lengths) <= REVIEW_LENGTHS[1]


def test_rewards_are_balanced_and_spread(reviews: list[str]):
    rewards = [true_reward(split_words(review)) for review in reviews]
    assert abs(statistics.mean(rewards)) < 0.25
    assert 2 < statistics.pstdev(rewards) < 4
    assert 0.4 < statistics.mean(reward > 0 for reward in rewards) < 0.6


def test_a_bag_of_words_does_not_know_the_reward(reviews: list[str]):
    words = [split_words(review) for review in reviews]
    flipped = [
        sum(SENTIMENT.get(w, 0) for w in review) * true_reward(review) < 0 for review in words
    ]
    assert statistics.mean(flipped) > 0.15


def test_articles_agree(reviews: list[str]):
    for review in reviews:
        words = split_words(review)
        for article, word in pairwise(words):
            if article in {"a", "an"} and word != "hour":
                assert (article == "an") == (word[0] in "aeiou"), (article, word)


def test_prompts_earn_nothing_and_leave_nothing_open():
    rng = random.Random(1)
    for _ in range(300):
        prompt = split_words(sample_prompt(rng))
        assert 3 <= len(prompt) <= 8
        assert not {*prompt} & {*SENTIMENT, *NEGATIONS, *INTENSIFIERS}


def test_pairs_share_a_prompt_and_join_to_reviews():
    for pair in sample_pairs(random.Random(2), 100):
        for side in ("chosen", "rejected"):
            assert pair[side].startswith(" ")
            whole = split_words(pair["prompt"] + pair[side])
            assert whole == split_words(pair["prompt"]) + split_words(pair[side])
            assert true_reward(whole) == true_reward(split_words(pair[side]))
            assert REVIEW_LENGTHS[0] <= len(whole) <= REVIEW_LENGTHS[1]


def test_the_judge_follows_bradley_and_terry():
    margins = [
        true_reward(split_words(pair["chosen"])) - true_reward(split_words(pair["rejected"]))
        for pair in sample_pairs(random.Random(3), 800)
    ]
    assert statistics.mean(margins) > 2
    decided = [margin for margin in margins if margin != 0]
    expected = statistics.mean(1 / (1 + math.exp(-abs(margin))) for margin in decided)
    assert statistics.mean(margin > 0 for margin in decided) == pytest.approx(expected, abs=0.03)
