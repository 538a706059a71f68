"""Texts that people judged, and where the prompt ends in a pair that does not say so."""

from dataclasses import dataclass

from tokencredit.errors import DataError

Message = dict[str, str]
Prompt = str | list[Message]


@dataclass(frozen=True)
class PromptedResponse:
    """A response to learn from by imitation.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        response: the text of the answer.
    """

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class LabelledResponse:
    """A response called good or bad.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that the label is about.
        label: 1 good, 0 bad.
    """

    prompt: Prompt
    response: str
    label: int


@dataclass(frozen=True)
class RatedResponse:
    """A response with a number that says how good it is.

    Attributes:
        prompt: text, or the messages of a conversation so far; empty where the text stands alone.
        response: the text that the rating is about.
        rating: in any unit, more is better.
    """

    prompt: Prompt
    response: str
    rating: float


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to the same prompt, one of them preferred.

    Attributes:
        prompt: text, or the messages of a conversation so far.
        chosen: the preferred response.
        rejected: the other one.
        margin: how much better the chosen one is, in nats.
        strength: how strong the preference is: its weight in the loss.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    strength: float = 1.0


def without_common_prompt(
    chosen: str, rejected: str, *, turn_marker: str = "\n\nAssistant:"
) -> tuple[str, str, str]:
    r"""Prompt, chosen and rejected response of two texts that begin with the same prompt.

    The prompt ends at the last turn border that both texts share: behind the last `turn_marker`,
    else behind the last line break, else behind the last space. A border inside the answers, which
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
        prompt: what came before `messages`; a text counts as one message of the user. Ignored where
            `messages` already begin with it.
        messages: the answer alone or the whole conversation, the last of them by the assistant.

    Raises:
        DataError: the last message is not the assistant's, or there is none.

    >>> conversation_and_answer("Hi", [{"role": "assistant", "content": "Ho"}])
    ([{'role': 'user', 'content': 'Hi'}], 'Ho')
    """
    if not messages or messages[-1].get("role") != "assistant":
        roles = [message.get("role") for message in messages]
        raise DataError(
            f"messages with the roles {roles}; expected the last one to be the assistant's, with "
            "'role' and 'content' in each"
        )
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if before == [{"role": "user", "content": ""}] or messages[: len(before)] == before:
        before = []
    return [*before, *messages[:-1]], messages[-1]["content"]
