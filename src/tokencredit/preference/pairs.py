"""Texts that people judged, and where the prompt ends in a pair that does not say so.

A pair also makes many pairs of beginnings, one for each length, as PARGS trains on. Nothing is
copied until a pair of beginnings is asked for, so a data set expands into numbers and not into
texts: `prefix_lengths` says which lengths there are, `beginning` cuts one out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokencredit.batch import Message, Prompt
from tokencredit.errors import ConfigError, DataError


@dataclass(frozen=True)
class PromptedResponse:
    """A response to learn from by imitation.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        response: the text of the answer.
        ended: whether the answer ended; False for one that was cut off.
    """

    prompt: Prompt
    response: str
    ended: bool = True


@dataclass(frozen=True)
class LabelledResponse:
    """A response called good or bad.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that the label is about.
        label: 1 good, 0 bad.
        ended: whether the response ended; False for one that was cut off.
    """

    prompt: Prompt
    response: str
    label: int
    ended: bool = True


@dataclass(frozen=True)
class RatedResponse:
    """A response with a number that says how good it is.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that the rating is about.
        rating: in any unit, more is better.
        ended: whether the response ended; False for one that was cut off.
    """

    prompt: Prompt
    response: str
    rating: float
    ended: bool = True


@dataclass(frozen=True)
class MultiRatedResponse:
    """A response with a number for each of several objectives.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that the ratings are about.
        ratings: of each objective, in any unit, more is better; NaN where one is missing.
        ended: whether the response ended; False for one that was cut off.
    """

    prompt: Prompt
    response: str
    ratings: tuple[float, ...]
    ended: bool = True


JudgedResponse = LabelledResponse | RatedResponse | MultiRatedResponse
"""A response that is judged by itself."""


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to the same prompt, one of them preferred.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        chosen: the preferred response.
        rejected: the other one.
        margin: how much better the chosen one is, in nats.
        strength: how strong the preference is: its weight in the loss.
        preferred: the probability that the chosen one is the better one.
        ended: whether the chosen and the rejected response ended; False for one that was cut off.
        user: who prefers it; None where nobody asks.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    strength: float = 1.0
    preferred: float = 1.0
    ended: tuple[bool, bool] = (True, True)
    user: str | None = None


TURN_MARKER = "\n\nAssistant:"
"""What stands before every answer in transcripts such as those of HH."""


def without_common_prompt(
    chosen: str, rejected: str, *, turn_marker: str = TURN_MARKER
) -> tuple[str, str, str]:
    """Prompt, chosen and rejected response of two texts that begin with the same prompt.

    The prompt ends at the last turn border that both texts share: after the last `turn_marker`,
    else after the last line break, else after the last space. A border inside the answers, which
    only look alike for a while, is never taken for one while a marker is there.

    Args:
        chosen: prompt and preferred response.
        rejected: prompt and the other response.
        turn_marker: what stands before every answer.

    Returns:
        Three texts; the first joined to either of the others gives back what came in.

    >>> without_common_prompt("Q: Hi A: Ha!", "Q: Hi A: Ho.", turn_marker=" A:")
    ('Q: Hi A:', ' Ha!', ' Ho.')
    """
    letters = enumerate(zip(chosen, rejected, strict=False))
    same = next(
        (at for at, (one, other) in letters if one != other), min(len(chosen), len(rejected))
    )
    common = chosen[:same]
    border = next((border for border in (turn_marker, "\n", " ") if border in common), None)
    end = 0 if border is None else common.rindex(border) + len(border)
    return common[:end], chosen[end:], rejected[end:]


def conversation_and_answer(prompt: Prompt, messages: list[Message]) -> tuple[list[Message], str]:
    """The messages before the last answer, and the text of that answer.

    Args:
        prompt: what came before `messages`; a text counts as one message of the user. What both
            hold stands once in the result, and the system's turn comes first.
        messages: the answer alone or the whole conversation, the last of them by the assistant.

    Raises:
        DataError: the last message is not the assistant's or calls a tool, there is none, or
            prompt and messages do not belong together: two different turns of the system, or one
            of the user after another.

    >>> conversation_and_answer("Hi", [{"role": "assistant", "content": "Ho"}])
    ([{'role': 'user', 'content': 'Hi'}], 'Ho')
    """
    if not messages or messages[-1].get("role") != "assistant":
        roles = [message.get("role") for message in messages]
        raise DataError(
            f"messages with the roles {roles}; expected the last one to be the assistant's, with "
            "'role' and 'content' in each"
        )
    *turns, answer = messages
    for field in ("tool_calls", "function_call", "reasoning_content"):
        if field in answer:
            raise DataError(
                f"the last answer has {field!r}, which is no text; expected an answer in "
                "'content': write it there as your template does, or drop the row"
            )
    return _joined_turns(prompt, turns), answer["content"]


def _joined_turns(prompt: Prompt, turns: list[Message]) -> list[Message]:
    """What came before and what came then, each turn once."""
    if isinstance(prompt, str):
        asked = prompt.strip()
        in_turns = any(one["role"] == "user" and one["content"].strip() == asked for one in turns)
        before = [] if not asked or in_turns else [{"role": "user", "content": prompt}]
    else:
        before = list(prompt)
    (first_system, before), (system, turns) = _system_apart(before), _system_apart(turns)
    if first_system and system and first_system != system:
        raise DataError(
            f"the prompt begins with {first_system} and the conversation with {system}; expected "
            "one turn of the system: leave one out"
        )
    lengths = range(min(len(before), len(turns)), 0, -1)
    shared = next((length for length in lengths if before[-length:] == turns[:length]), 0)
    rest = turns[shared:]
    if before and rest and before[-1]["role"] == rest[0]["role"] == "user":
        raise DataError(
            f"the prompt ends with {before[-1]} and the conversation goes on with {rest[0]}; "
            "expected a prompt that the conversation begins with, or that it answers: name the "
            "right column of prompts"
        )
    return [*(first_system or system), *before, *rest]


def _system_apart(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """The turns of the system at the beginning, and the others."""
    rest = next((at for at, one in enumerate(turns) if one["role"] != "system"), len(turns))
    return turns[:rest], turns[rest:]


def prefix_pairs(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    filler: int | None = None,
    start: int = 1,
    step: int = 1,
) -> Iterator[tuple[list[int], list[int]]]:
    """Beginnings of equal length of both answers, from short to whole.

    Args:
        chosen_ids: tokens of the preferred answer.
        rejected_ids: tokens of the other one.
        filler: the token that stands after the end of the shorter answer, up to the length of the
            longer one; None lets it stay as it is, whole.
        start: length of the shortest beginnings, in tokens.
        step: tokens from one length to the next. Whole answers are always among the pairs.

    Yields:
        Two lists of tokens that differ. Equal beginnings are left out: they cost log 2 whatever the
        model says and have no gradient.

    Raises:
        ConfigError: `start` or `step` is below 1.

    Source: Rashid et al. 2024, arXiv 2406.07780, and its code: `filler` is the end of sequence;
    `start` is 1 on HH, 2 on TL;DR; `step` is 1. They keep equal beginnings, which changes the
    loss by a constant and a factor, and decode the tokens to text that is tokenized anew; here
    they stay the tokens that they are.

    >>> list(prefix_pairs([5, 6, 7], [5, 8], filler=0))
    [([5, 6], [5, 8]), ([5, 6, 7], [5, 8, 0])]
    """
    for length in prefix_lengths(chosen_ids, rejected_ids, filler=filler, start=start, step=step):
        yield (
            beginning(chosen_ids, length, filler=filler),
            beginning(rejected_ids, length, filler=filler),
        )


def prefix_lengths(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    filler: int | None = None,
    start: int = 1,
    step: int = 1,
) -> list[int]:
    """The lengths at which two answers have begun differently, the longer one's own as the last.

    Args:
        chosen_ids: tokens of the preferred answer.
        rejected_ids: tokens of the other one.
        filler: as in `prefix_pairs`.
        start: the least length, in tokens.
        step: between lengths.

    Returns:
        Lengths in tokens, rising; none where the answers are equal.

    Raises:
        ConfigError: `start` or `step` is below 1.

    >>> prefix_lengths([5, 6, 7, 9, 9, 9], [5, 8], start=2, step=3)
    [2, 5, 6]
    """
    for name, value in (("start", start), ("step", step)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1 token")
    longest = max(len(chosen_ids), len(rejected_ids))
    same = _tokens_in_common(chosen_ids, rejected_ids, filler)
    return [length for length in (*range(start, longest, step), longest) if length > same]


def beginning(ids: Sequence[int], length: int, *, filler: int | None = None) -> list[int]:
    """The first `length` tokens; where there are fewer, filled up if there is a filler.

    >>> beginning([5, 6], 4, filler=0), beginning([5, 6], 4)
    ([5, 6, 0, 0], [5, 6])
    """
    missing = max(0, length - len(ids))
    return [*ids[:length], *([] if filler is None else [filler] * missing)]


def _tokens_in_common(first: Sequence[int], second: Sequence[int], filler: int | None) -> int:
    """The longest length at which both, filled up, have the same beginning."""
    longest = max(len(first), len(second))
    filled = (beginning(ids, longest, filler=filler) for ids in (first, second))
    same = 0
    for one, other in zip(*filled, strict=False):
        if one != other:
            break
        same += 1
    return same
