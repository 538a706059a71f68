"""A question to a server over HTTP that is asked again until it is answered, with a limit to it.

What may pass (a server that is down, slow or full) is asked again, later and later, so often and no
oftener. What will not (a wrong token, a request that is refused) is an error at once.
"""

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException, IncompleteRead
from ssl import SSLCertVerificationError
from typing import Any

from tokencredit.errors import ConfigError, ServerError, TokenCreditError
from tokencredit.server.answers import told
from tokencredit.server.exchange import (
    Answer,
    checked_address,
    exchanged,
    failure_in_words,
    retry_after,
)

_LOG = logging.getLogger("tokencredit.client")
_STATUSES_THAT_PASS = (408, 429, 502, 503, 504)


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


@dataclass(frozen=True)
class _Passing:
    """What went wrong and may go right the next time; `wished` are seconds to wait."""

    cause: str
    wished: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True)
class Kind:
    """What is expected to listen at an address, and how its answers are understood.

    Attributes:
        name: for messages.
        program: that serves such a thing, likewise.
        refusal: the error that an answer stands for which will not change by asking again.
    """

    name: str
    program: str
    refusal: Callable[[Answer, RewardServer], TokenCreditError]


def json_answer(
    server: RewardServer,
    kind: Kind,
    method: str,
    path: str,
    body: Any = None,
    *,
    check: Callable[[Answer], None] | None = None,
) -> Any:
    """The JSON that a server answers, sooner or later.

    Args:
        server: where it is, and how patiently to ask it.
        kind: what it is expected to be.
        method: of HTTP.
        path: after the address.
        body: to send as JSON; None for nothing.
        check: looks at every answer that comes, a refusal too, and raises what it finds.

    Raises:
        ServerError: no answer in time, so often; or it is no JSON.
        TokenCreditError: as `kind` says of a refusal, and as `check` raises.
    """
    started, passing = server.clock(), _Passing("")
    sent = b"" if body is None else json.dumps(body).encode()
    for attempt in range(server.retries + 1):
        outcome = _answer_once(server, kind, method, path, sent, check)
        if isinstance(outcome, Answer):
            return _json(server, kind, outcome)
        passing = outcome
        if attempt < server.retries:
            _wait(server, kind, attempt, passing)
    times = f"{server.retries + 1} time{'s' * (server.retries > 0)}"
    raise ServerError(
        f"the {kind.name} at {server.address} was asked {times} in "
        f"{server.clock() - started:.0f} s and did not answer; the last time: {passing.cause}. "
        "Expected an answer: look whether it runs, then go on; or ask longer with more retries or "
        "a longer timeout"
    ) from passing.error


def _answer_once(
    server: RewardServer,
    kind: Kind,
    method: str,
    path: str,
    body: bytes,
    check: Callable[[Answer], None] | None,
) -> Answer | _Passing:
    headers = _headers(server, body)
    try:
        answer = exchanged(server.address, method, path, headers, body, timeout=server.timeout)
    except ServerError:
        raise
    except SSLCertVerificationError as error:
        raise ServerError(
            f"the certificate of the {kind.name} at {server.address} is not trusted "
            f"({getattr(error, 'verify_message', error)}); expected one of a known authority: "
            "name yours with SSL_CERT_FILE"
        ) from error
    except (OSError, IncompleteRead) as error:
        return _Passing(failure_in_words(error), error=error)
    except HTTPException as error:
        raise ServerError(
            f"what listens at {server.address} does not speak HTTP ({type(error).__name__}); "
            f"expected {kind.program}"
        ) from error
    if check is not None:
        check(answer)
    if answer.status == 200:
        return answer
    if answer.status in _STATUSES_THAT_PASS:
        wished = min(retry_after(answer), server.longest_wait)
        return _Passing(told(answer, token=server.token), wished)
    raise kind.refusal(answer, server)


def _headers(server: RewardServer, body: bytes) -> dict[str, str]:
    headers = {"Accept": "application/json"}
    if body:
        headers["Content-Type"] = "application/json"
    if server.token:
        headers["Authorization"] = f"Bearer {server.token}"
    return headers


def _json(server: RewardServer, kind: Kind, answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise ServerError(
            f"the {kind.name} at {server.address} answered {len(answer.body)} bytes that are no "
            f"JSON; expected those of {kind.program}: look at what listens there"
        ) from error


def _wait(server: RewardServer, kind: Kind, attempt: int, passing: _Passing) -> None:
    longest = min(server.longest_wait, server.backoff * 2.0 ** min(attempt, 60))
    if passing.wished:
        longest = min(longest, server.backoff)
    # A generator of its own: the seeded ones of a training run stay as they are.
    seconds = passing.wished + random.SystemRandom().uniform(0.0, longest)
    _LOG.warning(
        "the %s at %s: %s; asking again in %.1f s (%d of %d)",
        kind.name, server.address, passing.cause, seconds, attempt + 1, server.retries,
    )  # fmt: skip
    server.sleep(seconds)
