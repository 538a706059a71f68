"""A reward model over HTTP: `tokencredit serve`.

    tokencredit serve --reward_model my/model --port 8000

Any engine that can post JSON gets sequence scores and token credit from it.
"""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.scorers.token_scores import CreditName, require_credit_name
from tokencredit.text.hf_rendering import Template

_IDLE_SECONDS = 75


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one server.

    Attributes:
        reward_model: Hub id or folder of a sequence-classification model with one or two outputs.
        credit_methods: ways from the score to token scores that are on offer; None offers all that
            the model allows.
        credit_beta: share of the score that `attention` spreads; the rest stays on the last token.
        attention_layer: layer that `attention` reads; -1 is the last.
        template: `chat` renders with the reward model's chat template, a plain prompt as one
            message of the user; `plain` joins prompt and response; `auto` is `chat` where the
            reward model has a chat template. A text without a prompt stands alone in any case.
        host: address to listen at; the default is reached from this machine alone.
        port: to listen at; 0 takes a free one.
        token_variable: name of the environment variable that holds the bearer token which requests
            must send; None lets everyone ask who reaches the port.
        max_batch_tokens: of one forward pass, padding included; also the longest row.
        max_wait_ms: milliseconds that a text waits for others to be scored with.
        queue_size: texts that may wait; beyond them a request is answered 429.
        max_body_bytes: of a request; beyond it is answered 413.
        request_timeout: seconds from request to answer; beyond it is answered 504.
        access_log: log every request: its address, path and status.
        dtype: of the weights.
        attn_implementation: of transformers; None for its default.
        device: to compute on; None for the CPU.
        pad_token: token to pad with, where the tokenizer names none.
        trust_remote_code: run code that comes with the model; off unless you trust its author.
    """

    reward_model: str
    credit_methods: tuple[CreditName, ...] | None = None
    credit_beta: float = 0.8
    attention_layer: int = -1
    template: Template = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    token_variable: str | None = None
    max_batch_tokens: int = 16384
    max_wait_ms: float = 5.0
    queue_size: int = 1024
    max_body_bytes: int = 4 * 2**20
    request_timeout: float = 60.0
    access_log: bool = False
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None
    device: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in self.credit_methods or ():
            require_credit_name(name)
        for setting in ("max_batch_tokens", "queue_size", "max_body_bytes"):
            if getattr(self, setting) < 1:
                raise ConfigError(f"{setting} is {getattr(self, setting)}; expected at least 1")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise ConfigError(f"max_wait_ms is {self.max_wait_ms}; expected 0 or more")
        if not 0 < self.request_timeout < float("inf"):
            raise ConfigError(
                f"request_timeout is {self.request_timeout}; expected a number of seconds above 0"
            )
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535")


@quiet_transformers()
def serve(config: ServeConfig) -> None:
    """Answer requests until the process is told to stop; then finish those that were accepted.

    Args:
        config: the settings.

    Raises:
        ConfigError: the extra `serve` is not installed, the token's variable is not set, or the
            address cannot be listened at.
        ModelError: the reward model or its tokenizer is not there or lacks what is needed.
        NumericError: the reward model gives NaN.
    """
    token = bearer_token(config)
    application = application_of(config, token=token)
    import uvicorn

    settings = uvicorn.Config(
        application,
        host=config.host,
        port=config.port,
        log_level="info" if config.access_log else "warning",
        access_log=config.access_log,
        server_header=False,
        # A connection that is closed while its client sends again loses the request.
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(config.request_timeout) + 5,
    )
    with _signals_that_only_stop():
        server = uvicorn.Server(settings)
        try:
            listening = settings.bind_socket()
        except SystemExit as error:
            raise ConfigError(
                f"nothing can listen at {config.host}, port {config.port}; expected a free port of "
                "an address of this machine: choose another `port`, or 0 for any"
            ) from error
        host, port = listening.getsockname()[:2]
        print(f"serving {config.reward_model} at http://{host}:{port}", flush=True)
        server.run(sockets=[listening])
    print("stopped", flush=True)


def application_of(config: ServeConfig, *, token: str | None = None) -> Any:
    """The application around the model that the settings name, tried once.

    Args:
        config: the settings.
        token: that requests must bear.

    Returns:
        A FastAPI application.

    Raises:
        ConfigError, ModelError, NumericError: as `serve`.
    """
    try:
        from tokencredit.recipes.serving.served_model import ServedModel, offered_credit
        from tokencredit.server.app import reward_app
        from tokencredit.server.intake import Limits
        from tokencredit.server.messages import PromptAndResponse
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; expected the extra `serve`: "
            "pip install 'tokencredit[serve]'"
        ) from error
    model, tokenizer = loaded_reward_model(
        config.reward_model,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device=config.device,
        pad_token=config.pad_token,
        trust_remote_code=config.trust_remote_code,
    )
    served = ServedModel(
        model,
        tokenizer,
        offered_credit(model, config.credit_methods),
        credit_beta=config.credit_beta,
        attention_layer=config.attention_layer,
        template=config.template,
        max_tokens=config.max_batch_tokens,
    )
    # What is wrong with the model shows now and not with the first request.
    trial = [PromptAndResponse(prompt="a", response=" a")]
    served.scores(served.text_rows(trial, served.credit_methods))
    limits = Limits(
        max_batch_tokens=config.max_batch_tokens,
        max_wait_ms=config.max_wait_ms,
        queue_size=config.queue_size,
        max_body_bytes=config.max_body_bytes,
        request_timeout=config.request_timeout,
    )
    return reward_app(served, limits, token=token)


def bearer_token(config: ServeConfig) -> str | None:
    """The token of the variable that the settings name; it is never printed.

    Raises:
        ConfigError: the variable is not set or empty.
    """
    if config.token_variable is None:
        if not _is_loopback(config.host):
            warnings.warn(
                f"the server listens at {config.host} and asks for no token: whoever reaches the "
                "port uses the model; name a variable that holds one with token_variable",
                TokenCreditWarning,
                stacklevel=2,
            )
        return None
    token = os.environ.get(config.token_variable, "").strip()
    if not token:
        raise ConfigError(
            f"token_variable names {config.token_variable!r}, which is not set or empty; expected "
            "the name of an environment variable that holds the token, not the token itself"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _signals_that_only_stop() -> Iterator[None]:
    """SIGINT and SIGTERM end in a normal exit: uvicorn raises them again once it has stopped."""
    kept = {number: signal.signal(number, _nothing) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _nothing(*_: object) -> None:
    pass
