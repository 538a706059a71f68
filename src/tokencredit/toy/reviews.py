"""A seeded grammar that writes film reviews and pairs of them.

A review is an opening without sentiment ("this new thriller about two brothers"), which is the
prompt of the task, and what follows: verdicts on one side of the film or another, with negations
and intensifiers near and far, and neutral clauses about the story, some of which hold a negation
or an intensifier that bears on nothing. "and" joins verdicts that agree, "but" such as do not.
Reviews lean to either side equally often, some strongly, some hardly.
"""

import math
import random
import re
from collections.abc import Mapping

from tokencredit.toy.lexicon import (
    ADJECTIVES,
    BORDERS,
    INTENSIFIERS,
    NEGATIONS,
    NOUNS,
    SENTIMENT,
    VERBS,
)
from tokencredit.toy.truth import split_words, true_reward

#: Words and marks of a review, at least and at most.
REVIEW_LENGTHS = (20, 60)

_SLOTS = {
    "article": ("this", "the", "his", "her"),
    "age": ("new", "first", "second", "last", "short", "long", "old", "french"),
    "genre": ("thriller", "comedy", "drama", "western", "musical", "romance", "documentary"),
    "about": ("two brothers", "a young nurse", "the war", "a family in winter", "a city bank"),
    "person": (
        "a young nurse",
        "two brothers",
        "a retired detective",
        "an old sailor",
        "her sister",
    ),
    "where": ("in a small town", "on a train", "near the harbour", "in the city", "at a wedding"),
    "when": ("at night", "in the end", "before the war", "for an hour", "in winter"),
    "thing": ("a letter", "the house", "an old map", "the garden", "the money", "a photograph"),
    "place": ("the house", "the garden", "the city", "the train"),
    "story": ("the film", "the story", "the first act"),
    "how": ("at times", "on the whole", "from start to end", "in the second half", "to my mind"),
    "aspect": (
        *("the plot", "the script", "the cast", "the ending", "the dialogue", "the music"),
        *("the pacing", "the photography", "the lead", "the direction", "every scene"),
    ),
    "negation": tuple(word for word in NEGATIONS if word != "no"),
    "rarely": ("never", "hardly", "barely"),
    "intensifier": tuple(INTENSIFIERS),
    "degree": tuple(word for word in INTENSIFIERS if word != "very"),
}
_OPENINGS = (
    "{article} {age} {genre}",
    "{article} {genre} about {about}",
    "{article} {age} {genre} about {about}",
    "the {age} film of the season",
)
_SENTENCES = (
    "{neutral}",
    "{verdict}",
    "{verdict}",
    "{neutral} , and {verdict}",
    "{neutral} ; {verdict}",
    "{verdict} , and {verdict}",
    "{verdict} , but {contrary}",
    "{contrary} , but {verdict}",
    "{verdict} , yet {contrary}",
    "{verdict} while {contrary}",
    "although {contrary} , {verdict}",
)
_NEUTRAL = (
    "{story} follows {person} {where}",
    "{story} opens {where}",
    "{story} takes place {where} {when}",
    "{story} does not show {thing}",
    "{story} never leaves {place}",
    "{story} begins with a very old song",
    "the film was made {where}",
    "{person} finds {thing} {where}",
    "{person} meets {person} {when}",
    "we see {thing} {when}",
    "the camera moves to {thing}",
    "the hero barely looks at {thing}",
)
# The part of speech names what {word} may be; {again} is one more adjective of the same sign.
_PLAIN = (
    ("{aspect} is {word}", ADJECTIVES),
    ("{aspect} is {intensifier} {word}", ADJECTIVES),
    ("{aspect} feels {intensifier} {word} {how}", ADJECTIVES),
    ("{aspect} is {word} and {again}", ADJECTIVES),
    ("{aspect} is a {word}", NOUNS),
    ("{aspect} is {degree} a {word}", NOUNS),
    ("{aspect} is a {again} {word}", NOUNS),
    ("{aspect} {word} {how}", VERBS),
    ("{aspect} {degree} {word}", VERBS),
    ("{how} i found {aspect} {intensifier} {word}", ADJECTIVES),
)
_NEGATED = (
    ("{aspect} is {negation} {word}", ADJECTIVES),
    ("{aspect} is {negation} {intensifier} {word}", ADJECTIVES),
    ("{aspect} is {negation} a {word}", NOUNS),
    ("{aspect} is no {word}", NOUNS),
    ("{aspect} {rarely} {word} {how}", VERBS),
    ("{aspect} {rarely} {degree} {word}", VERBS),
    ("i would {negation} call {aspect} {word}", ADJECTIVES),
    ("i could {negation} for a moment find {aspect} {intensifier} {word}", ADJECTIVES),
)
#: Every word and mark that a review can hold.
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*SENTIMENT, *NEGATIONS, *INTENSIFIERS, *BORDERS, "an"}.union(
            *(
                split_words(re.sub(r"\{\w+\}", " ", pattern))
                for pattern in (
                    *(phrase for phrases in _SLOTS.values() for phrase in phrases),
                    *(*_OPENINGS, *_SENTENCES, *_NEUTRAL),
                    *(verdict for verdict, _ in (*_PLAIN, *_NEGATED)),
                )
            )
        )
    )
)
_STRENGTHS = {0.5: 0.35, 1.0: 0.4, 2.0: 0.25}
_NEGATED_SHARE = 0.3


