"""What verl's configuration says to the reward manager, and what it may not say."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError
from tokencredit.names import meant_by
from tokencredit.scorers.source_settings import RewardSource, required_sources
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

VERLS_OWN_LOOPS = ("single_turn_agent", "tool_agent")


@dataclass(frozen=True)
class RewardSettings:
    """What stands under `reward.reward_kwargs`.

    Attributes:
        reward_model: a sequence-classification model, folder or Hub id.
        rewards: a list of mappings as in `RewardSource`, in the place of `reward_model`.
        combine: a mapping as in `CombinationSettings`: how several sources become one reward.
        credit: name of a credit method, or a mapping of `method` and its options as in
            `CreditSettings`.
        segments: a mapping as in `SegmentSettings`, for methods that need segments.
        reading: a mapping as in `ReadingSettings`: how the reward model reads texts. With the
            template "chat" it renders the messages of the data itself, with "plain" it is given the
            policy's text.
        dtype: of the reward model's weights.
        device: where it lies; "auto" is the GPU if the process sees one.
        micro_batch_size: responses per forward pass.
        turn_ends: a list of tokens that end a response, besides those that the policy's tokenizer
            and files declare.
        outcome_weight: of verl's own score (the custom reward function, or verl's rules for the
            data source), paid on the last token besides; 0 does not ask for it.
    """

    reward_model: str | None = None
    rewards: tuple[RewardSource, ...] = ()
    combine: CombinationSettings = field(default_factory=CombinationSettings)
    credit: CreditSettings = field(default_factory=CreditSettings)
    segments: SegmentSettings = field(default_factory=SegmentSettings)
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    dtype: str = "float32"
    device: str = "auto"
    micro_batch_size: int = 16
    turn_ends: tuple[str, ...] = ()
    outcome_weight: float = 0.0


def reward_settings(given: Mapping[str, Any]) -> RewardSettings:
    """The settings, checked.

    Raises:
        ConfigError: a name is unknown or missing, or a value cannot be.
    """
    known = {one.name: one for one in fields(RewardSettings)}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"reward.reward_kwargs has {name!r}; expected names out of {', '.join(known)}"
                f"{_moved(str(name)) or meant_by(str(name), known)}"
            )
    values = {str(name): _of_its_type(str(name), value, known) for name, value in given.items()}
    settings = RewardSettings(**values)
    required_sources(settings.reward_model, settings.rewards, combine=settings.combine)
    if settings.micro_batch_size < 1:
        raise ConfigError(
            f"reward.reward_kwargs.micro_batch_size is {settings.micro_batch_size}; expected at "
            "least 1"
        )
    return settings


_GROUPS: dict[str, type[Any]] = {
    "combine": CombinationSettings,
    "credit": CreditSettings,
    "segments": SegmentSettings,
    "reading": ReadingSettings,
}
_INNER: dict[str, type[Any]] = {**_GROUPS, "score": ScoreSettings}


def _moved(name: str) -> str:
    """Where a name of version 0.1.0 stands now."""
    now = {"credit_beta": "credit.beta", "attention_layer": "credit.layer"}
    return f"; {name!r} is now {now[name]!r}" if name in now else ""


def _group(name: str, value: Any, kind: type[Any]) -> Any:
    """A group of settings from a mapping; of credit also from the name of a method alone."""
    if isinstance(value, kind):
        return value
    if kind is CreditSettings and isinstance(value, str):
        return CreditSettings(value)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"reward.reward_kwargs.{name} is {value!r}; expected a mapping of settings"
        )
    kinds = get_type_hints(kind)
    for key in value:
        if key not in kinds:
            raise ConfigError(
                f"reward.reward_kwargs.{name} has {key!r}; expected names out of "
                f"{', '.join(kinds)}{meant_by(str(key), kinds)}"
            )
    inner = {}
    for key, one in value.items():
        group = kinds[key] if is_dataclass(kinds[key]) else _INNER.get(key)
        inner[key] = one if group is None or one is None else _group(f"{name}.{key}", one, group)
    return kind(**inner)


def _of_its_type(name: str, value: Any, known: Mapping[str, Field[Any]]) -> Any:
    """A value of the type that its setting has: text, a number, a list of texts, or a group."""
    if name == "rewards":
        return tuple(_group(f"rewards.{at}", one, RewardSource) for at, one in enumerate(value))
    if name in _GROUPS:
        return _group(name, value, _GROUPS[name])
    if name == "turn_ends":
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise ConfigError(
                f"reward.reward_kwargs.turn_ends is {value!r}; expected a list of tokens as texts"
            )
        return tuple(value)
    default = known[name].default
    wanted = str if default is MISSING or default is None else type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(
            f"reward.reward_kwargs.{name} is {value!r}, of type {type(value).__name__}; expected "
            f"{wanted.__name__}"
        )
    return value


def require_token_path(config: Any) -> None:
    """Stop where verl would sum the token scores or never ask for them.

    Raises:
        ConfigError: the agent loop is verl's own, the trainer the old one, or a reward model server
            runs and no custom reward function is named.
    """
    served = config.reward.reward_model
    if served.enable and config.reward.custom_reward_function.path is None:
        raise ConfigError(
            "reward.reward_model.enable is true and reward.custom_reward_function.path is not set: "
            "verl asks its own server for one number per response and never asks this manager; "
            "expected enable false, or path pkg://tokencredit.engines.verl_rewards and name "
            "no_outcome"
        )
    if served.enable and not served.enable_resource_pool:
        return
    loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
    if loop in VERLS_OWN_LOOPS:
        raise ConfigError(
            f"actor_rollout_ref.rollout.agent.default_agent_loop is {loop!r}, which pays the sum "
            "on the last token; expected 'tokencredit_single_turn' or 'tokencredit_tool', which "
            "agent_loop_config_path names, or a loop of your own that ends in token_scored"
        )
    if not config.trainer.get("use_v1", True):
        raise ConfigError(
            "trainer.use_v1 is false: verl's old trainer takes one number per response from an "
            "agent loop; expected true"
        )
