"""Calls and answers of tools, which a chat template renders or passes over in silence."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Message
from tokencredit.errors import DataError

_CALLS = ("tool_calls", "function_call")


def require_tools_rendered(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message]
) -> None:
    """Raise DataError if the template leaves out calls of tools or what tools answered.

    Nothing is rendered for a conversation without them. A template that refuses the messages is
    left to whoever renders them.

    Args:
        tokenizer: with a chat template.
        conversation: messages.

    Raises:
        DataError: two conversations that differ in a call or in a tool's answer look alike.
    """
    for at, message in enumerate(conversation):
        calls = [name for name in _CALLS if name in message]
        if calls and _looks_alike(tokenizer, conversation, at, dict.fromkeys(calls)):
            raise _left_out(tokenizer, f"{calls[0]!r} of message {at}", "calls of tools")
        tool = message["role"] in ("tool", "function") and message["content"].strip()
        if tool and _looks_alike(tokenizer, conversation, at, {"content": "\ue002"}):
            raise _left_out(tokenizer, f"message {at}, of the role {message['role']!r}", "tools")


def _looks_alike(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    at: int,
    changed: dict[str, str | None],
) -> bool:
    """Whether a conversation is rendered as before where one message is changed."""
    other = {k: v for k, v in (conversation[at] | changed).items() if v is not None}
    changed_one = [*conversation[:at], other, *conversation[at + 1 :]]
    try:
        first, second = (
            tokenizer.apply_chat_template([*map(dict, messages)], tokenize=False)
            for messages in (conversation, changed_one)
        )
    except Exception:  # templates raise what they like
        return False
    return first == second


def _left_out(tokenizer: PreTrainedTokenizerBase, what: str, whose: str) -> DataError:
    return DataError(
        f"the chat template of {tokenizer.name_or_path!r} leaves out {what}; expected one that "
        f"renders {whose}: take a model whose template does, or drop such conversations"
    )
