"""Scores from a running `tokencredit serve`, with the standard library alone.

    rows = post_scores("http://reward-host:9000", [{"prompt": "It is", "response": " good."}])

What may pass (a server that is down, slow or full) is asked again, later and later, so often and no
oftener. What will not (a wrong token, a text that is too long, NaN) is an error at once.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, IncompleteRead
from ssl import SSLCertVerificationError
from typing import Any

from tokencredit.errors import ConfigError, ServerError
from tokencredit.server.answers import (
    MODEL_HEADER,
    About,
    ScoredResponse,
    about_of,
    fingerprint_of,
    refusal_of,
    require_same_model,
    scored_responses,
    told,
)
from tokencredit.server.exchange import (
    Answer,
    checked_address,
    exchanged,
    failure_in_words,
    retry_after,
)

_LOG = logging.getLogger("tokencredit.client")
_STATUSES_THAT_PASS = (408, 429, 502, 503, 504)
_Texts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RewardServer:
    """Where a reward model is served, and how patiently to ask it.

    Attributes:
        address: `http://host:port` or `https://host:port`, with a path at most.
        token: that it asks for; in no error and no log.
        timeout: seconds for one answer; more than the server's own `request_timeout`.
        retries: how often to ask again.
        backoff: before the n-th time, from 0, it waits a random time of up to backoff * 2**n
            seconds, so that many clients do not come back at once; or what the server asks for.
        longest_wait: seconds of one wait at most.
        sleep: waits; another one lets tests go on at once.
        clock: tells the seconds.

    Raises:
        ConfigError: the address is none, the token cannot be sent, or a number is out of range.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    timeout: float = 90.0
    retries: int = 10
    backoff: float = 1.0
    longest_wait: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", checked_address(self.address))
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigError(
                "the token of the reward server has characters that HTTP cannot send; expected "
                "printable ASCII"
            )
        if not (0 < self.timeout < float("inf") and self.retries >= 0):
            raise ConfigError(
                f"timeout is {self.timeout} and retries {self.retries}; expected a number of "
                "seconds above 0 and a number of at least 0"
            )
        if not (self.backoff >= 0 and 0 <= self.longest_wait < float("inf")):
            raise ConfigError(
                f"backoff is {self.backoff} and longest_wait {self.longest_wait}; expected "
                "seconds, 0 or more"
            )


