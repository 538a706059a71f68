"""Conversations as the text that a chat template makes of them, and where the answer stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Message
from tokencredit.errors import DataError, ModelError
from tokencredit.text.hf_tool_turns import require_tools_rendered

# Stand for what is said while a template is rendered: private-use characters, which no template
# looks for and no filter changes.
_ANSWER = "\ue000\ue001\ue002"
_QUESTION = "\ue000\ue003\ue002"


@dataclass(frozen=True)
class RenderedText:
    """A prompt and its answer as one text.

    Attributes:
        text: all of it, with what closes an answer that ended.
        start: first character of the answer.
        stop: character after the answer.
        places: for each character of the answer as it stands in the text, its place in the answer
            as it was given, or -1 for one that the template wrote; None where nothing has moved
            but by `shift`.
        shift: characters that the template cut off before the answer.
    """

    text: str
    start: int
    stop: int
    places: tuple[int, ...] | None = None
    shift: int = 0

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Characters of the answer as it was given, from those of the answer in the text."""
        if self.places is None:
            return start + self.shift, stop + self.shift
        found = [place for place in self.places[start:stop] if place >= 0]
        if found:
            return found[0], found[-1] + 1
        before = [place for place in self.places[:start] if place >= 0]
        at = before[-1] + 1 if before else 0
        return at, at


