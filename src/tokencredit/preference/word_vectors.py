"""Texts as vectors of their words, where no model of sentences is at hand."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_WORD = re.compile(r"\w+")


def word_vectors(texts: Sequence[str]) -> Float[Tensor, "texts words"]:
    """Counts of words, weighted by how rare each is among the texts.

        v_iw = n_iw · (1 + log((1 + N) / (1 + N_w)))

    Args:
        texts: N of them; case is not heeded.

    Returns:
        A row of each text. N_w is the number of texts with the word; a text without words has
        zeros.

    Source: tf-idf with smoothed inverse document frequencies, as scikit-learn has it.

    >>> one, other = word_vectors(["a plot", "a a film"])
    >>> bool(one @ other > 0)
    True
    """
    counts = [Counter(_WORD.findall(text.casefold())) for text in texts]
    inside = Counter(word for one in counts for word in one)
    place = {word: at for at, word in enumerate(inside)}
    vectors = torch.zeros(len(texts), len(place), dtype=torch.float64)
    for row, one in enumerate(counts):
        for word, count in one.items():
            vectors[row, place[word]] = count
    found = torch.tensor([inside[word] for word in place], dtype=torch.float64)
    return vectors * (1 + ((1 + len(texts)) / (1 + found)).log())
