"""What a request that fails is told: a status, a type and a message. Never a traceback."""

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tokencredit.errors import (
    ConfigError,
    DataError,
    NumericError,
    ShapeError,
    TokenCreditError,
)
from tokencredit.server.batching import QueueClosedError, QueueFullError
from tokencredit.server.messages import ErrorAnswer, Problem, problems
from tokencredit.server.turns import TookTooLongError

_LOG = logging.getLogger("tokencredit.server")


@dataclass(eq=False)
class RefusedError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        type: name of the error.
        message: what came, what was expected, how to mend it.
        headers: to answer with.
    """

    status: int
    type: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


def told(refusal: RefusedError) -> Response:
    """It as an answer."""
    answer = ErrorAnswer(error=Problem(type=refusal.type, message=refusal.message))
    body = answer.model_dump_json()
    return Response(body, refusal.status, dict(refusal.headers), "application/json")


def refusal_of(
    error: BaseException, *, expected: str = "what the documentation shows"
) -> RefusedError:
    """The answer to whatever went wrong.

    What was not foreseen is logged by its type and place, never with its message, which may hold
    a text of the request, and the client learns no more than that it happened.

    Args:
        error: what was raised.
        expected: what the body of the request should have been.
    """
    match error:
        case RefusedError():
            return error
        case ValidationError():
            return RefusedError(422, "RequestError", problems(error, expected))
        case DataError() | ConfigError() | ShapeError():
            return RefusedError(422, type(error).__name__, str(error))
        case NumericError():
            _LOG.error("a score is NaN or infinite")
            return RefusedError(500, "NumericError", str(error))
        case TokenCreditError():
            _LOG.error("%s while scoring", type(error).__name__)
            return RefusedError(500, type(error).__name__, str(error))
        case QueueFullError():
            return RefusedError(
                429,
                "QueueFull",
                "as many texts wait as the queue holds; expected fewer at a time: try again after "
                f"{error.retry_after} s",
                {"Retry-After": str(error.retry_after)},
            )
        case QueueClosedError():
            return RefusedError(
                503,
                "Stopping",
                "the server is stopping; expected requests before that: try another server, or "
                "again when it is back",
                {"Retry-After": "5"},
            )
        case ClientDisconnect():
            return RefusedError(
                400, "ClientDisconnect", "the connection was closed before the answer"
            )
        case TookTooLongError():
            _LOG.error("a text took longer than limits.encoding_timeout to be rendered or cut")
            return RefusedError(
                422,
                "EncodingTimeout",
                "a text took too long to be rendered and cut into tokens; expected less than "
                "limits.encoding_timeout: look whether the chat template ends for it, or shorten "
                "it",
            )
    place = "".join(traceback.format_tb(error.__traceback__))
    _LOG.error("%s, not foreseen, at\n%s", type(error).__name__, place)
    return RefusedError(
        500, "InternalError", "something that was not foreseen; the server's log says where"
    )
