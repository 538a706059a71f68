"""The application: its addresses, what each reads and answers, how errors look."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tokencredit.server.answers import MODEL_HEADER
from tokencredit.server.batching import QueueClosedError
from tokencredit.server.encoding import characters, longest_text
from tokencredit.server.intake import Intake, Limits
from tokencredit.server.messages import (
    AboutAnswer,
    ErrorAnswer,
    PromptAndResponse,
    PromptAndResponseIds,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoredObjective,
    ScoredText,
    ScoreRequest,
)
from tokencredit.server.metrics import Metrics
from tokencredit.server.page import PAGE_HEADERS, Filled, Offer, filled_form, page
from tokencredit.server.refusals import RefusedError, refusal_of, told
from tokencredit.server.rows import RowScorer, RowScores, TokenRow
from tokencredit.server.turns import TookTooLongError
from tokencredit.server.visitors import Visitors

_SCORE = (
    '{"texts": [{"prompt": "text or messages", "response": "text"}], "credit": ["uniform"]}, or '
    "`ids` with `prompt_ids` and `response_ids` in the place of `texts`"
)
_REWARD = '{"query": ["prompt and response"], "prompts": [...], "labels": [...]}'

Handler = Callable[[Request], Awaitable[Response]]


def reward_app(
    scorer: RowScorer,
    limits: Limits,
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application around a reward model.

    Args:
        scorer: the reward model.
        limits: what to take on.
        token: that a request must bear; None lets everyone ask.
        hosts: names that requests without a token may be for, besides addresses in numbers; None
            allows any.
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
    if token is None:
        app.add_middleware(Visitors, hosts=hosts)
    app.add_exception_handler(HTTPException, _no_such_thing)
    return app


class _Service:
    """One server: its queue, its numbers, its answers."""

    def __init__(self, intake: Intake, metrics: Metrics) -> None:
        self.intake, self.scorer, self.metrics = intake, intake.scorer, metrics
        self.longest = longest_text(self.scorer.about.max_tokens)

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
                response = await handler(request)
            except (Exception, TookTooLongError) as error:
                response = told(
                    refusal_of(error, expected=_REWARD if name == "get_reward" else _SCORE)
                )
            except asyncio.CancelledError:
                # The server stops, and this was not done in the time that is left.
                response = told(refusal_of(QueueClosedError()))
            response.headers[MODEL_HEADER] = self.scorer.about.fingerprint
            self.metrics.answered(name, response.status_code, time.monotonic() - started)
            return response

        return answer

    async def score(self, request: Request) -> Response:
        """Sequence scores and token credit."""
        async with self.intake.body(request) as body:
            return await self.intake.in_time(request, self.scores_of(body))

    async def scores_of(self, body: bytes) -> Response:
        """The answer to a body of `POST /score`."""
        intake = self.intake
        asked = await intake.parsed(ScoreRequest, body, expected=_SCORE)
        credit, details = intake.credit(asked.credit), intake.details(asked.details)
        if asked.texts:
            rows, scores = await intake.scored(
                lambda texts: self.scorer.text_rows(texts, credit, details),
                asked.texts,
                size=characters,
                longest=self.longest,
            )
        else:
            rows, scores = await intake.scored(
                lambda ids: self.scorer.id_rows(ids, credit, details),
                asked.ids or [],
                size=_ids,
                longest=None,
            )
        pieces = _written(self.scorer.about.fingerprint, rows, scores)
        written = await intake.work(pieces, size=max(row.length for row in rows))
        return Response(written, media_type="application/json")

    async def get_reward(self, request: Request) -> Response:
        """Sequence scores in the shape that OpenRLHF asks for."""
        async with self.intake.body(request) as body:
            return await self.intake.in_time(request, self.rewards_of(body))

    async def rewards_of(self, body: bytes) -> Response:
        """The answer to a body of `POST /get_reward`."""
        asked = await self.intake.parsed(RewardRequest, body, expected=_REWARD)
        if not asked.query:
            raise RefusedError(422, "RequestError", f"query is empty. Expected {_REWARD}")
        rows, scores = await self.intake.scored(
            self.scorer.verbatim_rows, asked.query, size=len, longest=self.longest
        )
        _require_verdicts(scores)
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
                max_request_tokens=limits.max_request_tokens,
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
        ready = self.intake.accepts
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
            async with self.intake.body(request) as body:
                filled = filled_form(body)
                self.intake.require_token(b"Bearer " + filled.token.encode())
                response = await self.intake.in_time(request, self.heatmap(filled))
        except (Exception, TookTooLongError) as error:
            response = self.shown(filled, refusal=refusal_of(error))
        self.metrics.answered("page", response.status_code, time.monotonic() - started)
        return response

    async def heatmap(self, filled: Filled) -> Response:
        """The form with its heat maps."""
        offer = self.offer
        credit, objectives = filled.chosen(offer.credit, offer.objectives)
        credit = self.intake.credit(credit)
        self.require_objectives(objectives)
        texts = [PromptAndResponse(prompt=filled.prompt, response=one) for one in filled.responses]
        rows, scores = await self.intake.scored(
            lambda texts: self.scorer.text_rows(texts, credit),
            texts,
            size=characters,
            longest=self.longest,
        )
        _require_verdicts(scores)
        return self.shown(filled, rows=rows, scores=scores)

    @property
    def offer(self) -> Offer:
        """What the page lets one choose."""
        scorer = self.scorer
        return Offer(scorer.credit_methods, scorer.objectives, self.intake.asks_token)

    def require_objectives(self, asked: Sequence[str]) -> None:
        """Refuse a name that is none of an objective."""
        known = self.scorer.objectives
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise RefusedError(
                422,
                "RequestError",
                f"objective names {unknown[0][:60]!a}; expected some of "
                f"{', '.join(known) or 'none'}, which this reward model has",
            )

    def shown(
        self,
        filled: Filled,
        *,
        rows: Sequence[TokenRow] = (),
        scores: Sequence[RowScores] = (),
        refusal: RefusedError | None = None,
    ) -> Response:
        """The page as HTML."""
        problem = None if refusal is None else refusal.message
        html = page(filled, self.offer, rows=rows, scores=scores, problem=problem)
        status, headers = (200, {}) if refusal is None else (refusal.status, refusal.headers)
        return HTMLResponse(html, status, {**PAGE_HEADERS, **headers})


def _require_verdicts(scores: Sequence[RowScores]) -> None:
    """Refuse what has room for numbers alone where a judge's verdict cannot be read."""
    for number, row in enumerate(scores):
        if row.unreadable is not None:
            raise RefusedError(422, "VerdictError", f"text {number}: {row.unreadable}")


