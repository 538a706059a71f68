"""The true reward of a review of the built-in task, and the true credit of every word.

A sentiment word pays its value, times the factors of the negations and of the nearest intensifier
that stand before it in its clause and after the last sentiment word there:

    R = Σ_i v_i · a_{m(i)} · Π_{n ∈ N(i)} c_n

Only the first time: a sentiment word that was written before, even in another clause, is stale and
counts as filler, so that repetition does not pay. With |a| <= 2 and |c| <= 1 the reward is bounded
by twice the sum of all values of one sign, whatever a policy writes. Any sequence of words has a
reward; words that are not in the lexicon (special tokens, for example) are filler.

There are two truths about credit, and methods may be compared with either:

- *causal*: what the reward of the text so far gains with a word. Sentiment words take it all.
- *Shapley*: what a word adds on average when the words of the text are added in random order.
  Negations and intensifiers share with the sentiment words they bear on. Absent words are deleted.
  Borders and stale words are not players: they stay what they are, and where they are.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ShapeError
from tokencredit.toy.lexicon import BORDERS, INTENSIFIERS, NEGATIONS, SENTIMENT


def split_words(text: str) -> list[str]:
    """Words and marks of a text.

    >>> split_words("The plot is dull, but it works.")
    ['the', 'plot', 'is', 'dull', ',', 'but', 'it', 'works', '.']
    """
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def true_reward(words: Sequence[str]) -> float:
    """The reward of a text in nats.

    >>> true_reward("the plot is not very good , but the music is good and superb .".split())
    0.5
    """
    return true_prefix_rewards(words)[-1]


def true_prefix_rewards(words: Sequence[str]) -> list[float]:
    """The reward of every prefix in nats, the empty one first: one more than there are words.

    >>> true_prefix_rewards("not good . superb".split())
    [0.0, 0.0, -1.0, -1.0, 1.0]
    """
    rewards, negation, intensity = [0.0], 1.0, 1.0
    for word in _without_stale_words(words):
        gain = 0.0
        if word in NEGATIONS:
            negation *= NEGATIONS[word]
        elif word in INTENSIFIERS:
            intensity = INTENSIFIERS[word]
        elif word in SENTIMENT or word in BORDERS:
            gain = SENTIMENT.get(word, 0.0) * negation * intensity
            negation, intensity = 1.0, 1.0
        rewards.append(rewards[-1] + gain)
    return rewards


def causal_credit(words: Sequence[str]) -> list[float]:
    """What every word adds to the reward of the text before it.

        r_t = R(w_{≤t}) − R(w_{<t})

    Returns:
        Credit in nats; sums to the reward of the text.

    >>> causal_credit("not very good . superb".split())
    [0.0, 0.0, -1.5, 0.0, 2.0]
    """
    return [after - before for before, after in pairwise(true_prefix_rewards(words))]


def shapley_credit(words: Sequence[str]) -> list[float]:
    """What every word adds to the reward on average over all orders of adding words.

        r_p = ∫_0^1 (E[R(S_t ∪ p)] − E[R(S_t ∖ p)]) dt

    where S_t holds every player with chance t. The reward is a sum over clauses, so each is
    done alone. The integrand is a polynomial in t whose degree is below the number of players of
    the clause, hence the Gauss-Legendre rule with half as many nodes is exact.

    Returns:
        Credit in nats; sums to the reward of the text.

    Source: Shapley 1953, "A value for n-person games"; the integral is Owen 1972, "Multilinear
    extensions of games", Management Science 18.

    >>> [round(credit, 6) for credit in shapley_credit("not good . superb".split())]
    [-1.0, 0.0, 0.0, 2.0]
    """
    credit = [0.0] * len(words)
    clause: list[int] = []
    fresh = _without_stale_words(words)
    for position, word in enumerate([*fresh, "."]):
        if word in SENTIMENT or word in NEGATIONS or word in INTENSIFIERS:
            clause.append(position)
        elif word in BORDERS:
            values = _clause_shapley(tuple(fresh[player] for player in clause))
            for player, value in zip(clause, values, strict=True):
                credit[player] = value
            clause = []
    return credit


def true_token_scores(
    tokens: Sequence[Sequence[str]],
    response_mask: Bool[Tensor, "batch time"],
    *,
    truth: Literal["causal", "shapley"],
) -> Float[Tensor, "batch time"]:
    """The true credit of every response token, where tokens are words.

    Conserves: yes. Causal: where `truth` is. Needs: the grammar.

    Args:
        tokens: one string per response token and row, spaces around it ignored; rows may end
            where the mask does. Prompts of the task earn nothing and can be left out.
        response_mask: True on response tokens; what lies outside it is not read.
        truth: which of the two true credits.

    Returns:
        Token scores in nats; each row sums to the true reward of its response.

    Raises:
        ShapeError: a row has fewer tokens than its mask, or rows and masks differ in number.

    >>> true_token_scores([[" not", " bad", "<eos>"]], torch.ones(1, 3).bool(), truth="causal")
    tensor([[0., 1., 0.]])
    """
    credit = causal_credit if truth == "causal" else shapley_credit
    scores = torch.zeros(response_mask.shape)
    if len(tokens) != len(response_mask):
        raise ShapeError(
            f"{len(tokens)} rows of tokens and a response_mask of {len(response_mask)} rows; "
            "expected one row of tokens per response"
        )
    for row, mask in enumerate(response_mask):
        counted = mask.nonzero().flatten().tolist()
        if counted and counted[-1] >= len(tokens[row]):
            raise ShapeError(
                f"row {row} has {len(tokens[row])} tokens, but its response_mask counts token "
                f"{counted[-1]}; expected a token for every True"
            )
        words = [tokens[row][position].strip().lower() for position in counted]
        scores[row, counted] = torch.tensor(credit(words))
    return scores


def _without_stale_words(words: Sequence[str]) -> list[str]:
    """The words, those of sentiment only where they stand for the first time, "" elsewhere."""
    seen: set[str] = set()
    fresh = []
    for word in words:
        fresh.append("" if word in seen else word)
        if word in SENTIMENT:
            seen.add(word)
    return fresh


@lru_cache(maxsize=4096)
def _clause_shapley(players: tuple[str, ...]) -> tuple[float, ...]:
    """Shapley values of a clause, given its sentiment words, negations and intensifiers."""
    values = [0.0] * len(players)
    for chance, weight in _gauss_legendre((len(players) + 1) // 2):
        for index in range(len(players)):
            chances = [chance] * len(players)
            chances[index] = 1.0
            gain = _expected_reward(players, chances)
            chances[index] = 0.0
            values[index] += weight * (gain - _expected_reward(players, chances))
    return tuple(values)


def _expected_reward(players: Sequence[str], chances: Sequence[float]) -> float:
    """Mean reward of a clause in which every player is present with a chance of its own."""
    reward = 0.0
    # Means of what waits for the next sentiment word: negations alone, and intensifier times them.
    negation, factor = 1.0, 1.0
    for word, chance in zip(players, chances, strict=True):
        absent = 1.0 - chance
        if word in NEGATIONS:
            negation *= absent + chance * NEGATIONS[word]
            factor *= absent + chance * NEGATIONS[word]
        elif word in INTENSIFIERS:
            factor = absent * factor + chance * INTENSIFIERS[word] * negation
        else:
            reward += chance * SENTIMENT[word] * factor
            negation, factor = absent * negation + chance, absent * factor + chance
    return reward


@cache
def _gauss_legendre(nodes: int) -> list[tuple[float, float]]:
    """Nodes and weights on [0, 1], exact for polynomials of degree below twice the nodes.

    Source: Golub and Welsch 1969, "Calculation of Gauss quadrature rules".
    """
    order = torch.arange(1, max(nodes, 1), dtype=torch.float64)
    beside_diagonal = torch.diag(order / (4 * order.square() - 1).sqrt(), diagonal=1)
    points, vectors = torch.linalg.eigh(beside_diagonal + beside_diagonal.mT)
    return list(zip(((points + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))
