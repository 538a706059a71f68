import random

import pytest
import torch
from reference import toy as reference

from tokencredit.errors import ShapeError
from tokencredit.toy.lexicon import BORDERS, INTENSIFIERS, NEGATIONS, SENTIMENT
from tokencredit.toy.reviews import VOCABULARY, sample_review
from tokencredit.toy.truth import (
    causal_credit,
    shapley_credit,
    split_words,
    true_prefix_rewards,
    true_reward,
    true_token_scores,
)

LEXICON = (SENTIMENT, NEGATIONS, INTENSIFIERS, BORDERS)
PLAYERS = {*SENTIMENT, *NEGATIONS, *INTENSIFIERS}


def random_words(seed: int, length: int) -> list[str]:
    """Words of a policy that knows no grammar, half of them with an effect."""
    rng = random.Random(seed)
    effective = sorted(PLAYERS | BORDERS)
    return [rng.choice(effective if rng.random() < 0.5 else VOCABULARY) for _ in range(length)]


def reference_shapley(words: list[str]) -> list[float]:
    fresh = reference.without_repeated(words, SENTIMENT)
    players = [position for position, word in enumerate(fresh) if word in PLAYERS]

    def worth(present: frozenset[int]) -> float:
        kept = [w for i, w in enumerate(fresh) if i in present or i not in players]
        return reference.reward(kept, *LEXICON)

    values = reference.shapley(players, worth)
    return [values.get(position, 0.0) for position in range(len(words))]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("", 0.0),
        ("the story follows a young nurse", 0.0),
        ("good", 1.0),
        ("awful", -2.0),
        ("not good", -1.0),
        ("never bad", 1.0),
        ("hardly good", -0.5),
        ("never not good", 1.0),
        ("very good", 1.5),
        ("slightly very good", 1.5),
        ("not very good", -1.5),
        ("very not good", -1.5),
        ("i would not call the plot clever", -1.0),
        ("not good warm", 0.0),
        ("zxqy good <eos>", 1.0),
        ("good .", 1.0),
        (". . not", 0.0),
    ],
)
def test_literal_rewards(text: str, reward: float):
    assert true_reward(text.split()) == reward


@pytest.mark.parametrize("border", sorted(BORDERS))
def test_scope_ends_at_a_clause_border(border: str):
    assert true_reward(["not", "utterly", border, "good"]) == 1.0
    assert true_reward(["not", "utterly", "the", "good"]) == -2.0


def test_a_sentiment_word_pays_once():
    assert true_reward(split_words("good . good . good")) == 1.0
    assert true_reward(split_words("not good . very good")) == -1.0


def test_a_stale_word_leaves_the_scope_open():
    assert true_reward(split_words("good . not good warm")) == 0.0


def test_reward_is_bounded_whatever_is_written():
    bound = 2 * sum(value for value in SENTIMENT.values() if value > 0)
    assert true_reward([w for word in SENTIMENT for w in ("utterly", word)] * 5) <= bound


@pytest.mark.parametrize("seed", range(30))
def test_rewards_equal_the_reference_on_any_words(seed: int):
    words = random_words(seed, length=40)
    expected = [
        reference.reward(reference.without_repeated(words[:n], SENTIMENT), *LEXICON)
        for n in range(41)
    ]
    assert true_prefix_rewards(words) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(30))
def test_causal_credit_telescopes(seed: int):
    words = random_words(seed, length=40)
    credit = causal_credit(words)
    assert sum(credit) == pytest.approx(true_reward(words))
    assert sum(credit[:17]) == pytest.approx(true_reward(words[:17]))
    assert all(paid == 0 for word, paid in zip(words, credit, strict=True) if word not in SENTIMENT)


@pytest.mark.parametrize(
    ("text", "credit"),
    [
        ("not good", [-1.0, 0.0]),
        ("hardly good", [-0.75, 0.25]),
        ("very good", [0.25, 1.25]),
        ("never not good", [1 / 3, 1 / 3, 1 / 3]),
        ("good . good", [1.0, 0.0, 0.0]),
        ("not . the very", [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_literal_shapley_values(text: str, credit: list[float]):
    assert shapley_credit(text.split()) == pytest.approx(credit)


@pytest.mark.parametrize("seed", range(30))
def test_shapley_values_equal_the_reference(seed: int):
    words = random_words(seed, length=14)
    assert shapley_credit(words) == pytest.approx(reference_shapley(words), abs=1e-12)


def test_shapley_values_equal_the_reference_in_one_crowded_clause():
    words = split_words("not very good hardly utterly warm really not never dull slightly superb")
    assert shapley_credit(words) == pytest.approx(reference_shapley(words), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_shapley_values_sum_to_the_reward(seed: int):
    words = random_words(seed, length=60)
    assert sum(shapley_credit(words)) == pytest.approx(true_reward(words))
    clause = [word for word in words if word not in BORDERS]
    assert sum(shapley_credit(clause)) == pytest.approx(true_reward(clause))


def test_both_credits_are_zero_on_what_earns_nothing():
    words = split_words(sample_review(random.Random(0)))
    for credit in (causal_credit(words), shapley_credit(words)):
        assert all(
            paid == 0 for word, paid in zip(words, credit, strict=True) if word not in PLAYERS
        )


@pytest.mark.parametrize("truth", ["causal", "shapley"])
def test_token_scores_equal_word_credit_under_any_mask(truth: str):
    tokens = [[" not", " very", " good", "."], ["bad", "<pad>", "nonsense", "superb"]]
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    scores = true_token_scores(tokens, mask, truth=truth)
    credit = causal_credit if truth == "causal" else shapley_credit
    expected = [credit(["not", "very", "good", "."]), [-1.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(scores, torch.tensor(expected))
    torch.testing.assert_close(true_token_scores(tokens[1:], mask[1:], truth=truth), scores[1:])


def test_a_masked_token_is_a_deleted_one():
    mask = torch.tensor([[True, False, True]])
    scores = true_token_scores([["not", ".", "good"]], mask, truth="causal")
    assert scores.tolist() == [[0.0, 0.0, -1.0]]


def test_rows_may_end_where_their_mask_does():
    mask = torch.tensor([[True, False], [False, False]])
    assert true_token_scores([["good"], []], mask, truth="causal").tolist() == [[1, 0], [0, 0]]


def test_too_few_tokens_raise():
    with pytest.raises(ShapeError, match="expected a token for every True"):
        true_token_scores([["good"]], torch.ones(1, 2).bool(), truth="causal")


def test_too_few_rows_raise():
    with pytest.raises(ShapeError, match="one row of tokens per response"):
        true_token_scores([["good"]], torch.ones(2, 1).bool(), truth="causal")