def _ids(text: PromptAndResponseIds) -> int:
    """To find the characters of an id takes as long as to cut some of them into tokens."""
    prompt = text.prompt_ids
    if prompt is None:  # a text, which is no more tokens than it has bytes
        return 16 * len(text.response_ids) + len(str(text.prompt).encode())
    return 16 * (len(prompt) + len(text.response_ids))


def _written(
    fingerprint: str, rows: Sequence[TokenRow], scores: Sequence[RowScores]
) -> Generator[None, None, bytes]:
    """A `ScoreAnswer` as JSON, a text at a time."""
    parts = []
    for row, said in zip(rows, scores, strict=True):
        parts.append(_scored(row, said).model_dump_json(exclude_none=True).encode())
        yield
    head = ScoreAnswer(fingerprint=fingerprint, scores=[]).model_dump_json().encode()
    return head.removesuffix(b"]}") + b",".join(parts) + b"]}"


def _scored(row: TokenRow, scores: RowScores) -> ScoredText:
    said = vars(scores) | {"objectives": None}
    if scores.unreadable is not None:
        said["sequence_score"] = None  # JSON has no NaN
    if scores.objectives:
        each = scores.objectives.items()
        said["objectives"] = {name: ScoredObjective(**vars(one)) for name, one in each}
    return ScoredText(token_ids=row.response_ids, tokens=row.tokens, spans=row.spans, **said)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


async def _no_such_thing(_request: Request, error: Exception) -> Response:
    """An address or method that is not there."""
    status = getattr(error, "status_code", 500)
    phrase = HTTPStatus(status).phrase
    message = f"{phrase}; expected POST /score, POST /get_reward, GET /about, GET /health, "
    message += "GET /ready, GET /metrics or GET /"
    headers = getattr(error, "headers", None) or {}
    return told(RefusedError(status, phrase.replace(" ", ""), message, headers))


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """A request body as OpenAPI describes it."""
    return {"content": {"application/json": {"schema": model.model_json_schema()}}}
