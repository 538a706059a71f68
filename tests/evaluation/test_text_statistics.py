"""Repetition and diversity of token sequences."""

import pytest

from tokencredit.evaluation.text_statistics import diversity, repetition


def test_repetition_by_hand():
    assert repetition([1, 2, 1, 2, 1], n=2) == pytest.approx(0.5)
    assert repetition([1, 1, 1, 1], n=1) == pytest.approx(0.75)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3]])
def test_texts_shorter_than_the_n_gram_repeat_nothing(tokens):
    assert repetition(tokens, n=4) == 0.0
    assert diversity(tokens) == 1.0


def test_diversity_is_the_product_over_two_to_four():
    tokens = [1, 2, 3, 1, 2, 3, 1]
    expected = (1 - 3 / 6) * (1 - 2 / 5) * (1 - 1 / 4)
    assert diversity(tokens) == pytest.approx(expected)
    assert diversity(range(50)) == 1.0
