"""Token credit of the built-in task that is known, and credit that means nothing.

Settings name them as rewards, `runs.token_truth:true`, from the folder of the project. Their prefix
differences are the true causal credit of every token, and numbers of the same sizes at random.
"""

import hashlib
from collections.abc import Sequence

from tokencredit.toy.truth import split_words, true_reward

_SIZES = (0.5, 1.0, 2.0)
_SHARE = 0.15  # of the words of a review that sentiment words are, roughly


def true(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:  # noqa: ARG001
    """The true reward of each response, or of what is there of it, in nats."""
    return [true_reward(split_words(response)) for response in responses]


def random_walk(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A sum over words, each of which adds what a hash of all words so far says: the floor."""
    return [
        sum(_step(prompt, words[:end]) for end in range(1, len(words) + 1))
        for prompt, words in zip(prompts, map(split_words, responses), strict=True)
    ]


def _step(prompt: str, words: Sequence[str]) -> float:
    """What the last of some words adds: nothing, or a size of sentiment with either sign."""
    seed = hashlib.sha256("\0".join((prompt, *words)).encode()).digest()
    if seed[0] >= 256 * _SHARE:
        return 0.0
    return _SIZES[seed[1] % len(_SIZES)] * (1 if seed[2] % 2 else -1)
