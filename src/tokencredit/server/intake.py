"""What a request passes on its way in: token, size, time, a place in the queue."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from tokencredit.errors import ModelError
from tokencredit.server.batching import Batcher, BatchObserver, QueueFullError
from tokencredit.server.encoding import PIECE, encoded_rows, parsed_request
from tokencredit.server.refusals import RefusedError
from tokencredit.server.rows import RowScorer, RowScores, TokenRow
from tokencredit.server.turns import Turns

Awaited = TypeVar("Awaited")
Result = TypeVar("Result")
Text = TypeVar("Text")
Asked = TypeVar("Asked", bound=BaseModel)

# What a thread that has nothing more to do has for its end.
_ENDING_SECONDS = 2.0
_SECONDS_OF_A_CHARACTER = 1e-5


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        max_batch_tokens: of one forward pass, padding included.
        max_wait_ms: milliseconds that a text waits for others to be scored with.
        queue_size: texts that may wait.
        queue_tokens: tokens that may wait before no more texts are taken in.
        max_request_tokens: of all texts of a request.
        max_body_bytes: of a request.
        queue_bytes: of the bodies of all requests that are not answered yet.
        body_timeout: seconds for the body of a request to come.
        encoding_timeout: seconds for rendering and cutting one text, or a few short ones.
        request_timeout: seconds from request to answer.
    """

    max_batch_tokens: int = 16384
    max_wait_ms: float = 5.0
    queue_size: int = 1024
    queue_tokens: int = 2**20
    max_request_tokens: int = 2**18
    max_body_bytes: int = 4 * 2**20
    queue_bytes: int = 128 * 2**20
    body_timeout: float = 20.0
    encoding_timeout: float = 10.0
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
        self.turns = Turns(seconds=limits.encoding_timeout, name="tokencredit-texts")
        self._bytes = 0
        self.batcher = Batcher(
            scorer.scores,
            max_batch_tokens=limits.max_batch_tokens,
            max_wait=limits.max_wait_ms / 1000,
            queue_size=limits.queue_size,
            queue_tokens=limits.queue_tokens,
            observe=observe,
        )

    @property
    def asks_token(self) -> bool:
        """Whether requests must bear a token."""
        return self._digest is not None

    @property
    def accepts(self) -> bool:
        """Whether another text would be taken in now."""
        room = self._bytes < self.limits.queue_bytes
        return room and self.batcher.accepts and not self.turns.lags

    def close(self, seconds: float = _ENDING_SECONDS) -> bool:
        """Finish what was accepted and stop the threads; False where that takes longer."""
        scored = self.batcher.close(seconds)
        return self.turns.close(seconds) and scored

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

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, no more of it than the limit; it counts until the answer."""
        body = bytearray()
        seconds = min(self.limits.body_timeout, self.limits.request_timeout)
        try:
            try:
                await asyncio.wait_for(self._read_into(body, request), seconds)
            except TimeoutError as error:
                raise RefusedError(
                    408,
                    "Timeout",
                    f"the body did not come within {seconds:g} s; expected all of it: send it at "
                    "once, or start the server with a larger body_timeout",
                ) from error
            yield bytes(body)
        finally:
            self._bytes -= len(body)

    async def _read_into(self, body: bytearray, request: Request) -> None:
        """Read a body until it is too large; what is announced as too large is not read."""
        limit = self.limits.max_body_bytes
        announced = request.headers.get("content-length", "0")
        # Python reads no number of thousands of digits.
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
            raise _too_large(limit)
        async for chunk in request.stream():
            body += chunk
            self._bytes += len(chunk)
            if len(body) > limit:
                raise _too_large(limit)
            if self._bytes > max(limit, self.limits.queue_bytes):
                raise QueueFullError(self.batcher.retry_after)

    async def in_time(self, request: Request, work: Awaitable[Awaited]) -> Awaited:
        """What is awaited, unless it takes too long or nobody waits for it any more.

        Args:
            request: whose body has been read.
            work: its answer.
        """
        seconds = self.limits.request_timeout
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
        try:
            done, _ = await asyncio.wait(
                {task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if task in done:
                return task.result()
            if gone in done:
                raise ClientDisconnect
            raise RefusedError(
                504,
                "Timeout",
                f"no answer within {seconds:g} s; expected one: send fewer or shorter texts, or "
                "start the server with a larger request_timeout",
            )
        finally:
            for each in (task, gone):
                each.cancel()

    async def work(self, pieces: Generator[None, None, Result], *, size: int) -> Result:
        """What is done in turns with the work of other requests.

        Args:
            pieces: of the work.
            size: of one of them, in characters to be cut into tokens.
        """
        seconds = size * _SECONDS_OF_A_CHARACTER
        return await asyncio.wrap_future(self.turns.submit(pieces, seconds=seconds))

    async def parsed(self, kind: type[Asked], body: bytes, *, expected: str) -> Asked:
        """A body as the request that it is."""
        limits = self.limits
        return await self.work(
            parsed_request(
                kind,
                body,
                expected=expected,
                most_texts=limits.queue_size,
                most_tokens=limits.max_request_tokens,
            ),
            # Reading takes a tenth of the time of cutting into tokens, or less.
            size=len(body) // 10,
        )

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
        self,
        encode: Callable[[Sequence[Text]], list[TokenRow]],
        texts: Sequence[Text],
        *,
        size: Callable[[Text], int],
        longest: int | None,
    ) -> tuple[list[TokenRow], list[RowScores]]:
        """Rows of texts and their scores, once there was a place for them in the queue.

        Args:
            encode: texts to rows.
            texts: of one request.
            size: of a text, in characters; what takes as long to read counts as many.
            longest: size of a text that is looked at; None looks at all.
        """
        self.batcher.reserve(len(texts))
        try:
            rows = await self.work(
                encoded_rows(
                    encode,
                    texts,
                    size=size,
                    vocabulary=self.scorer.vocabulary,
                    longest=longest,
                    most_tokens=self.limits.max_request_tokens,
                ),
                size=min(PIECE, sum(map(size, texts))),
            )
        except BaseException as error:
            self.batcher.release(len(texts))
            if isinstance(error, ModelError):
                raise RefusedError(422, "ModelError", str(error)) from error
            raise
        return rows, await asyncio.wrap_future(self.batcher.submit(rows))


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        413,
        "BodyTooLarge",
        f"a body of more than {limit} bytes; expected at most that: send several requests, or "
        "start the server with a larger max_body_bytes",
    )


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _digest(token: bytes) -> bytes:
    """Equally long for any token, so that comparing tells nothing about its length."""
    return hashlib.sha256(token).digest()
