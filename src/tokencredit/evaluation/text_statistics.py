"""How much generated texts repeat themselves, in tokens."""

import math
from collections.abc import Hashable, Sequence


def repetition(tokens: Sequence[Hashable], *, n: int) -> float:
    """Share of the n-grams of a text that it has had before.

        1 − |different n-grams| / |n-grams|

    Returns:
        A share in [0, 1); 0 of a text of fewer than n tokens.

    Source: Welleck et al. 2020, arXiv 1908.04319, seq-rep-n.

    >>> repetition("a b a b".split(), n=2)
    0.33333333333333337
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def diversity(tokens: Sequence[Hashable]) -> float:
    """How little a text repeats itself at two, three and four tokens.

        Π_{n=2..4} (1 − rep_n)

    Returns:
        A number in (0, 1]; 1 of a text that repeats nothing.

    Source: Su et al. 2022, arXiv 2202.06417, as Khanov et al. 2024, arXiv 2402.01694, report it;
    their code adds one to the number of n-grams, which takes a text without repetition below 1.

    >>> diversity("a b c d".split())
    1.0
    """
    return math.prod(1 - repetition(tokens, n=n) for n in (2, 3, 4))
