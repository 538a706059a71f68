"""A reward model over HTTP: `tokencredit serve`.

    tokencredit serve --reward_model my/model --port 8000

Any engine that can post JSON gets sequence scores and token credit from it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings, with_method
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.ranges import require_at_least
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import LoadingSettings, group, setting
from tokencredit.scorers.hf_prefix_texts import made_of_prefixes
from tokencredit.scorers.source_settings import RewardSource, required_sources
from tokencredit.scorers.text_rewards import loaded_text_rewards, reader_of
from tokencredit.server.exchange import token_in
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@dataclass(frozen=True)
class LimitSettings:
    """What a request may ask of the server, and how long it may take."""

    max_batch_tokens: int = setting(16384, was="max_batch_tokens")
    """Most tokens of one forward pass, padding included; also the longest row."""
    max_wait_ms: float = 5.0
    """Milliseconds that a text may wait to be scored together with others."""
    queue_size: int = 1024
    """Texts that may wait; further requests are answered with 429."""
    queue_tokens: int = 2**20
    """Tokens of the texts that may wait; further requests are answered with 429."""
    max_request_tokens: int = 2**18
    """Most tokens of all texts of a request; a larger one is answered with 413."""
    max_body_bytes: int = 4 * 2**20
    """Longest body of a request; a longer one is answered with 413."""
    queue_bytes: int = 128 * 2**20
    """Bytes of the bodies of all requests that are not answered yet; further requests are answered
    with 429."""
    body_timeout: float = 20.0
    """Seconds until the body of a request must be there; later it is answered with 408."""
    encoding_timeout: float = 10.0
    """Seconds for rendering one text and cutting it into tokens, or a few short ones; after that it
    is answered with 422. A chat template that does not end is stopped by it."""
    request_timeout: float = 60.0
    """Seconds from a body to its answer; after that it is answered with 504."""

    def __post_init__(self) -> None:
        whole = ("max_batch_tokens", "queue_size", "queue_tokens", "max_request_tokens")
        require_at_least(self, 1, *whole, "max_body_bytes", "queue_bytes")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise ConfigError(f"max_wait_ms is {self.max_wait_ms}; expected 0 or more")
        _require_seconds(self, "body_timeout", "encoding_timeout", "request_timeout")


@dataclass(frozen=True)
class ConnectionSettings:
    """How many connections there may be, for how long, and for which names."""

    max_connections: int = 512
    """Connections at a time. Beyond them the one that has been quiet for longest is closed; if none
    is quiet, a request is answered with 503. Fewer where fewer files may be open."""
    header_timeout: float = 20.0
    """Seconds for the headers of a request to come, from its first byte or that of a connection."""
    idle_timeout: int = 75
    """Seconds that a connection is kept after an answer; more than those of the clients or of the
    proxy before it."""
    answer_timeout: float = 60.0
    """Seconds for a client to read an answer."""
    unread_bytes: int = 128 * 2**20
    """Bytes of answers that wait for their readers, together; beyond them the connection with the
    most is closed."""
    stop_timeout: float = 25.0
    """Seconds to finish what was accepted once the process is told to stop; five seconds later it
    ends in any case."""
    hosts: tuple[str, ...] = ()
    """Names of this machine that requests may be for, besides `localhost` and `host`, where the
    server listens at loopback and asks for no token."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_connections", "idle_timeout", "unread_bytes")
        _require_seconds(self, "header_timeout", "answer_timeout", "stop_timeout")


