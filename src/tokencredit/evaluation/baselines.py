"""Scores of words that know nothing of a reward model: what a credit method has to beat.

Length alone finds the words that people mark in sentences about films better than many credit
methods do. Words are pieces of text in the order of the document; every function gives one float32
score per word.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import DataError


def word_length_scores(words: Sequence[str]) -> Float[Tensor, "words"]:
    """The number of letters and digits of each word: long words mean more than short ones.

    Args:
        words: of one document.

    >>> word_length_scores(["a", "good", "film!!"])
    tensor([1., 4., 4.])
    """
    return torch.tensor([float(sum(map(str.isalnum, word))) for word in words])


def late_position_scores(words: Sequence[str]) -> Float[Tensor, "words"]:
    """How far into the document each word stands, from 0 for the first to 1 for the last.

    Args:
        words: of one document.

    >>> late_position_scores(["a", "good", "film"])
    tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.arange(len(words)) / max(1, len(words) - 1)


def early_position_scores(words: Sequence[str]) -> Float[Tensor, "words"]:
    """How far from the end of the document each word stands: 1 for the first, 0 for the last.

    Args:
        words: of one document.

    >>> early_position_scores(["a", "good", "film"])
    tensor([1.0000, 0.5000, 0.0000])
    """
    return late_position_scores(words).flip(0)


def random_scores(words: Sequence[str], *, seed: int = 0) -> Float[Tensor, "words"]:
    """Numbers from 0 to 1 that depend on the words of the document and the seed alone.

    Args:
        words: of one document.
        seed: another one draws others.

    >>> bool((random_scores(["a", "b"]) == random_scores(["a", "b"])).all())
    True
    """
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, *words)).encode()))
    return torch.rand(len(words), generator=generator)


def naive_bayes_weights(
    texts: Sequence[str], labels: Sequence[int], *, pseudocount: float = 1.0
) -> dict[str, float]:
    """How much more likely each word is in good texts than in bad ones.

        w_v = log((n_{v,1} + α) / (n_1 + α V)) − log((n_{v,0} + α) / (n_0 + α V))

    with n_{v,c} the number of times that word v stands in texts of label c, n_c the number of words
    of those texts, and V the number of different words. The sum over a text is,
    but for the share of labels, the log-odds of naive Bayes that it is good.

    Args:
        texts: to count words in.
        labels: 1 good, 0 bad.
        pseudocount: α, added to every count.

    Returns:
        Weights in nats by `plain_word`.

    Raises:
        DataError: texts and labels differ in number, a label is neither 0 nor 1, or one of the two
            labels has no word.

    Source: McCallum and Nigam 1998, "A comparison of event models for naive Bayes text
    classification", multinomial model, equation 6.

    >>> weights = naive_bayes_weights(["good film", "bad film"], [1, 0])
    >>> {word: round(weight, 2) for word, weight in sorted(weights.items())}
    {'bad': -0.69, 'film': 0.0, 'good': 0.69}
    """
    if len(texts) != len(labels) or not set(labels) <= {0, 1}:
        raise DataError(
            f"{len(texts)} texts and {len(labels)} labels, among them {sorted(set(labels))[:3]}; "
            "expected one label per text, 0 (bad) or 1 (good)"
        )
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(filter(None, map(plain_word, text.split())))
    for label in (0, 1):
        if not counts[label]:
            raise DataError(f"no words in texts of label {label}; expected texts of both labels")
    words = counts[0].keys() | counts[1].keys()
    bad, good = (sum(count.values()) + pseudocount * len(words) for count in counts)
    return {
        word: math.log((counts[1][word] + pseudocount) / good)
        - math.log((counts[0][word] + pseudocount) / bad)
        for word in words
    }


def weighted_word_scores(
    words: Sequence[str], weights: Mapping[str, float]
) -> Float[Tensor, "words"]:
    """The weight of each word in a lexicon; 0 for a word that it does not have.

    Args:
        words: of one document.
        weights: by `plain_word`, in any unit.

    >>> weighted_word_scores(["A", "Good,", "film"], {"good": 1.5})
    tensor([0.0000, 1.5000, 0.0000])
    """
    return torch.tensor([float(weights.get(plain_word(word), 0.0)) for word in words])


def lexicon_weights(lines: Iterable[str]) -> dict[str, float]:
    r"""A lexicon from lines of a word, a tab and a weight.

    Args:
        lines: as a file gives them; empty ones are passed over.

    Returns:
        Weights by `plain_word`; of words that are the same by it, the last one.

    Raises:
        DataError: a line is something else, or there is none.

    >>> lexicon_weights(["Good\t1.5", "bad\t-2"])
    {'good': 1.5, 'bad': -2.0}
    """
    weights = {}
    for number, line in enumerate(lines, start=1):
        word, _, weight = line.strip("\n").partition("\t")
        if not line.strip():
            continue
        try:
            weights[plain_word(word) or word] = float(weight)
        except ValueError as error:
            raise DataError(
                f"line {number} of the lexicon is {line!r}; expected a word, a tab and a number"
            ) from error
    if not weights:
        raise DataError("the lexicon is empty; expected lines of a word, a tab and a number")
    return weights


def plain_word(word: str) -> str:
    """The word in small letters, without the punctuation around it.

    >>> plain_word("(Semi-serious!)")
    'semi-serious'
    """
    letters = [at for at, character in enumerate(word) if character.isalnum()]
    return word[letters[0] : letters[-1] + 1].lower() if letters else ""
