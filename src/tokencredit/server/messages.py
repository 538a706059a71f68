"""The JSON that comes and goes."""

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

# Of an offending value, in an error message; and keys of an object that has a few.
_SHOWN_CHARACTERS, _MOST_KEYS = 60, 32

Entry = TypeVar("Entry")
# The first wrong entry is told: a body of wrong ones is millions of errors.
Entries = Annotated[list[Entry], Field(fail_fast=True)]


class _Taken(BaseModel):
    """What comes in: nothing is made into another type, and no key stands beside the known."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MOST_KEYS:
            known = ", ".join(cls.model_fields)
            raise ValueError(f"an object of {len(value)} keys; expected {known}")
        return value


class Message(_Taken):
    """One turn of a conversation; further fields reach the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str


class PromptAndResponse(_Taken):
    """A text to score: what was asked, as text or messages, and the answer to it.

    `ended` is False for a response that was cut off: it is read without the end of sequence that
    the model learnt with.
    """

    prompt: str | Entries[Message] = ""
    response: str
    ended: bool = True


class PromptAndResponseIds(_Taken):
    """A response as token ids of the reward model's own vocabulary, and its prompt.

    With `prompt_ids` alone all ids are read as they are. Where `ended` says whether the response
    ended, the server closes it as the model learnt, or leaves it open, and `response_ids` are those
    before the end; `prompt` is then rendered for the model, as texts are.
    """

    prompt_ids: Entries[int] | None = None
    prompt: str | Entries[Message] | None = None
    response_ids: Entries[int]
    ended: bool | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> "PromptAndResponseIds":
        if (self.prompt_ids is None) == (self.prompt is None):
            raise ValueError("expected either `prompt_ids` or `prompt`")
        if self.prompt is not None and self.ended is None:
            raise ValueError("`prompt` with `response_ids` and no `ended`; expected true or false")
        return self


class ScoreRequest(_Taken):
    """What `POST /score` takes: `texts` or `ids`, and what to say of them.

    `credit` names credit methods, None asks for all; `details` names what they are made from.
    """

    texts: Entries[PromptAndResponse] | None = None
    ids: Entries[PromptAndResponseIds] | None = None
    credit: Entries[str] | None = None
    details: Entries[str] = []

    @model_validator(mode="after")
    def _one_of_two(self) -> "ScoreRequest":
        if not self.texts and not self.ids:
            raise ValueError("nothing to score; expected `texts` or `ids` with at least one entry")
        if self.texts and self.ids:
            raise ValueError("both `texts` and `ids`; expected one of them: send two requests")
        return self


class ScoredObjective(BaseModel):
    """What one of several objectives of the reward model says about a text.

    `weight` is that of the objective in the score of the text, left out where the score is no
    weighted sum. `token_scores` has a list for each credit method by which weighted token scores
    of all objectives add up to those of the text.
    """

    sequence_score: float
    weight: float | None = None
    token_scores: dict[str, list[float]]


class ScoredText(BaseModel):
    """What `POST /score` says about one text, scores in nats.

    `spans` are characters (Unicode code points) of the response; `token_scores` has one list per
    credit method. `prefix_scores` begins with the prompt alone and goes on with one number per
    token, and so does `position_scores`, the number at each position of a model that is read at the
    ends of segments; they and `attention` are left out unless `details` asks for them. `objectives`
    is there where the reward model has several.

    Where the verdict of a judge on it cannot be read, `unreadable` says why; then there is no
    `sequence_score`, and nothing in `token_scores`.
    """

    sequence_score: float | None = None
    unreadable: str | None = None
    token_ids: list[int]
    tokens: list[str]
    spans: list[tuple[int, int]]
    token_scores: dict[str, list[float]]
    prefix_scores: list[float] | None = None
    position_scores: list[float] | None = None
    attention: list[float] | None = None
    objectives: dict[str, ScoredObjective] | None = None


class ScoreAnswer(BaseModel):
    """What `POST /score` answers, in the order of the request.

    `fingerprint` is that of `GET /about`: it changes with the model, and with how texts are read.
    """

    fingerprint: str
    scores: list[ScoredText]


class Served(BaseModel):
    """What there is to know about a served reward model.

    Attributes:
        credit: methods on offer.
        details: on offer.
        attention_layer: whose attention is read.
        template: how texts are rendered, as the server's settings have it.
        renders_chats: whether a prompt that is a text becomes a message of the user.
        reads_eos: whether the model learnt on responses that end with the end of sequence; left
            out where it does not say.
        reads_segments: true where the score of a prefix is a mean over the ends of its segments;
            left out where it is read at its last token.
        vocabulary: fingerprint of the tokenizer's vocabulary.
        fingerprint: of the weights of all sources of reward, the vocabulary and tokenizer, the
            chat template and the settings above: what scores depend on.
        max_tokens: of one text with its prompt.
        objectives: names of what the reward model scores apart; left out where it has one score.
    """

    credit: list[str]
    details: list[str]
    attention_layer: int
    template: str
    renders_chats: bool
    reads_eos: bool | None = None
    reads_segments: bool | None = None
    vocabulary: str
    fingerprint: str
    max_tokens: int
    objectives: list[str] | None = None


class AboutAnswer(Served):
    """What `GET /about` answers: the model, and what one request may hold."""

    max_texts: int
    max_request_tokens: int
    max_body_bytes: int
    request_timeout: float


class RewardRequest(_Taken):
    """What OpenRLHF posts: whole texts with special tokens; prompts and labels are not read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: Entries[str]
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


class RewardAnswer(BaseModel):
    """What OpenRLHF expects: one number per query."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class Problem(BaseModel):
    """What went wrong: the type of the error; what came, what was expected, how to mend it."""

    type: str
    message: str


class ErrorAnswer(BaseModel):
    """What every failed request answers."""

    error: Problem


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHOWN_CHARACTERS


def problems(error: ValidationError, expected: str) -> str:
    """The first few mistakes of a request in words.

    Args:
        error: what the parser says.
        expected: what the request should have been.
    """
    details = error.errors(include_url=False)
    told = "; ".join(_told(detail) for detail in details[:3])
    more = f"; and {len(details) - 3} more" if len(details) > 3 else ""
    return f"{told}{more}. Expected {expected}"


def _told(detail: ErrorDetails) -> str:
    place = _place(detail["loc"]) or "the body"
    # Only the beginning is written out, whatever came.
    came = _SHORT.repr(detail["input"]).encode("ascii", "backslashreplace").decode()
    if len(came) > _SHOWN_CHARACTERS:
        came = f"{came[:_SHOWN_CHARACTERS]}..."
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}, got {came}"


def _place(location: Sequence[int | str]) -> str:
    """Such as `texts[3].response`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).lstrip(".")
