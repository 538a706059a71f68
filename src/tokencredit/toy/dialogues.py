"""A dialogue of two turns whose best policy is known: what pays later beats what pays at once.

A viewer asks about a film. Praise is thanked for with a little and ends the talk. Anything else
earns nothing, but makes the viewer ask again, and praise earns the most then. A policy that looks
no further than its next reward ends with a tenth of what can be had.
"""

from collections.abc import Mapping, Sequence

from tokencredit.toy.lexicon import SENTIMENT

Answer = tuple[str | None, float]
"""What the other side says, None at the end of the dialogue, and the reward of the utterance."""

FLATTERY, HONESTY = 0.1, 1.0
"""Rewards of praise in the first turn, and of praise when the viewer has asked again."""


def frank_viewer(dialogues: Sequence[Sequence[Mapping[str, str]]]) -> list[Answer]:
    """The viewer's answer to each dialogue, and the reward of its last utterance.

    Args:
        dialogues: messages with `role` and `content`, the last one of the assistant.

    >>> asked = {"role": "user", "content": "the plot is"}
    >>> blame = [asked, {"role": "assistant", "content": " slow"}]
    >>> frank_viewer([blame])
    [(' but the music was', 0.0)]
    >>> praise = {"role": "assistant", "content": " good"}
    >>> again = {"role": "user", "content": " but the music was"}
    >>> frank_viewer([[asked, praise], [*blame, again, praise]])
    [(None, 0.1), (None, 1.0)]
    """
    return [_answer(dialogue) for dialogue in dialogues]


def _answer(dialogue: Sequence[Mapping[str, str]]) -> Answer:
    said = [turn["content"] for turn in dialogue if turn["role"] == "assistant"]
    mood = sum(SENTIMENT.get(word, 0.0) for word in said[-1].lower().split())
    if len(said) == 1:
        return (None, FLATTERY) if mood > 0 else (" but the music was", 0.0)
    return None, HONESTY if mood > 0 else 0.0
