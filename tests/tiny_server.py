"""A server around a tiny reward model, for tests: in this process, or listening on a port."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import torch
import uvicorn
from fastapi import FastAPI
from tiny_models import tiny_model
from tiny_tokenizers import byte_level

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.settings import CreditSettings
from tokencredit.recipes.serving.offers import rewards_on_offer
from tokencredit.recipes.serving.served_model import ServedModel
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.server.app import reward_app
from tokencredit.server.intake import Limits
from tokencredit.server.listening import ConnectionLimits, bounded_config
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.segments import SegmentSettings


def tiny_served(tokenizer: Any = None, architecture: str = "gpt2", **changes: Any) -> ServedModel:
    """A random model and its tokenizer, with all credit methods that it allows."""
    tokenizer = tokenizer or byte_level(bos=True)
    model = tiny_model(architecture, vocab_size=len(tokenizer), max_position_embeddings=128)
    return served_model(model, tokenizer, **changes)


def served_model(model: Any, tokenizer: Any, **changes: Any) -> ServedModel:
    """A model that is served with all credit methods that it allows."""
    settings = changes.pop("reading", None)
    reading = reading_of(model, tokenizer, settings)
    rewards = loaded_rewards(
        [RewardSource("own", name="reward")],
        CreditSettings("terminal"),
        SegmentSettings(),
        CombinationSettings(),
        reading,
        known={"own": (model, reading)},
    )
    return ServedModel(model, reading, rewards_on_offer(rewards), **changes)


class GatedModel(ServedModel):
    """Scores nothing before the gate opens; says when it has begun."""

    def __init__(self, served: ServedModel) -> None:
        super().__init__(served.model, served.reading, served.credits)
        self.__dict__.update(gate=threading.Event(), begun=threading.Event())

    def scores(self, rows: Any) -> Any:
        self.begun.set()
        assert self.gate.wait(50)
        return super().scores(rows)


def break_model(served: ServedModel, text: str = "!") -> None:
    """The last token of this text now leads to NaN."""
    token = served.tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        served.model.get_input_embeddings().weight[token] = torch.nan


def asked(app: FastAPI, work: Callable[[httpx2.AsyncClient], Awaitable[Any]]) -> Any:
    """What `work` returns, given a client of the running application."""

    async def run() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            return await work(client)

    return asyncio.run(run())


def posted(app: FastAPI, path: str, body: Any, **keywords: Any) -> httpx2.Response:
    """The answer to one request."""
    if not isinstance(body, bytes):
        return asked(app, lambda client: client.post(path, json=body, **keywords))
    headers = {"Content-Type": "application/json", **keywords.pop("headers", {})}
    return asked(app, lambda client: client.post(path, content=body, headers=headers, **keywords))


def tiny_app(
    served: Any = None, *, token: str | None = None, hosts: Any = None, **limits: Any
) -> FastAPI:
    """The application around a tiny model; the limits are small unless given."""
    bounds = Limits(**{"queue_size": 64, **limits})
    return reward_app(served or tiny_served(), bounds, token=token, hosts=hosts)


@contextmanager
def listening(app: Any, port: int = 0, **limits: Any) -> Iterator[str]:
    """The address of the application on a free port of this machine, or on this one."""
    settings = bounded_config(app, "127.0.0.1", port, limits=ConnectionLimits(**limits))
    server = uvicorn.Server(settings)
    socket = settings.bind_socket()
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
