"""What the server counts, in the form that Prometheus reads."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one server, apart from those of any other in the process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "tokencredit_requests",
            "Requests answered",
            ["endpoint", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "tokencredit_request_seconds", "From request to answer", ["endpoint"], registry=registry
        )
        self._waiting = Gauge("tokencredit_waiting_rows", "Texts that wait", registry=registry)
        self._batch_rows = Histogram(
            "tokencredit_batch_rows", "Texts per forward pass", buckets=_ROWS, registry=registry
        )
        self._batch_seconds = Histogram(
            "tokencredit_batch_seconds", "Time of a forward pass", registry=registry
        )
        self._tokens = Counter(
            "tokencredit_tokens", "Tokens in forward passes", ["kind"], registry=registry
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Ask this how many rows wait."""
        self._waiting.set_function(waiting)

    def batch(self, rows: int, tokens: int, padded: int, seconds: float) -> None:
        """One forward pass."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)
        self._tokens.labels("text").inc(tokens)
        self._tokens.labels("padding").inc(padded - tokens)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """One request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """All of them, as `/metrics` answers."""
        return generate_latest(self._registry)
