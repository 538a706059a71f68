"""What a reward server answers, checked: the shape of scores, and numbers that are finite."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    ServerError,
    ShapeError,
    TokenCreditError,
    VerdictError,
)
from tokencredit.server.exchange import Answer

_LARGEST_FLOAT32 = 3.4028234663852886e38
_SHOWN_CHARACTERS, _READ_OF_AN_ERROR = 400, 2**16
Span = tuple[int, int]
MODEL_HEADER = "X-Reward-Model"
"""Header of every answer of a reward server, errors too: the fingerprint of its model."""

_OUR_ERRORS: dict[str, type[TokenCreditError]] = {
    error.__name__: error
    for error in (ConfigError, DataError, ModelError, NumericError, ShapeError, VerdictError)
}


@dataclass(frozen=True)
class About:
    """What a server says of itself, see `AboutAnswer` in `messages.py`."""

    credit: list[str]
    details: list[str]
    attention_layer: int
    template: str
    renders_chats: bool
    vocabulary: str
    fingerprint: str
    max_texts: int
    max_request_tokens: int
    max_body_bytes: int
    reads_eos: bool | None
    reads_segments: bool | None = None


@dataclass(frozen=True)
class ScoredResponse:
    """What a server says of one response, in the reward model's tokens and in nats.

    Attributes:
        sequence_score: of the prompt with the response; NaN where a judge's verdict on it cannot be
            read.
        token_ids: of the response.
        spans: characters of each token; empty where neither credit nor details were asked for.
        token_scores: name of a credit method to one score per token.
        prefix_scores: of the prompt alone and after each token; None if not asked for.
        attention: that each token receives; None if not asked for.
        position_scores: the number at the prompt's end and at each token; None if not asked for.
        unreadable: why there is no score, and then no token scores and details; empty where there
            is one.
    """

    sequence_score: float
    token_ids: list[int]
    spans: list[Span]
    token_scores: dict[str, list[float]]
    prefix_scores: list[float] | None = None
    attention: list[float] | None = None
    position_scores: list[float] | None = None
    unreadable: str = ""


def told(answer: Answer, *, token: str | None) -> str:
    """Status and message of an answer that is an error, fit for a line of a log.

    Args:
        answer: of any server.
        token: that is to appear nowhere.
    """
    _, message = _problem(answer.body)
    if token:
        message = message.replace(token, "***")
    shown = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return f"{answer.status}, {shown[:_SHOWN_CHARACTERS] or 'without a message'}"


def refusal_of(answer: Answer, *, address: str, token: str | None) -> TokenCreditError:
    """The error that an answer stands for which will not change by asking again.

    Args:
        answer: not of status 200.
        address: of the server.
        token: that was sent, and is to appear nowhere.
    """
    said = told(answer, token=token)
    if answer.status in (401, 403):
        sent = "the token" if token else "requests without a token"
        return ConfigError(
            f"the reward server at {address} does not take {sent} ({said}); expected the one that "
            "it was started with, in the environment variable that the settings name"
        )
    if answer.status in range(300, 400):
        return ServerError(
            f"{address} answers with a redirect ({answer.status}), which is not followed, since "
            "the token would go with it; expected the server's own address"
        )
    error, _ = _problem(answer.body)
    if answer.status in (404, 405):
        said += ": is it a `tokencredit serve`, of this version?"
    return _OUR_ERRORS.get(error, ServerError)(f"the reward server at {address} answered {said}")


def about_of(answer: Any) -> About:
    """What `GET /about` says.

    Raises:
        ServerError: it lacks something.
    """
    kinds = {"credit": list, "details": list, "attention_layer": int, "template": str,
             "renders_chats": bool, "vocabulary": str, "fingerprint": str, "max_texts": int,
             "max_request_tokens": int, "max_body_bytes": int}  # fmt: skip
    for key, kind in kinds.items():
        _require(isinstance(_of(answer, key), kind), key, f"{kind.__name__}")
    _require(all(isinstance(name, str) for name in answer["credit"] + answer["details"]),
             "credit or details", "names")  # fmt: skip
    for key in ("max_texts", "max_request_tokens", "max_body_bytes"):
        _require(answer[key] > 0, key, "1 or more")
    eos = answer.get("reads_eos")
    _require(eos is None or isinstance(eos, bool), "reads_eos", "true or false")
    segments = answer.get("reads_segments")
    _require(segments is None or isinstance(segments, bool), "reads_segments", "true or false")
    return About(**{key: answer[key] for key in kinds}, reads_eos=eos, reads_segments=segments)


def fingerprint_of(answer: Any) -> Any:
    """That of an answer of `POST /score`.

    Raises:
        ServerError: it has none.
    """
    return _of(answer, "fingerprint")


def scored_responses(
    answer: Any, texts: Sequence[Mapping[str, Any]], credit: Sequence[str], details: Sequence[str]
) -> list[ScoredResponse]:
    """What `POST /score` says of these texts.

    Args:
        answer: as JSON.
        texts: that were sent.
        credit: that was asked for.
        details: likewise.

    Raises:
        NumericError: a number is NaN, infinite or null.
        ServerError: a row is missing, has not as many numbers as tokens, or spans outside the text.
    """
    rows = _of(answer, "scores")
    _require(isinstance(rows, list) and len(rows) == len(texts), "scores", f"{len(texts)} rows")
    return [
        _scored_response(row, text, tuple(credit), tuple(details), f"scores[{index}]")
        for index, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]


def require_verdicts(rows: Sequence[ScoredResponse], *, address: str) -> None:
    """Refuse rows without a score, where a judge that is served has said nothing that can be read.

    Args:
        rows: of an answer.
        address: of the server.

    Raises:
        VerdictError: there are some.
    """
    without = [row for row in rows if row.unreadable]
    if without:
        raise VerdictError(
            f"{len(without)} of {len(rows)} responses have no score of {address}, which says of "
            f"the first of them: {without[0].unreadable}"
        )


def require_same_model(found: Any, *, fingerprint: str, address: str) -> None:
    """Refuse answers of another model than the one that was asked first.

    Args:
        found: the fingerprint of an answer.
        fingerprint: that the server had at first.
        address: of the server.

    Raises:
        ServerError: another model answers, or texts are read in another way.
    """
    if found != fingerprint:
        raise ServerError(
            f"the reward server at {address} answers as {str(found)[:64]!a} and was "
            f"{fingerprint[:64]!a} at first: its weights, vocabulary, chat template or settings "
            "have changed; expected one reward model for a whole run: serve the first one there "
            "again and go on from the last checkpoint, or begin another run"
        )


def _scored_response(
    row: Any, text: Mapping[str, Any], credit: tuple[str, ...], details: tuple[str, ...], at: str
) -> ScoredResponse:
    ids = _of(row, "token_ids", at)
    whole = isinstance(ids, list) and all(type(id_) is int for id_ in ids)
    _require(whole, f"{at}.token_ids", "a list of ids")
    if "response_ids" in text:
        sent = list(text["response_ids"])
        closed = text.get("ended") and ids[:-1] == sent  # and the token that ended the response
        _require(closed or ids == sent, f"{at}.token_ids", "those that were sent")
    spans: list[Span] = []
    if "response" in text and (credit or details):
        spans = _spans(_of(row, "spans", at), len(ids), len(text["response"]), f"{at}.spans")
    if row.get("unreadable") is not None:
        why = row["unreadable"]
        _require(isinstance(why, str) and why != "", f"{at}.unreadable", "a text")
        return ScoredResponse(math.nan, ids, spans, {}, unreadable=why)
    paid = _of(row, "token_scores", at)
    named = isinstance(paid, dict) and set(credit) <= set(paid)
    _require(named, f"{at}.token_scores", f"{', '.join(credit) or 'an object'}")
    numbers = {name: _numbers(paid[name], len(ids), f"{at}.token_scores") for name in credit}
    detailed: dict[str, Any] = {}
    for name in details:
        key, more = name.replace("-", "_"), int(name != "attention")
        detailed[key] = _numbers(_of(row, key, at), len(ids) + more, f"{at}.{key}")
    score = _numbers([_of(row, "sequence_score", at)], 1, f"{at}.sequence_score")[0]
    return ScoredResponse(score, ids, spans, numbers, **detailed)


def _spans(spans: Any, number: int, characters: int, at: str) -> list[Span]:
    _require(isinstance(spans, list) and len(spans) == number, at, f"{number} spans")
    for span in spans:
        pair = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
        inside = pair and 0 <= span[0] <= span[1] <= characters
        _require(inside, at, f"pairs of characters from 0 to {characters}")
    return [(start, end) for start, end in spans]


def _numbers(values: Any, number: int, at: str) -> list[float]:
    _require(isinstance(values, list) and len(values) == number, at, f"{number} numbers")
    for value in values:
        # What is NaN where the server is may come as null.
        _require(value is None or type(value) in (int, float), at, "numbers")
        if value is None or not abs(value) <= _LARGEST_FLOAT32:
            raise NumericError(
                f"the reward server answers {at} with NaN, an infinite number or null; expected "
                "finite ones: look for NaN weights, or serve the model in float32 or bfloat16"
            )
    return [float(value) for value in values]


def _of(container: Any, key: str, at: str = "the answer") -> Any:
    _require(isinstance(container, dict) and key in container, at, f"an object with {key}")
    return container[key]


def _require(holds: bool, at: str, expected: str) -> None:
    if not holds:
        raise ServerError(
            f"the reward server answers {at} with something else than {expected}; expected the "
            "answer of a `tokencredit serve` of this version: look at what listens there"
        )


def _problem(body: bytes) -> tuple[str, str]:
    """Type and message of an error; of another server's the beginning of what it says."""
    try:
        error = json.loads(body)["error"]
        return str(error["type"]), str(error["message"])
    except (ValueError, RecursionError, TypeError, KeyError):
        return "", body[:_READ_OF_AN_ERROR].decode("utf-8", "replace")
