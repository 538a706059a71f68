"""How settings say that a model reads texts; `hf_known_readings` finds what that means."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError

Template = Literal["auto", "plain", "chat", "pair"]


@dataclass(frozen=True)
class ReadingSettings:
    """How a model reads texts, where its configuration does not say or shall not decide."""

    template: Template = "auto"
    """`chat` renders with the chat template, and a plain text as one message of the user; `plain`
    joins prompt and response; `pair` gives both to an encoder as a pair of sentences. `auto` does
    what the model was trained with. For models that do not say, it is `chat` where the tokenizer
    has a chat template, `pair` for encoders with one output that are given pairs, and `plain`
    otherwise."""
    append_eos: bool | None = None
    """Whether a plain response that ended gets an end-of-sequence token. None does what the model
    was trained with. In training that is yes for causal models; for a model that does not say, it
    is no."""
    turn_ends: tuple[str, ...] = ()
    """Tokens that end a response, besides those that tokenizer and model declare."""
    chat_template: str | None = None
    """A chat template, or a file with one, instead of the tokenizer's."""


def require_writer(settings: ReadingSettings, *, name: str) -> None:
    """Refuse what says nothing of a model that writes.

    Args:
        settings: of the model.
        name: of the settings, for the message.

    Raises:
        ConfigError: an end of sequence is to be appended.
    """
    if settings.append_eos is not None:
        raise ConfigError(
            f"{name}.append_eos is {settings.append_eos}; expected none: a policy ends its "
            "responses itself. How a reward model is shown them is reading.append_eos"
        )