def _require_seconds(settings: Any, *names: str) -> None:
    """Raise ConfigError for a setting that is no number of seconds."""
    for name in names:
        seconds = getattr(settings, name)
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"{name} is {seconds}; expected a number of seconds above 0")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one server."""

    reward_model: str | None = None
    """Hub id or folder of a sequence-classification model with one or two outputs."""
    rewards: tuple[RewardSource, ...] = ()
    """Several sources of reward instead of `reward_model`, as in `train-policy`. Tokens are those
    of the first, a reward model by Hub id or folder, or of a judge where there is no reward
    model."""
    combine: CombinationSettings = group(CombinationSettings)
    """How several sources become one reward."""
    methods: tuple[str, ...] | None = setting(None, was="credit_methods")
    """Credit methods to offer; None offers all that the model allows in one pass and that need
    nothing else."""
    credit: CreditSettings = group(CreditSettings)
    """Options of the methods; `credit.method` is not read."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut, for methods that need segments."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    host: str = "127.0.0.1"
    """Address to listen at; the default can be reached from this machine alone."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    token_variable: str | None = None
    """Environment variable that holds the bearer token that requests must send; None lets everyone
    ask who reaches the port."""
    limits: LimitSettings = group(LimitSettings)
    """What a request may ask, and how long it may take."""
    connections: ConnectionSettings = group(ConnectionSettings)
    """How many connections there may be, and for how long."""
    access_log: bool = False
    """Log every request: its address, path and status."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    show_example: bool = False
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = None
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        sources = required_sources(self.reward_model, self.rewards, combine=self.combine)
        judged = not any(one.has_tokens for one in sources) and all(one.judge for one in sources)
        local = any(one.is_local_language_model for one in sources)
        if not sources[0].is_reward_model and not (judged and local):
            raise ConfigError(
                f"the first reward is {sources[0].model!r}; expected a reward model by Hub id or "
                "folder, whose tokens are paid, or judges alone, and among them a judge by Hub id "
                "or folder"
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
        ConfigError: the extra `serve` is not installed, the token's variable is not set, the
            address cannot be listened at, or a judge compares responses with each other.
        ModelError: the reward model or its tokenizer is not there or lacks what is needed.
        NumericError: the reward model gives NaN.
    """
    token = bearer_token(config)
    application = application_of(config, token=token)
    from tokencredit.server.listening import ConnectionLimits, listen

    named = ", ".join(one.model for one in _sources(config))
    taken = config.connections
    whole = listen(
        application,
        config.host,
        config.port,
        limits=ConnectionLimits(
            most=taken.max_connections,
            header_seconds=taken.header_timeout,
            idle_seconds=taken.idle_timeout,
            answer_seconds=taken.answer_timeout,
            unread_bytes=taken.unread_bytes,
            stop_seconds=taken.stop_timeout,
        ),
        announce=lambda host, port: print(f"serving {named} at http://{host}:{port}", flush=True),
        access_log=config.access_log,
    )
    print("stopped" if whole else "stopped before everything was finished", flush=True)
    if not whole:
        raise SystemExit(1)


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
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; expected the extra `serve`: "
            "pip install 'tokencredit[serve]'"
        ) from error
    loading = {**vars(config.loading), "device": config.device}
    sources = _sources(config)
    _require_one_at_a_time(sources)
    rewards = loaded_text_rewards(
        sources,
        with_method(config.credit, _first_method(config, sources)),
        config.segments,
        combine=config.combine,
        reading=config.reading,
        loading=loading,
    )
    model, reading = reader_of(rewards)
    example = ("(prompt)", " (response)") if config.show_example else None
    print_reading("reward model", reading, example=example)
    rewards = replace(rewards, credited=replace(rewards.credited, credit=config.credit))
    served = ServedModel(
        model,
        reading,
        rewards_on_offer(rewards, config.methods, loading=loading),
        layer=config.credit.layer,
        max_tokens=config.limits.max_batch_tokens,
    )
    served.tried()
    limits = Limits(**vars(config.limits))
    names = ("localhost", config.host, *config.connections.hosts)
    hosts = names if _is_loopback(config.host) else None
    return reward_app(served, limits, token=token, hosts=hosts)


def _require_one_at_a_time(sources: Sequence[RewardSource]) -> None:
    """Refuse judges whose verdict on a response depends on which others stand beside it."""
    for one in sources:
        asks = None if one.judge is None else one.judge.row().asks
        if one.judge is not None and asks in ("group", "list"):
            raise ConfigError(
                f"judge.setup of {one.label!r} is {one.judge.setup!r}, which compares the "
                "responses to a prompt with each other, and a server scores texts of all its "
                "clients together; expected a set-up that asks about one response at a time, by "
                "itself or against a reference, or the judge in the command that has the responses"
            )


def _first_method(config: ServeConfig, sources: Sequence[RewardSource]) -> str:
    """The method that sources are loaded for: one of prefixes, where a judge is to be asked so."""
    made = [name for name in config.methods or () if made_of_prefixes(CreditSettings(name))]
    return made[0] if made and any(one.judge for one in sources) else "terminal"


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