@dataclass(frozen=True)
class TurnMarks:
    """What a chat template writes around the turns of a conversation.

    Attributes:
        openings: what may stand between a question and its answer.
        closing: what follows an answer.
        beginning: what the text of a conversation begins with, up to its first question.
    """

    openings: tuple[str, ...]
    closing: str
    beginning: str

    def open_answer(self, text: str) -> bool:
        """Whether a text ends with what opens an answer: a prompt that is rendered already.

        >>> TurnMarks(("<answer>",), "</answer>", "").open_answer("hello <answer>")
        True
        """
        return text.rstrip().endswith(self.openings)

    def opened(self, answer: str) -> str:
        """An answer without the mark that closes it, where it was written out.

        >>> TurnMarks(("<answer>",), "</answer>", "").opened("hi</answer>")
        'hi'
        """
        mark = self.closing.strip()
        bare = answer.rstrip()
        return bare.removesuffix(mark) if mark and bare.endswith(mark) else answer

    def split(self, text: str) -> tuple[str, str] | None:
        """A whole text as its prompt and its last answer, without what closes it.

        None where no mark opens an answer in it.

        >>> TurnMarks(("<answer>",), "</answer>", "").split("hello <answer> hi</answer>")
        ('hello <answer> ', 'hi')
        """
        borders = [text.rfind(mark) + len(mark) for mark in self.openings if mark in text]
        if not borders:
            return None
        # Spaces after the mark are the template's, not the answer's.
        answer = text[max(borders) :].lstrip("\n ")
        return text[: len(text) - len(answer)], self.opened(answer)


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where a tokenizer has no chat template."""
    if tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; expected one to "
            "render messages: name one by the setting reading.chat_template, or give prompts as "
            "plain text"
        )


def turn_marks(tokenizer: PreTrainedTokenizerBase) -> TurnMarks:
    """What the chat template of a tokenizer writes around the turns of a conversation.

    Raises:
        ModelError: there is no template, or it does not write what is said.
    """
    require_chat_template(tokenizer)
    asked: list[Message] = [{"role": "user", "content": _QUESTION}]
    whole = _render(tokenizer, [*asked, {"role": "assistant", "content": _ANSWER}])
    to_answer = _render(tokenizer, asked, add_generation_prompt=True)
    beginning, question, rest = whole.partition(_QUESTION)
    opening, answer, closing = rest.partition(_ANSWER)
    if not question or not answer:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path!r} does not write what is said in a "
            "turn; expected one that renders the content of messages"
        )
    written = (opening.strip(), to_answer.partition(_QUESTION)[2].strip())
    return TurnMarks(tuple(dict.fromkeys(filter(None, written))), closing, beginning)


def rendered_chat(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    answer: str,
    *,
    ended: bool = True,
) -> RenderedText:
    """A conversation with the assistant's answer to it, as the chat template writes them.

    A conversation that ends with a turn of the assistant is answered by going on with that turn.
    What a template takes out of an answer (a block of thoughts, for example) is not in the text.

    Args:
        tokenizer: with a chat template.
        conversation: up to the turn to be answered.
        answer: the assistant's.
        ended: whether the turn is over; one that was cut off stays open.

    Raises:
        DataError: the template refuses the messages.
        ModelError: there is no template, or it leaves the answer out.
    """
    require_chat_template(tokenizer)
    require_tools_rendered(tokenizer, conversation)
    before, said = _turn_to_go_on(conversation)

    def render(content: str) -> str:
        return _render(tokenizer, [*before, {"role": "assistant", "content": said + content}])

    head, there, tail = render(_ANSWER).partition(_ANSWER)
    if not there:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path!r} leaves out what the assistant says "
            "last; expected one that renders it"
        )
    text = render(answer) if answer else head + tail
    start, stop = len(head), len(text) - len(tail)
    if not (text.startswith(head) and text.endswith(tail) and start <= stop):
        # What the answer says has changed the turns before it: it is read as it was written.
        text, stop = head + answer + tail, start + len(answer)
    shown = text[start:stop]
    if not ended:
        text = text[:stop]
    if shown in (answer, answer.strip(), answer.lstrip(), answer.rstrip()):
        return RenderedText(text, start, stop, shift=answer.index(shown))
    return RenderedText(text, start, stop, places=_places(shown, answer))


def rendered_answer(
    tokenizer: PreTrainedTokenizerBase, marks: TurnMarks, prompt: str, answer: str, *, ended: bool
) -> RenderedText:
    """The answer to a prompt that stands in the marks of the chat template already.

    Args:
        tokenizer: with the chat template.
        marks: of that template.
        prompt: up to where the answer begins; gets the token that begins a sequence where the
            template writes it and the prompt lacks it.
        answer: the assistant's; the mark that closes it may have been written out.
        ended: whether the turn is over.
    """
    bos = tokenizer.bos_token
    if bos and marks.beginning.startswith(bos) and not prompt.startswith(bos):
        prompt = f"{bos}{prompt}"
    opened = marks.opened(answer)
    closing = marks.closing if ended or opened != answer else ""
    start, stop = len(prompt), len(prompt) + len(opened)
    return RenderedText(f"{prompt}{opened}{closing}", start, stop)


def rendered_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message]) -> str:
    """A conversation up to where the assistant's answer begins, for the model that writes it.

    Raises:
        DataError, ModelError: as `rendered_chat`.
    """
    require_chat_template(tokenizer)
    require_tools_rendered(tokenizer, conversation)
    if conversation and conversation[-1].get("role") == "assistant":
        return rendered_chat(tokenizer, conversation, "", ended=False).text
    return _render(tokenizer, conversation, add_generation_prompt=True)


def _turn_to_go_on(conversation: Sequence[Message]) -> tuple[list[Message], str]:
    """The turns before the one that is answered, and what that one says already."""
    turns = list(conversation)
    if turns and turns[-1].get("role") == "assistant":
        return turns[:-1], str(turns[-1]["content"])
    return turns, ""


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )
    except Exception as error:  # templates raise what they like
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses messages with the roles "
            f"{[message.get('role') for message in messages]}: {error}; expected roles and an "
            "order that it knows"
        ) from error


def _places(shown: str, answer: str) -> tuple[int, ...]:
    """The place of each character in the answer from which a template made another text."""
    places = [-1] * len(shown)
    whole = answer.rfind(shown)
    if shown and whole >= 0:
        return tuple(range(whole, whole + len(shown)))
    for block in SequenceMatcher(None, shown, answer, autojunk=False).get_matching_blocks():
        places[block.a : block.a + block.size] = range(block.b, block.b + block.size)
    return tuple(places)
