"""The application: its addresses, what each reads and answers, how errors look."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tokencredit.server.intake import Intake, Limits
from tokencredit.server.messages import (
    AboutAnswer,
    ErrorAnswer,
    Problem,
    PromptAndResponse,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoredText,
    ScoreRequest,
)
from tokencredit.server.metrics import Metrics
from tokencredit.server.page import PAGE_HEADERS, Filled, filled_form, page
from tokencredit.server.refusals import RefusedError, refusal_of
from tokencredit.server.rows import RowScorer, RowScores, TokenRow

_SCORE = (
    '{"texts": [{"prompt": "text or messages", "response": "text"}], "credit": ["uniform"]}, or '
    "`ids` with `prompt_ids` and `response_ids` in the place of `texts`"
)
_REWARD = '{"query": ["prompt and response"], "prompts": [...], "labels": [...]}'

Handler = Callable[[Request], Awaitable[Response]]


def reward_app(scorer: RowScorer, limits: Limits, *, token: str | None = None) -> FastAPI:
    """The application around a reward model.

    Args:
        scorer: the reward model.
        limits: what to take on.
        token: that a request must bear; None lets everyone ask.
    """
    metrics = Metrics()
    intake = Intake(scorer, limits, token=token, observe=metrics.batch)
    metrics.watch(lambda: intake.batcher.waiting)
    service = _Service(intake, metrics)
    app = FastAPI(title="tokencredit", docs_url=None, redoc_url=None, lifespan=service.running)
    for path, name, handler, request, answer in (
        ("/score", "score", service.score, ScoreRequest, ScoreAnswer),
        ("/get_reward", "get_reward", service.get_reward, RewardRequest, RewardAnswer),
    ):
        app.add_api_route(
            path,
            service.answering(name, handler),
            methods=["POST"],
            responses={200: {"model": answer}, "default": {"model": ErrorAnswer}},
            openapi_extra={"requestBody": _described(request)},
        )
    app.add_api_route(
        "/about",
        service.answering("about", service.about),
        methods=["GET"],
        responses={200: {"model": AboutAnswer}, "default": {"model": ErrorAnswer}},
    )
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/ready", service.ready, methods=["GET"])
    app.add_api_route("/metrics", service.numbers, methods=["GET"])
    app.add_api_route("/", service.empty_page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/", service.filled_page, methods=["POST"], include_in_schema=False)
    app.state.intake = intake
    app.add_exception_handler(HTTPException, _no_such_thing)
    return app


class _Service:
    """One server: its queue, its numbers, its answers."""

    def __init__(self, intake: Intake, metrics: Metrics) -> None:
        self.intake, self.scorer, self.metrics = intake, intake.scorer, metrics

    @asynccontextmanager
    async def running(self, _app: FastAPI) -> AsyncIterator[None]:
        """At its end, what was accepted is finished."""
        try:
            yield
        finally:
            await asyncio.to_thread(self.intake.close)

    def answering(self, name: str, handler: Handler) -> Handler:
        """The handler with the token asked for, the time limited and every error told as JSON."""

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            try:
                self.intake.require_token(
                    request.headers.get("authorization", "").encode("latin-1")
                )
                response = await self.intake.in_time(handler(request))
            except Exception as error:
                response = _told(
                    refusal_of(error, expected=_REWARD if name == "get_reward" else _SCORE)
                )
            self.metrics.answered(name, response.status_code, time.monotonic() - started)
            return response

        return answer

    async def score(self, request: Request) -> Response:
        """Sequence scores and token credit."""
        asked = ScoreRequest.model_validate_json(await self.intake.body(request))
        credit, details = self.intake.credit(asked.credit), self.intake.details(asked.details)
        if asked.texts:
            texts = asked.texts
            rows, scores = await self.intake.scored(
                len(texts), lambda: self.scorer.text_rows(texts, credit, details)
            )
        else:
            ids = asked.ids or []
            rows, scores = await self.intake.scored(
                len(ids), lambda: self.scorer.id_rows(ids, credit, details)
            )
        return _json(
            ScoreAnswer(scores=[_scored(*pair) for pair in zip(rows, scores, strict=True)])
        )

    async def get_reward(self, request: Request) -> Response:
        """Sequence scores in the shape that OpenRLHF asks for."""
        asked = RewardRequest.model_validate_json(await self.intake.body(request))
        if not asked.query:
            raise RefusedError(422, "RequestError", f"query is empty. Expected {_REWARD}")
        rows, scores = await self.intake.scored(
            len(asked.query), lambda: self.scorer.verbatim_rows(asked.query)
        )
        rewards = [row.sequence_score for row in scores]
        lengths = [float(row.length) for row in rows]
        return _json(
            RewardAnswer(rewards=rewards, scores=rewards, extra_logs={"reward_tokens": lengths})
        )

    async def about(self, _request: Request) -> Response:
        """What is served, and how much of it one request may ask for."""
        limits = self.intake.limits
        return _json(
            AboutAnswer(
                **self.scorer.about.model_dump(),
                max_texts=limits.queue_size,
                max_body_bytes=limits.max_body_bytes,
                request_timeout=limits.request_timeout,
            )
        )

    async def health(self) -> Response:
        """Whether the process can score at all."""
        alive = self.intake.batcher.alive
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    async def ready(self) -> Response:
        """Whether it would take another text now."""
        ready = self.intake.batcher.accepts
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def numbers(self) -> Response:
        """Counters, for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def empty_page(self) -> Response:
        """The form to try the reward model with."""
        return self.shown(Filled())

    async def filled_page(self, request: Request) -> Response:
        """The form with its heat map, or with what was wrong."""
        started, filled = time.monotonic(), Filled()
        try:
            filled = filled_form(await self.intake.in_time(self.intake.body(request)))
            self.intake.require_token(b"Bearer " + filled.token.encode())
            response = await self.intake.in_time(self.heatmap(filled))
        except Exception as error:
            response = self.shown(filled, refusal=refusal_of(error))
        self.metrics.answered("page", response.status_code, time.monotonic() - started)
        return response

    async def heatmap(self, filled: Filled) -> Response:
        """The form with its heat map."""
        text = PromptAndResponse(prompt=filled.prompt, response=filled.response)
        credit = self.scorer.credit_methods
        rows, scores = await self.intake.scored(1, lambda: self.scorer.text_rows([text], credit))
        return self.shown(filled, row=rows[0], scores=scores[0])

    def shown(
        self,
        filled: Filled,
        *,
        row: TokenRow | None = None,
        scores: RowScores | None = None,
        refusal: RefusedError | None = None,
    ) -> Response:
        """The page as HTML."""
        html = page(
            filled,
            asks_token=self.intake.asks_token,
            row=row,
            scores=scores,
            problem=None if refusal is None else refusal.message,
        )
        status, headers = (200, {}) if refusal is None else (refusal.status, refusal.headers)
        return HTMLResponse(html, status, {**PAGE_HEADERS, **headers})


def _scored(row: TokenRow, scores: RowScores) -> ScoredText:
    return ScoredText(
        sequence_score=scores.sequence_score,
        token_ids=row.response_ids,
        tokens=row.tokens,
        spans=row.spans,
        token_scores=scores.token_scores,
        prefix_scores=scores.prefix_scores,
        attention=scores.attention,
    )


def _json(answer: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), status, headers, "application/json")


def _told(refusal: RefusedError) -> Response:
    answer = ErrorAnswer(error=Problem(type=refusal.type, message=refusal.message))
    return _json(answer, refusal.status, dict(refusal.headers))


async def _no_such_thing(_request: Request, error: Exception) -> Response:
    """An address or method that is not there."""
    status = getattr(error, "status_code", 500)
    phrase = HTTPStatus(status).phrase
    message = f"{phrase}; expected POST /score, POST /get_reward, GET /about, GET /health, "
    message += "GET /ready, GET /metrics or GET /"
    headers = getattr(error, "headers", None) or {}
    return _told(RefusedError(status, phrase.replace(" ", ""), message, headers))


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """A request body as OpenAPI describes it."""
    return {"content": {"application/json": {"schema": model.model_json_schema()}}}
