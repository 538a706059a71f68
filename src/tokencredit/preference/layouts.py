"""Where prompts and answers stand in rows of other projects: TRL, OpenRLHF, Alpaca, ShareGPT, ...

A column that a setting names is taken as it is. What stands here is for columns that nobody named:
the usual names are known, and where a row leaves open which of its columns is meant, an error names
them and the setting. Nothing that a prompt could be is passed over in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokencredit.batch import Message, Prompt
from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.cells import (
    Row,
    ended_cell,
    messages_cell,
    number_cell,
    prompt_cell,
    text_cell,
)
from tokencredit.preference.pairs import (
    TURN_MARKER,
    PreferencePair,
    conversation_and_answer,
    without_common_prompt,
)

PROMPTS = (
    "question",
    "query",
    "instruction",
    "problem",
    "post",
    "history",
    "context",
    "input",
)
"""What a column of prompts may be called beside `prompt`."""

ANSWERS = ("response", "completion", "output", "answer")
"""What a column of single answers may be called."""

CONVERSATIONS = ("messages", "conversations", "conversation")
"""What a column of whole conversations may be called."""

SYSTEMS = ("system", "system_prompt")
"""What a column of instructions by the system may be called."""


@dataclass(frozen=True)
class PairLayout:
    """Two columns of answers, and a third that says which of them is better.

    Attributes:
        first: column of the first answer.
        second: column of the second.
        label: column that judges.
        better: what it holds where the first is better, and where the second is; None where a
            number below 0 is for the first and one above 0 for the second.
    """

    first: str
    second: str
    label: str
    better: tuple[str, str] | None


PAIR_LAYOUTS = (
    PairLayout("response_0", "response_1", "better_response_id", ("0", "1")),  # PKU-SafeRLHF
    PairLayout("response_0", "response_1", "safer_response_id", ("0", "1")),
    PairLayout("response_1", "response_2", "preference_strength", None),  # HelpSteer 2
    PairLayout("response1", "response2", "overall_preference", None),  # HelpSteer 3
    PairLayout("human_ref_A", "human_ref_B", "labels", ("1", "0")),  # SHP
    PairLayout("conversation_a", "conversation_b", "winner", ("model_a", "model_b")),  # Arena
)
"""Rows of pairs that have neither `chosen` nor `rejected`; the first that fits is taken."""


def row_prompt(row: Row, column: str | None, *, apart: Sequence[str] = ()) -> Prompt | None:
    """The prompt of a row, with the turn of the system where a column holds one.

    Args:
        row: of the data.
        column: that holds it; an empty name for texts that stand alone; None looks for `prompt`,
            and then for the usual names.
        apart: columns that hold something else.

    Returns:
        A text or messages; None where no column is one.

    Raises:
        DataError: the prompt is empty or no prompt, or definitions of tools come with it.
        ConfigError: several columns could be the prompt.
    """
    if column == "":
        return ""
    _require_no_tools(row)
    prompt = _found_prompt(row, apart) if column is None else prompt_cell(row, column)
    return prompt if prompt is None else _with_system(row, prompt, apart)


def _found_prompt(row: Row, apart: Sequence[str]) -> Prompt | None:
    values = row.values
    if "prompt" in values and "prompt" not in apart:
        return prompt_cell(row, "prompt")
    there = [name for name in PROMPTS if name not in apart and not _is_empty(values.get(name))]
    more = next((name for name in there if name in ("input", "context")), None)
    if "instruction" in there and more is not None and len(there) == 2:  # Alpaca, Dolly
        return text_cell(row, "instruction") + "\n\n" + text_cell(row, more)
    if len(there) > 1:
        raise ConfigError(
            f"{row.place} has no column 'prompt', and {', '.join(map(repr, there))} could each be "
            "it; expected one: name it in columns.prompt (prompt_column), an empty name for texts "
            "that stand alone"
        )
    if there:
        return prompt_cell(row, there[0])
    for name in CONVERSATIONS:
        if name not in apart and isinstance(values.get(name), list) and values[name]:
            messages = messages_cell(row, name)
            if messages[-1]["role"] != "assistant":
                return messages
    return None


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip())


def _with_system(row: Row, prompt: Prompt, apart: Sequence[str]) -> Prompt:
    """The prompt after what the system says; a column of that makes every prompt a chat."""
    name = next((name for name in SYSTEMS if name in row.values and name not in apart), None)
    said = None if name is None else row.value(name)
    if name is None or not (said is None or isinstance(said, str)):
        return prompt
    turns: list[Message] = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    )
    if _is_empty(said) or turns[0] == {"role": "system", "content": said}:
        return turns
    if turns[0]["role"] == "system":
        raise DataError(
            f"{row.place}: the column {name!r} and the conversation say different things as "
            "system; expected one of them"
        )
    return [{"role": "system", "content": str(said)}, *turns]


def _require_no_tools(row: Row) -> None:
    tools = row.values.get("tools")
    if not _is_empty(tools) and tools not in ("[]", "null", "None"):
        raise DataError(
            f"{row.place}, column 'tools': {tools!r:.300}; expected no definitions of tools, which "
            "are not rendered: write them into the system's turn as your template does, and leave "
            "the column out"
        )


def row_answer(row: Row, prompt_column: str | None, answer_column: str) -> tuple[Prompt, str]:
    """The prompt of a row and its single answer.

    Args:
        row: of the data.
        prompt_column: as in `row_prompt`; `prompt` stands for the usual names where it is not
            there.
        answer_column: of texts, or of messages that end with the assistant's. Where it is one of
            `ANSWERS` and not there, the others of them are looked for, and then a whole
            conversation.

    Raises:
        DataError: there is no prompt or no answer.
        ConfigError: as in `row_prompt`.
    """
    if prompt_column == "prompt" and "prompt" not in row.values:
        prompt_column = None
    names: tuple[str, ...] = (answer_column,)
    if answer_column in ANSWERS:
        names = (answer_column, *ANSWERS, *CONVERSATIONS)
    column = next((name for name in names if not _is_empty(row.values.get(name))), answer_column)
    if column in CONVERSATIONS and prompt_column is None:
        _require_no_tools(row)
        conversation, answer = answered(row, "", column)
        return _with_system(row, conversation, ()), answer
    prompt = row_prompt(row, prompt_column, apart=(column, *ANSWERS))
    if prompt is None:
        row.value("prompt")  # is not there, which the error says with the columns that are
    return answered(row, prompt or "", column)


def judged_answer(row: Row, prompt_column: str | None, text_column: str) -> tuple[Prompt, str]:
    """A text that was judged, and what it answers; an empty text where it stands alone.

    Args:
        row: of the data.
        prompt_column: as in `row_prompt`.
        text_column: of the text; where it is `text` and not there, `ANSWERS` are looked for.

    Raises:
        DataError: there is no text, or the prompt is empty.
        ConfigError: as in `row_prompt`.
    """
    if text_column == "text" and "text" not in row.values:
        text_column = next((name for name in ANSWERS if name in row.values), "text")
    prompt = row_prompt(row, prompt_column, apart=(text_column, *ANSWERS))
    return answered(row, prompt or "", text_column)


def answered(row: Row, prompt: Prompt, column: str) -> tuple[Prompt, str]:
    """Prompt and answer; an answer in messages makes the prompt a list of messages too.

    A prompt that the answer repeats is taken off it.
    """
    value = _one_message_as_list(row.value(column))
    if isinstance(value, list):
        messages = messages_cell(Row(row.place, {column: value}), column)
        try:
            return conversation_and_answer(prompt, messages)
        except DataError as error:
            raise DataError(f"{row.place}, column {column!r}: {error}") from error
    text = text_cell(row, column)
    if isinstance(prompt, str):
        marked = text.rpartition(TURN_MARKER)
        head = f"{marked[0]}{marked[1]}"
        (prompt, text), *_ = _without_repeated(prompt, head, [text])
    return prompt, text


def _one_message_as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


def _without_repeated(prompt: str, head: str, texts: list[str]) -> list[tuple[str, str]]:
    """Prompt and answers, where the answers may be transcripts that begin with the prompt.

    Args:
        prompt: as the data give it.
        head: what all the texts begin with, up to a turn of the assistant.
        texts: answers or transcripts.
    """
    asked = prompt.strip()
    if TURN_MARKER in head and asked and asked in head:
        return [(head, text[len(head) :]) for text in texts]
    # A word or two may begin an answer by chance.
    if (len(asked) >= 10 or "\n" in prompt) and all(text.startswith(prompt) for text in texts):
        return [(prompt, text[len(prompt) :]) for text in texts]
    return [(prompt, text) for text in texts]


def pair_columns(row: Row, chosen_at: str, rejected_at: str) -> tuple[str, str]:
    """The columns of the better and of the other answer, those of `PAIR_LAYOUTS` too.

    Raises:
        DataError: the row says that both are equally good, or something that is not known.
    """
    if chosen_at != "chosen" or "chosen" in row.values:
        return chosen_at, rejected_at
    for layout in PAIR_LAYOUTS:
        if {layout.first, layout.second, layout.label} <= set(row.values):
            first = first_is_better(row, layout.label, layout.better)
            return (layout.first, layout.second)[:: 1 if first else -1]  # type: ignore[return-value]
    return chosen_at, rejected_at


def first_is_better(row: Row, label: str, better: tuple[str, str] | None) -> bool:
    """Whether a column says that the first of two answers is better, as in `PairLayout`.

    Raises:
        DataError: it says neither that nor the opposite.
    """
    if better is None:
        number = number_cell(row, label)
        if number != 0:
            return number < 0
        raise DataError(
            f"{row.place}, column {label!r}: 0, a tie; expected a preference: drop ties"
        )
    said = as_label(row.value(label))
    if said not in better:
        raise DataError(
            f"{row.place}, column {label!r}: {row.value(label)!r}; expected {better[0]!r} where "
            f"the first answer is better, {better[1]!r} where the second is: drop ties"
        )
    return said == better[0]


def as_label(value: Any) -> str:
    """A label as text, whether a table has it as a number, a truth value or a text.

    >>> as_label(1), as_label(True), as_label(" B ")
    ('1', 'true', 'b')
    """
    return str(value).strip().lower()


def pair_of_row(
    row: Row, prompt_at: str | None, chosen_at: str, rejected_at: str, margin_at: str | None
) -> PreferencePair:
    """The pair of a row, texts or messages, as `load_pairs` says."""
    chosen_at, rejected_at = pair_columns(row, chosen_at, rejected_at)
    chosen, rejected = (_one_message_as_list(row.value(at)) for at in (chosen_at, rejected_at))
    margin = _margin(row, margin_at)
    given = row_prompt(row, prompt_at, apart=(chosen_at, rejected_at))
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen_text = answered(row, given or "", chosen_at)
        other_prompt, rejected_text = answered(row, given or "", rejected_at)
        if prompt != other_prompt:
            raise DataError(
                f"{row.place}: the conversations differ before their last answer; expected the "
                "same messages up to there"
            )
        pair = PreferencePair(prompt, chosen_text, rejected_text, margin)
    elif not isinstance(chosen, str) or not isinstance(rejected, str):
        raise DataError(
            f"{row.place}: {chosen_at!r} and {rejected_at!r} hold {type(chosen).__name__} and "
            f"{type(rejected).__name__}; expected two texts or two lists of messages"
        )
    elif isinstance(given, list):
        pair = PreferencePair(given, chosen, rejected, margin)
    else:
        head, first, second = without_common_prompt(chosen, rejected)
        if given:
            (head, first), (_, second) = _without_repeated(given, head, [chosen, rejected])
        elif given is not None:
            head, first, second = "", chosen, rejected
        pair = PreferencePair(head, first, second, margin)
    if given is None and (not pair.prompt or str(pair.prompt).isspace()):
        _require_no_other_prompt(row, {chosen_at, rejected_at})
    ended = (ended_cell(row, "chosen_ended"), ended_cell(row, "rejected_ended"))
    return replace(pair, ended=ended)


def _margin(row: Row, column: str | None) -> float:
    """The margin of a pair; 0 where there is none, `margin` where none is named."""
    if column is None:
        column = "" if row.values.get("margin") is None else "margin"
    return number_cell(row, column) if column else 0.0


def _require_no_other_prompt(row: Row, answers: set[str]) -> None:
    """Raise ConfigError if a pair without a prompt has a column that looks like one."""
    others = [
        name
        for name, value in row.values.items()
        if name not in answers
        and name not in CONVERSATIONS
        and (
            (isinstance(value, str) and len(value.split()) > 1)
            or (isinstance(value, list) and any(isinstance(one, Mapping) for one in value))
        )
    ]
    if others:
        raise ConfigError(
            f"{row.place} has no prompt that is known, and {', '.join(map(repr, others))} could be "
            "it; expected its name in columns.prompt (prompt_column), or an empty name for answers "
            "that stand alone"
        )