def sample_review(rng: random.Random) -> str:
    """A whole review, its length within `REVIEW_LENGTHS`.

    >>> sample_review(random.Random(3))[-54:]
    ' the second half i found the direction truly pleasant.'
    """
    opening = sample_prompt(rng)
    return opening + _continuation(rng, opening)


def sample_prompt(rng: random.Random) -> str:
    """The opening of a review: a few words without sentiment, negation or intensifier.

    The reward of a review is therefore the reward of what follows its prompt.

    >>> sample_prompt(random.Random(3))
    'the drama about a city bank'
    """
    return _expanded(rng, rng.choice(_OPENINGS))


def sample_pairs(rng: random.Random, n: int) -> list[dict[str, str]]:
    """Pairs of continuations of the same prompt, labelled by a noisy judge.

        P(a chosen) = σ(R(a) − R(b))

    Args:
        rng: the only source of chance.
        n: number of pairs.

    Returns:
        Rows with `prompt`, `chosen` and `rejected`; prompt + chosen is a review.

    Source: Bradley and Terry 1952, "Rank analysis of incomplete block designs", Biometrika 39.

    >>> sorted(sample_pairs(random.Random(0), 1)[0])
    ['chosen', 'prompt', 'rejected']
    """
    return [_sample_pair(rng) for _ in range(n)]


def _sample_pair(rng: random.Random) -> dict[str, str]:
    prompt = sample_prompt(rng)
    first, second = _continuation(rng, prompt), _continuation(rng, prompt)
    margin = true_reward(split_words(first)) - true_reward(split_words(second))
    if rng.random() >= 1 / (1 + math.exp(-margin)):
        first, second = second, first
    return {"prompt": prompt, "chosen": first, "rejected": second}


def _continuation(rng: random.Random, opening: str) -> str:
    """What follows the opening, beginning with a space, so that the two can be joined."""
    fewest, most = REVIEW_LENGTHS
    while True:
        text = _review(rng, opening)
        if fewest <= len(split_words(text)) <= most:
            return text.removeprefix(opening)


def _review(rng: random.Random, opening: str) -> str:
    leaning = rng.choice((-1, 1))
    agreement = rng.choice((0.6, 0.75, 0.9))
    sentences = []
    for position in range(rng.randint(2, 5)):
        sign = leaning if rng.random() < agreement else -leaning
        sentence = _sentence(rng, sign, subject=opening if position == 0 else None)
        sentences.append(sentence + rng.choice(".....!"))
    return " ".join(sentences)


def _sentence(rng: random.Random, sign: int, *, subject: str | None) -> str:
    """One sentence that leans to `sign`; its first words are `subject` where one is given."""
    while True:
        clauses = [_clause(rng, word, sign) for word in rng.choice(_SENTENCES).split()]
        pattern = " ".join(clauses)
        if subject is None:
            break
        if pattern.startswith(("{story}", "{aspect}")):
            pattern = re.sub(r"^\{\w+\}", subject, pattern)
            break
    text = re.sub(r" (?=[,;])", "", _expanded(rng, pattern))
    return re.sub(r"\ba(?= [aeiou])", "an", text)


def _clause(rng: random.Random, symbol: str, sign: int) -> str:
    """What a symbol of a sentence pattern stands for; joining words stand for themselves."""
    if symbol == "{neutral}":
        return rng.choice(_NEUTRAL)
    if symbol == "{verdict}":
        return _verdict(rng, sign)
    return _verdict(rng, -sign) if symbol == "{contrary}" else symbol


def _verdict(rng: random.Random, sign: int) -> str:
    """A clause worth something of this sign, its sentiment words in place, other slots open."""
    negated = rng.random() < _NEGATED_SHARE
    pattern, table = rng.choice(_NEGATED if negated else _PLAIN)
    word_sign = -sign if negated else sign
    word, again = "", ""
    while word == again:
        word = _sentiment_word(rng, table, word_sign)
        again = _sentiment_word(rng, ADJECTIVES, word_sign)
    return pattern.replace("{word}", word).replace("{again}", again)


def _sentiment_word(rng: random.Random, table: Mapping[float, tuple[str, ...]], sign: int) -> str:
    (strength,) = rng.choices(list(_STRENGTHS), weights=list(_STRENGTHS.values()))
    return rng.choice(table[sign * strength])


def _expanded(rng: random.Random, pattern: str) -> str:
    """The pattern with every slot filled by chance."""
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(_SLOTS[slot[1]]), pattern)
