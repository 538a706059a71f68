"""What a request passes on its way in: token, size, time, a place in the queue."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from tokencredit.errors import ModelError
from tokencredit.server.batching import Batcher, BatchObserver
from tokencredit.server.refusals import RefusedError
from tokencredit.server.rows import RowScorer, RowScores, TokenRow

Awaited = TypeVar("Awaited")


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        max_batch_tokens: of one forward pass, padding included.
        max_wait_ms: milliseconds that a text waits for others to be scored with.
        queue_size: texts that may wait.
        max_body_bytes: of a request.
        request_timeout: seconds from request to answer.
    """

    max_batch_tokens: int = 16384
    max_wait_ms: float = 5.0
    queue_size: int = 1024
    max_body_bytes: int = 4 * 2**20
    request_timeout: float = 60.0


class Intake:
    """Who may ask, how much, and for how long; and the two threads that do the work.

    Args:
        scorer: the reward model.
        limits: what to take on.
        token: that a request must bear; None lets everyone ask.
        observe: told of every forward pass.
    """

    def __init__(
        self, scorer: RowScorer, limits: Limits, *, token: str | None, observe: BatchObserver
    ) -> None:
        self.scorer, self.limits = scorer, limits
        self._digest = None if token is None else _digest(token.encode())
        # Tokenizers are not to be used by two threads at once.
        self._encoder = ThreadPoolExecutor(1, "tokencredit-texts")
        self.batcher = Batcher(
            scorer.scores,
            max_batch_tokens=limits.max_batch_tokens,
            max_wait=limits.max_wait_ms / 1000,
            queue_size=limits.queue_size,
            observe=observe,
        )

    @property
    def asks_token(self) -> bool:
        """Whether requests must bear a token."""
        return self._digest is not None

    def close(self) -> None:
        """Finish what was accepted and stop the threads."""
        self.batcher.close()
        self._encoder.shutdown()

    def require_token(self, authorization: bytes) -> None:
        """Refuse whoever does not bear the token; takes as long for any wrong one."""
        scheme, _, given = authorization.partition(b" ")
        right = self._digest is None or hmac.compare_digest(_digest(given.strip()), self._digest)
        if not right or (self._digest is not None and scheme.lower() != b"bearer"):
            raise RefusedError(
                401,
                "Unauthorized",
                "no token, or not the right one; expected the header `Authorization: Bearer ...` "
                "with the token that the server was started with",
                {"WWW-Authenticate": "Bearer"},
            )

    async def body(self, request: Request) -> bytes:
        """The body of a request, no more of it than the limit."""
        limit, body = self.limits.max_body_bytes, bytearray()
        announced = request.headers.get("content-length", "0")
        # Python reads no number of thousands of digits.
        too_large = announced.isdecimal() and (len(announced) > 18 or int(announced) > limit)
        if not too_large:
            async for chunk in request.stream():
                body += chunk
                if too_large := len(body) > limit:
                    break
        if too_large:
            raise RefusedError(
                413,
                "BodyTooLarge",
                f"a body of more than {limit} bytes; expected at most that: send several "
                "requests, or start the server with a larger max_body_bytes",
            )
        return bytes(body)

    async def in_time(self, work: Awaitable[Awaited]) -> Awaited:
        """What is awaited, unless it takes too long."""
        seconds = self.limits.request_timeout
        try:
            return await asyncio.wait_for(work, seconds)
        except TimeoutError as error:
            raise RefusedError(
                504,
                "Timeout",
                f"no answer within {seconds:g} s; expected one: send fewer or shorter texts, or "
                "start the server with a larger request_timeout",
            ) from error

    def credit(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        """The credit methods of a request."""
        offered = self.scorer.credit_methods
        unknown = [name for name in asked or () if name not in offered]
        if unknown:
            raise RefusedError(
                422,
                "RequestError",
                f"credit names {unknown[0][:60]!a}; expected some of {', '.join(offered)}, "
                "which this server offers, or none of them for the sequence score alone",
            )
        return offered if asked is None else tuple(dict.fromkeys(asked))

    def details(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The details of a request."""
        offered = self.scorer.about.details if asked else []
        unknown = [name for name in asked if name not in offered]
        if unknown:
            raise RefusedError(
                422,
                "RequestError",
                f"details names {unknown[0][:60]!a}; expected some of "
                f"{', '.join(offered) or 'none'}, which this server offers",
            )
        return tuple(dict.fromkeys(asked))

    async def scored(
        self, number: int, rows: Callable[[], list[TokenRow]]
    ) -> tuple[list[TokenRow], list[RowScores]]:
        """Rows and their scores, once there was a place for them in the queue."""
        if number > self.limits.queue_size:
            raise RefusedError(
                422,
                "RequestError",
                f"{number} texts in one request; expected at most {self.limits.queue_size}, what "
                "the queue holds: send several requests",
            )
        self.batcher.reserve(number)
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._encoder, rows)
        except BaseException as error:
            self.batcher.release(number)
            if isinstance(error, ModelError):
                raise RefusedError(422, "ModelError", str(error)) from error
            raise
        return encoded, await asyncio.wrap_future(self.batcher.submit(encoded))


def _digest(token: bytes) -> bytes:
    """Equally long for any token, so that comparing tells nothing about its length."""
    return hashlib.sha256(token).digest()
