"""A reward model over HTTP: `tokencredit serve`.

    tokencredit serve --reward_model my/model --port 8000

Any engine that can post JSON gets sequence scores and token credit from it.
"""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.methods import CreditSettings, credit_method, with_method
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.ranges import require_at_least
from tokencredit.recipes.settings import LoadingSettings, group, setting
from tokencredit.scorers.sources import RewardSource, required_sources
from tokencredit.scorers.text_rewards import loaded_text_rewards, reader_of
from tokencredit.server.exchange import token_in
from tokencredit.text.hf_reading import ReadingSettings
from tokencredit.text.segments import SegmentSettings

_IDLE_SECONDS = 75


@dataclass(frozen=True)
class LimitSettings:
    """What a request may ask of the server, and how long it may take."""

    max_batch_tokens: int = setting(16384, was="max_batch_tokens")
    """Most tokens of one forward pass, padding included; also the longest row."""
    max_wait_ms: float = 5.0
    """Milliseconds that a text waits for others to be scored with."""
    queue_size: int = 1024
    """Texts that may wait; beyond them a request is answered 429."""
    max_body_bytes: int = 4 * 2**20
    """Longest body of a request; beyond it is answered 413."""
    request_timeout: float = 60.0
    """Seconds from request to answer; beyond it is answered 504."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batch_tokens", "queue_size", "max_body_bytes")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise ConfigError(f"max_wait_ms is {self.max_wait_ms}; expected 0 or more")
        if not 0 < self.request_timeout < float("inf"):
            raise ConfigError(
                f"request_timeout is {self.request_timeout}; expected a number of seconds above 0"
            )


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one server."""

    reward_model: str | None = None
    """Hub id or folder of a sequence-classification model with one or two outputs."""
    rewards: tuple[RewardSource, ...] = ()
    """Several sources of reward in the place of `reward_model`, as in `train-policy`. Tokens are
    those of the first, a reward model by Hub id or folder."""
    combine: CombinationSettings = group(CombinationSettings)
    """How several sources become one reward."""
    methods: tuple[str, ...] | None = setting(None, was="credit_methods")
    """Credit methods that are on offer; None offers all of one pass that the model allows and that
    need nothing besides."""
    credit: CreditSettings = group(CreditSettings)
    """Options of the methods; `credit.method` is not read."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut, for methods that need segments."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is reached from this machine alone."""
    port: int = 8000
    """To listen at; 0 takes a free one."""
    token_variable: str | None = None
    """Name of the environment variable that holds the bearer token which requests must send; None
    lets everyone ask who reaches the port."""
    limits: LimitSettings = group(LimitSettings)
    """What a request may ask, and how long it may take."""
    access_log: bool = False
    """Log every request: its address, path and status."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    device: str | None = None
    """To compute on; None for the CPU."""

    def __post_init__(self) -> None:
        sources = required_sources(self.reward_model, self.rewards, combine=self.combine)
        if not sources[0].is_reward_model:
            raise ConfigError(
                f"the first reward is {sources[0].model!r}; expected a reward model by Hub id or "
                "folder, whose tokens are paid"
            )
        for name in self.methods or ():
            credit_method(name)
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
        timeout_graceful_shutdown=int(config.limits.request_timeout) + 5,
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
        named = ", ".join(one.model for one in _sources(config))
        print(f"serving {named} at http://{host}:{port}", flush=True)
        server.run(sockets=[listening])
    print("stopped", flush=True)


def _sources(config: ServeConfig) -> tuple[RewardSource, ...]:
    return required_sources(config.reward_model, config.rewards, combine=config.combine)


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
        from tokencredit.recipes.serving.offers import rewards_on_offer
        from tokencredit.recipes.serving.served_model import ServedModel
        from tokencredit.server.app import reward_app
        from tokencredit.server.intake import Limits
        from tokencredit.server.messages import PromptAndResponse
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; expected the extra `serve`: "
            "pip install 'tokencredit[serve]'"
        ) from error
    loading = {**vars(config.loading), "device": config.device}
    rewards = loaded_text_rewards(
        _sources(config),
        with_method(config.credit, "terminal"),
        config.segments,
        combine=config.combine,
        reading=config.reading,
        loading=loading,
    )
    reader = reader_of(rewards)
    rewards = replace(rewards, credited=replace(rewards.credited, credit=config.credit))
    served = ServedModel(
        reader.model,
        reader.reading,
        rewards_on_offer(rewards, config.methods, loading=loading),
        layer=config.credit.layer,
        max_tokens=config.limits.max_batch_tokens,
    )
    # What is wrong with the model shows now and not with the first request.
    trial = [PromptAndResponse(prompt="a", response=" a")]
    served.scores(served.text_rows(trial, served.credit_methods))
    limits = Limits(**vars(config.limits))
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
    return token_in(config.token_variable, setting="token_variable")


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
