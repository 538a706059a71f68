"""The words of the built-in task and what each of them does to the reward.

A word is one of five things: a sentiment word with a value, a negation with a factor, an
intensifier with a factor, a border that ends a clause, or filler, which does nothing. A word that
is not listed here is filler too.
"""

from collections.abc import Mapping
from types import MappingProxyType

_ADJECTIVES = {
    0.5: "pleasant decent watchable neat amiable",
    1.0: "good funny warm clever gripping charming witty touching",
    2.0: "brilliant superb dazzling flawless unforgettable",
    -0.5: "uneven slow plain thin clumsy",
    -1.0: "bad dull cold shallow boring tedious lazy hollow",
    -2.0: "awful dreadful unbearable atrocious abysmal",
}
_NOUNS = {
    0.5: "treat",
    1.0: "delight gem",
    2.0: "masterpiece triumph",
    -0.5: "muddle",
    -1.0: "mess bore",
    -2.0: "disaster catastrophe",
}
_VERBS = {
    0.5: "works",
    1.0: "charms shines",
    2.0: "soars dazzles",
    -0.5: "drags",
    -1.0: "fails stumbles",
    -2.0: "collapses insults",
}


def _by_value(table: Mapping[float, str]) -> Mapping[float, tuple[str, ...]]:
    return MappingProxyType({value: tuple(words.split()) for value, words in table.items()})


#: Sentiment words by part of speech and by value in nats.
ADJECTIVES: Mapping[float, tuple[str, ...]] = _by_value(_ADJECTIVES)
NOUNS: Mapping[float, tuple[str, ...]] = _by_value(_NOUNS)
VERBS: Mapping[float, tuple[str, ...]] = _by_value(_VERBS)

#: Sentiment words and their values in nats.
SENTIMENT: Mapping[str, float] = MappingProxyType(
    {
        word: value
        for table in (ADJECTIVES, NOUNS, VERBS)
        for value, words in table.items()
        for word in words
    }
)

#: Negations and what they multiply the next sentiment word of their clause by.
NEGATIONS: Mapping[str, float] = MappingProxyType(
    {"not": -1.0, "never": -1.0, "no": -1.0, "hardly": -0.5, "barely": -0.5}
)

#: Intensifiers and what they multiply the next sentiment word of their clause by.
INTENSIFIERS: Mapping[str, float] = MappingProxyType(
    {"slightly": 0.5, "somewhat": 0.5, "very": 1.5, "really": 1.5, "utterly": 2.0, "truly": 2.0}
)

#: Words and marks that end a clause, and with it the scope of negations and intensifiers.
BORDERS = frozenset({".", "!", ",", ";", "but", "yet", "while", "although"})

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