def post_scores(
    address: str,
    texts: _Texts,
    credit: Sequence[str] = (),
    *,
    details: Sequence[str] = (),
    token: str | None = None,
    timeout: float = 90.0,
    retries: int = 10,
    backoff: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> list[ScoredResponse]:
    """Scores of texts by a served reward model, in one request.

    Args:
        address: `http://host:port` or `https://host:port`.
        texts: each with `prompt` and `response`, as `POST /score` takes them.
        credit: names of credit methods; none for sequence scores alone.
        details: "prefix-scores", "attention" or both.
        token: as in `RewardServer`, like the rest.
        timeout: seconds for one answer.
        retries: how often to ask again.
        backoff: seconds, doubled with every time.
        sleep: waits.

    Raises:
        ServerError: no answer in time, so often; or it is not what was asked for.
        ConfigError: the address is none, or the token is not the right one.
        DataError, ModelError, NumericError: the server says so of the texts, the model, a score.
    """
    server = RewardServer(address, token, timeout, retries, backoff, sleep=sleep)
    return scored(server, texts, credit=credit, details=details)


def scored(
    server: RewardServer,
    texts: _Texts,
    *,
    credit: Sequence[str] = (),
    details: Sequence[str] = (),
    about: About | None = None,
) -> list[ScoredResponse]:
    """Scores of any number of texts, or of token ids, by a served reward model.

    Args:
        server: to ask.
        texts: each with `prompt` and `response`, or all with `response_ids` and `prompt_ids` or
            `prompt`.
        credit: names of credit methods.
        details: names of what credit is made from.
        about: what the server said of itself: more than one request can hold goes in several, and
            all answers must be of this model. None sends one request, whichever model answers.

    Raises:
        ServerError: another model answers than before, or as `post_scores`.
        ConfigError, DataError, ModelError, NumericError: as `post_scores`.
    """
    found: list[ScoredResponse] = []
    if not texts:
        return found
    parts: Iterable[_Texts] = [texts]
    if about is not None:
        parts = parted(texts, about.max_texts, about.max_body_bytes, about.max_request_tokens)
    for part in parts:
        kind = "ids" if "response_ids" in part[0] else "texts"
        asked = {kind: list(part), "credit": list(credit)}
        if details:
            asked["details"] = list(details)
        known = None if about is None else about.fingerprint
        answer = _asked(server, "POST", "/score", json.dumps(asked).encode(), known)
        if known is not None:
            found_as = fingerprint_of(answer)
            require_same_model(found_as, fingerprint=known, address=server.address)
        found += scored_responses(answer, part, credit, details)
    return found


def about(server: RewardServer) -> About:
    """What a server serves, and how much of it one request may ask for.

    Raises:
        ServerError, ConfigError: as `post_scores`.
    """
    return about_of(_asked(server, "GET", "/about"))


def parted(
    texts: _Texts, most: int, most_bytes: int, most_tokens: int | None = None
) -> Iterator[_Texts]:
    """Texts in groups that a request can hold; one that is too long for any goes alone.

    Args:
        texts: of any number.
        most: texts of a group.
        most_bytes: of a group as JSON.
        most_tokens: of a group: of ids as many as there are, of texts no more than bytes; None for
            any number.

    >>> [len(group) for group in parted([{"response": "a"}] * 5, most=2, most_bytes=10_000)]
    [2, 2, 1]
    """
    first, size, tokens = 0, 0, 0
    for index, text in enumerate(texts):
        own = len(json.dumps(text)) + 2
        ids = len(text["prompt_ids"]) + len(text["response_ids"]) if "prompt_ids" in text else own
        # 300 bytes for what stands around the texts.
        full = index - first == most or size + own > most_bytes - 300
        full = full or (most_tokens is not None and tokens + ids > most_tokens)
        if index > first and full:
            yield texts[first:index]
            first, size, tokens = index, 0, 0
        size, tokens = size + own, tokens + ids
    if len(texts) > first:
        yield texts[first:]


@dataclass(frozen=True)
class _Passing:
    """What went wrong and may go right the next time; `wished` are seconds to wait."""

    cause: str
    wished: float = 0.0
    error: Exception | None = None


def _asked(
    server: RewardServer, method: str, path: str, body: bytes = b"", known: str | None = None
) -> Any:
    """The JSON that the server answers, sooner or later; of the model that is known, if one is."""
    started, passing = server.clock(), _Passing("")
    for attempt in range(server.retries + 1):
        outcome = _asked_once(server, method, path, body, known)
        if isinstance(outcome, Answer):
            return _json(server, outcome)
        passing = outcome
        if attempt < server.retries:
            _wait(server, attempt, passing)
    times = f"{server.retries + 1} time{'s' * (server.retries > 0)}"
    raise ServerError(
        f"the reward server at {server.address} was asked {times} in "
        f"{server.clock() - started:.0f} s and did not answer; the last time: {passing.cause}. "
        "Expected scores: look whether it runs, then go on; or ask longer with more retries or a "
        "longer timeout"
    ) from passing.error


def _asked_once(
    server: RewardServer, method: str, path: str, body: bytes, known: str | None
) -> Answer | _Passing:
    headers = _headers(server, body)
    try:
        answer = exchanged(server.address, method, path, headers, body, timeout=server.timeout)
    except ServerError:
        raise
    except SSLCertVerificationError as error:
        raise ServerError(
            f"the certificate of the reward server at {server.address} is not trusted "
            f"({getattr(error, 'verify_message', error)}); expected one of a known authority: "
            "name yours with SSL_CERT_FILE"
        ) from error
    except (OSError, IncompleteRead) as error:
        return _Passing(failure_in_words(error), error=error)
    except HTTPException as error:
        raise ServerError(
            f"what listens at {server.address} does not speak HTTP ({type(error).__name__}); "
            "expected a `tokencredit serve`"
        ) from error
    if known is not None:
        # Another model may refuse what the first one took: that is what has happened then.
        found = answer.headers.get(MODEL_HEADER.lower(), known)
        require_same_model(found, fingerprint=known, address=server.address)
    if answer.status == 200:
        return answer
    if answer.status in _STATUSES_THAT_PASS:
        wished = min(retry_after(answer), server.longest_wait)
        return _Passing(told(answer, token=server.token), wished)
    raise refusal_of(answer, address=server.address, token=server.token)


def _headers(server: RewardServer, body: bytes) -> dict[str, str]:
    headers = {"Accept": "application/json"}
    if body:
        headers["Content-Type"] = "application/json"
    if server.token:
        headers["Authorization"] = f"Bearer {server.token}"
    return headers


def _json(server: RewardServer, answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise ServerError(
            f"the reward server at {server.address} answered {len(answer.body)} bytes that are no "
            "JSON; expected those of `tokencredit serve`: look at what listens there"
        ) from error


def _wait(server: RewardServer, attempt: int, passing: _Passing) -> None:
    longest = min(server.longest_wait, server.backoff * 2.0 ** min(attempt, 60))
    if passing.wished:
        longest = min(longest, server.backoff)
    # A generator of its own: the seeded ones of a training run stay as they are.
    seconds = passing.wished + random.SystemRandom().uniform(0.0, longest)
    _LOG.warning(
        "the reward server at %s: %s; asking again in %.1f s (%d of %d)",
        server.address, passing.cause, seconds, attempt + 1, server.retries,
    )  # fmt: skip
    server.sleep(seconds)
