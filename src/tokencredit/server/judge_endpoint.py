"""A judge behind an endpoint that speaks the chat-completions form of OpenAI, as many servers do.

A question that has answers of one token is answered by the log-probabilities of the first token;
one that wants a text by the text. What concerns one question alone, such as a content filter, is a
reply that says so. What concerns all, such as a server without log-probabilities, is an error.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from tokencredit.errors import ConfigError, DataError, ServerError, TokenCreditError
from tokencredit.judge.questions import Question
from tokencredit.judge.verdicts import Reply, pooled_answers
from tokencredit.server.answers import told
from tokencredit.server.asking import Kind, RewardServer, json_answer
from tokencredit.server.exchange import Answer

_PROGRAM = "an endpoint of chat completions, whose address ends in /v1 with most servers"
_OWN = ("model", "messages", "temperature", "max_tokens", "seed", "n", "stream", "logprobs",
        "top_logprobs")  # fmt: skip
# Names of a whole text's end: of OpenAI and vLLM, and of TGI.
_WHOLE = ("stop", "eos_token", "stop_sequence")
_DATED = re.compile(r"-\d[\d-]*")


@dataclass(frozen=True)
class JudgeEndpoint:
    """A judge that is asked over HTTP: a function from questions to replies, in their order.

    Attributes:
        server: where it is, with the path before `/chat/completions`, and how patiently to ask it.
        model: the name that it goes by there.
        max_new_tokens: most tokens of a text.
        temperature: of texts; 0 takes the most probable token.
        seed: of the texts that are drawn; each `draw` of a question has its own.
        top_logprobs: how many tokens are listed where one token answers; OpenAI and vLLM allow 20.
        concurrency: questions that are asked at the same time.
        extra: more of the body, such as `chat_template_kwargs` of vLLM.

    Raises:
        ConfigError: a number is out of range, or `extra` sets what is set here.
    """

    server: RewardServer
    model: str
    max_new_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int = 20
    concurrency: int = 8
    extra: Mapping[str, Any] = field(default_factory=dict)
    _answering: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = (self.max_new_tokens, self.top_logprobs, self.concurrency)
        if min(counts) < 1 or not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"max_new_tokens, top_logprobs and concurrency are {counts} and temperature "
                f"{self.temperature}; expected at least 1, and 0 or more"
            )
        twice = sorted(set(self.extra) & set(_OWN))
        if twice:
            raise ConfigError(f"extra sets {twice}; expected what has no setting of its own")

    @property
    def identity(self) -> str:
        """What its replies depend on besides the question, for a cache."""
        named = ("model", "max_new_tokens", "temperature", "seed", "top_logprobs")
        found = {name: getattr(self, name) for name in named} | {"extra": dict(self.extra)}
        return json.dumps(found, sort_keys=True)

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        """Ask, several questions at the same time.

        Args:
            questions: any number.

        Raises:
            ServerError: no answer in time, so often; or an answer of another form or model.
            ConfigError: the token is not the right one.
            DataError: a question is refused, one that is too long for example.
        """
        if not questions:
            return []
        pool = ThreadPoolExecutor(min(self.concurrency, len(questions)))
        try:
            asked = [pool.submit(self._reply, question) for question in questions]
            for done in as_completed(asked):
                done.result()  # the first error ends it
            return [done.result() for done in asked]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, question: Question) -> Reply:
        body: dict[str, Any] = {
            **self.extra,
            "model": self.model,
            "messages": list(question.messages),
            "temperature": self.temperature,
            "max_tokens": self.max_new_tokens,
        }
        if question.answers:
            # Greedy: a drawn token that is not among the likeliest may be listed with them.
            body |= {"temperature": 0.0, "max_tokens": 1, "logprobs": True}
            body["top_logprobs"] = self.top_logprobs
        elif self.temperature:
            body["seed"] = self.seed + question.draw
        try:
            answer = json_answer(self.server, _ENDPOINT, "POST", "/chat/completions", body)
        except _FilteredError as error:
            return Reply(problem=str(error))
        self._require_model(answer)
        choices = self._of(answer, list, "choices")
        if len(choices) != 1:
            raise self._other(f"{len(choices)} choices to one question; expected one")
        message = self._of(choices[0], dict, "message")
        if choices[0].get("finish_reason") == "content_filter":
            return Reply(problem=_FILTER)
        if message.get("refusal"):
            return Reply(problem="the judge refuses to answer")
        return self._token(choices[0], question) if question.answers else self._text(choices[0])

    def _text(self, choice: Mapping[str, Any]) -> Reply:
        text, ended = choice["message"].get("content"), choice.get("finish_reason") in _WHOLE
        if text is not None and not isinstance(text, str):
            raise self._other("a content that is no text; expected a text")
        if not (text or "").strip():  # a model that reasons may have come to no answer
            return Reply(problem="the judge wrote no text", ended=ended)
        return Reply(str(text), ended=ended)

    def _token(self, choice: Mapping[str, Any], question: Question) -> Reply:
        if not isinstance(choice.get("logprobs"), dict):
            raise self._other(
                "no log-probabilities; expected an endpoint that gives top_logprobs, or a set-up "
                "whose judge writes a text"
            )
        tokens = self._of(choice["logprobs"], list, "content")
        if not tokens:
            return Reply(problem="the judge said no token")
        listed = self._of(tokens[0], list, "top_logprobs")
        spelled = [
            (self._of(one, str, "token"), float(self._of(one, int | float, "logprob")))
            for one in listed
        ]
        values = sorted((value for _, value in spelled), reverse=True)[: self.top_logprobs]
        if not values or not all(-math.inf < value < 1e-3 for value in values):
            raise self._other(
                f"top_logprobs of {values[:3]}; expected log-probabilities of the likeliest tokens"
            )
        return Reply(logprobs=pooled_answers(spelled, question.answers), bound=values[-1])

    def _require_model(self, answer: Any) -> None:
        """Refuse another model than the one that was asked for, or than has answered before."""
        name = self._of(answer, str, "model")
        dated = name.startswith(self.model) and _DATED.fullmatch(name[len(self.model) :])
        if (name != self.model and not dated) or self._answering.setdefault("", name) != name:
            before = self._answering.get("", self.model)
            raise self._other(
                f"as the model {name[:80]!a}; expected {before!r}, one model for all questions: "
                "name the one that is served, or serve the first one again"
            )

    def _of(self, container: Any, kind: Any, key: str) -> Any:
        found = container.get(key) if isinstance(container, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self._other(f"without {key} as it should be; expected {_PROGRAM}")
        return found

    def _other(self, what: str) -> ServerError:
        return ServerError(f"the judge at {self.server.address} answers {what}")


def endpoint_address(name: str) -> tuple[str, str]:
    """The address of an endpoint and the model that is asked there.

    Args:
        name: the address, `#` and the name of the model.

    Raises:
        ConfigError: no model is named.

    >>> endpoint_address("http://localhost:8000/v1#my/judge")
    ('http://localhost:8000/v1', 'my/judge')
    """
    address, _, model = name.partition("#")
    if not model:
        raise ConfigError(
            f"the judge {address.rpartition('@')[2]!r} is an address without a model; expected "
            "http://host:port/v1#name, with the name of the model there"
        )
    return address, model


class _FilteredError(ServerError):
    """One question was refused for what stands in it."""


_FILTER = "a content filter took the answer"


def _refusal(answer: Answer, server: RewardServer) -> TokenCreditError:
    said = f"the judge at {server.address} answered {told(answer, token=server.token)}"
    if answer.status in (401, 403):
        return ConfigError(
            f"{said}; expected the token of the endpoint, in the environment variable that "
            "judge.token_variable names"
        )
    if answer.status == 400 and b"content_filter" in answer.body:
        return _FilteredError(_FILTER)
    if answer.status in (400, 413, 422):
        return DataError(f"{said}; expected questions that fit the model and settings it knows")
    return ServerError(f"{said}; expected {_PROGRAM}, and the name of a model that it serves")


_ENDPOINT = Kind("judge", _PROGRAM, _refusal)
