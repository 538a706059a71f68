"""Second rewards of the built-in task, known exactly, for the experiments of `runs/honest.sh`.

Settings name them as `runs.honest_rewards:plainness`, from the folder of the project.
"""

from collections.abc import Sequence

from tokencredit.toy.lexicon import NEGATIONS, SENTIMENT
from tokencredit.toy.truth import split_words


def plainness(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:  # noqa: ARG001
    """Minus how strong the sentiment words of a response are together, whatever their sign."""
    return [
        -sum(abs(SENTIMENT.get(word, 0.0)) for word in split_words(response))
        for response in responses
    ]


def negations(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:  # noqa: ARG001
    """How many negations a response has: a cost."""
    return [
        float(sum(word in NEGATIONS for word in split_words(response))) for response in responses
    ]


def few_negations(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Minus the number of negations: the same as a reward."""
    return [-count for count in negations(prompts, responses)]
