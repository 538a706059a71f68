"""An endpoint of chat completions in this process, which answers by a function of the request."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXTS = re.compile(r'<response(?: label="\w+")?>\n(.*?)\n</response>', re.DOTALL)


def shown_texts(body: dict[str, Any]) -> list[str]:
    """The responses in a request, as they stand in their fences."""
    return TEXTS.findall(body["messages"][0]["content"])


def completion(body: dict[str, Any], text: str | None = "", **changes: Any) -> dict[str, Any]:
    """An answer in the form of OpenAI and vLLM."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "stop",
    }
    answer = {"id": "1", "object": "chat.completion", "model": body["model"]}
    return answer | {"choices": [choice | changes]}


def first_token(body: dict[str, Any], logprobs: dict[str, float], **changes: Any) -> dict[str, Any]:
    """An answer with log-probabilities of its one token."""
    listed = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in logprobs.items()]
    said = {"content": [listed[0] | {"top_logprobs": listed}]} if listed else {"content": []}
    return completion(body, next(iter(logprobs), ""), logprobs=said, finish_reason="length",
                      **changes)  # fmt: skip


class Endpoint:
    """Counts who asks at the same time, and keeps what was asked."""

    def __init__(self, reply: Callable[[dict[str, Any]], Any], *, delay: float = 0.0) -> None:
        self.reply, self.delay = reply, delay
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.asked]

    def serve(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.asked.append((self.path, dict(self.headers), body))
                    endpoint.now += 1
                    endpoint.most = max(endpoint.most, endpoint.now)
                time.sleep(endpoint.delay)
                made = endpoint.reply(body)
                with endpoint.lock:
                    endpoint.now -= 1
                status, headers, said = made if isinstance(made, tuple) else (200, {}, made)
                raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@contextmanager
def answering(reply: Callable[[dict[str, Any]], Any], *, delay: float = 0.0) -> Iterator[Endpoint]:
    """An endpoint for the time of a test.

    Args:
        reply: from a request to an answer, or to status, headers and answer.
        delay: seconds before each answer.
    """
    endpoint = Endpoint(reply, delay=delay)
    endpoint.serve()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()
