"""What settings of recipes have in common: how a field is marked, and groups that many share.

A settings class is a frozen dataclass whose groups are frozen dataclasses. The words of a setting
stand below its field, from where the command line takes them. On the command line and in YAML a
setting of a group is `group.setting`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tokencredit.errors import ConfigError
from tokencredit.names import nearest
from tokencredit.ranges import require_at_least, require_positive, require_share
from tokencredit.recipes.elsewhere import known_elsewhere


def setting(default: Any = MISSING, *, was: str = "", free: bool = False) -> Any:
    """A field of a settings class.

    Args:
        default: its value where nobody gives one; none makes it needed.
        was: its name in the flat layout of version 0.1.0, or several names, where that is neither
            its own name nor its group and its name.
        free: whether an interrupted run may go on with another value.
    """
    return field(default=default, metadata={"was": was, "free": free})


def group(kind: type, *, free: bool = False, **defaults: Any) -> Any:
    """A field that holds a group of settings, by default with its defaults or those named here."""
    return field(default_factory=partial(kind, **defaults), metadata={"free": free})


def all_settings(settings_class: type) -> Iterator[tuple[str, Field[Any]]]:
    """Every single setting of a class, those of groups by `group.setting`."""
    kinds = get_type_hints(settings_class)
    for one in fields(settings_class):
        kind = kinds[one.name]
        if is_dataclass(kind):
            for name, inner in all_settings(kind):  # type: ignore[arg-type]
                yield f"{one.name}.{name}", inner
        else:
            yield one.name, one


def free_settings(settings_class: type) -> tuple[str, ...]:
    """Names of the settings that an interrupted run may change, as `open_run_folder` takes them."""
    whole = [one.name for one in fields(settings_class) if one.metadata.get("free")]
    single = [name for name, one in all_settings(settings_class) if one.metadata.get("free")]
    return (*whole, *single)


def moved_settings(settings_class: type) -> dict[str, str]:
    """Names of the flat layout of version 0.1.0, each with the name that it has now."""
    moved: dict[str, str] = {}
    for name, one in all_settings(settings_class):
        moved |= dict.fromkeys(one.metadata.get("was", "").split(), name)
        if "." in name:
            moved.setdefault(name.replace(".", "_"), name)
            moved.setdefault(name.rpartition(".")[2], name)
    now = {one.name for one in fields(settings_class)}
    return {old: new for old, new in moved.items() if old not in now or old == new.split(".")[0]}


def flat_settings(settings_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings by `group.setting`, whether they came so or in mappings per group."""
    parts = (name.split(".")[:-1] for name, _ in all_settings(settings_class))
    groups = {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}

    def flat(inside: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if inside + name in groups and isinstance(value, Mapping):
                yield from flat(f"{inside}{name}.", value)
            else:
                yield inside + name, value

    return dict(flat("", values))


def settings_from(settings_class: type, values: Mapping[str, Any]) -> Any:
    """Settings of a class from some of them by name; the others have their defaults.

    Args:
        settings_class: a dataclass whose groups are dataclasses.
        values: by `group.setting`, or in mappings per group, as YAML has them.

    Raises:
        ConfigError: there is no such setting, or one that is needed is missing.
    """
    given = flat_settings(settings_class, values)
    known = {name for name, _ in all_settings(settings_class)}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"there is no setting {name!r}; expected one that --help lists"
                f"{setting_meant_by(settings_class, name)}"
            )
    try:
        return _built(settings_class, given)
    except TypeError as error:
        raise ConfigError(f"{error}; expected a value for it") from error


def setting_meant_by(settings_class: type, word: str) -> str:
    """The end of an error message: what a word that is no setting was meant to be, if one knows.

    Args:
        settings_class: whose settings there are.
        word: a name of the flat layout of version 0.1.0 or of another project, or a misspelt one.
    """
    names = [name for name, _ in all_settings(settings_class)]
    moved = moved_settings(settings_class)
    here = known_elsewhere(word, names)
    if here and here != moved.get(word):
        return f". In TRL or OpenRLHF it is {word!r}, here it is {here!r}"
    if word in moved:
        return f". The setting {word!r} is now {moved[word]!r}"
    if here == "":
        return f". {word!r} is a setting of TRL or OpenRLHF; this command has nothing like it"
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = nearest(word, [*names, *last], cutoff=0.75)
    if near is None or word in names:
        return ""
    return f". Did you mean {last.get(near, near)!r}?"


def require_known(settings_class: type, names: Iterable[str]) -> None:
    """Raise ConfigError at the first name that is no setting, with the one that was meant.

    Args:
        settings_class: whose settings there are.
        names: as they stand on the command line; what lies inside a setting, such as
            `architecture.hidden_size`, is left to its parser.
    """
    known = {name for name, _ in all_settings(settings_class)}
    groups = {name.rpartition(".")[0] for name in known} | {"config", "print_config", "help"}
    groups |= {name.partition(".")[0] for name in known}
    for name in names:
        inside = {name[:at] for at, letter in enumerate(name) if letter == "."}
        if name and name not in known | groups and not known & inside:
            raise ConfigError(
                f"there is no setting {name!r}; expected one that --help lists"
                f"{setting_meant_by(settings_class, name)}"
            )


def _built(settings_class: type, given: Mapping[str, Any]) -> Any:
    kinds = get_type_hints(settings_class)
    inside: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        first, _, rest = name.partition(".")
        inside.setdefault(first, {})[rest] = value
    return settings_class(
        **{
            name: _typed(kinds[name], values[""]) if "" in values else _built(kinds[name], values)
            for name, values in inside.items()
        }
    )


def _typed(kind: Any, value: Any) -> Any:
    """A value of YAML in the type of its setting: 1 as 1.0, lists as tuples, mappings as groups."""
    for one in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if is_dataclass(one) and isinstance(value, Mapping):
            return settings_from(one, value)  # type: ignore[arg-type]
        if one is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if get_origin(one) is tuple and isinstance(value, list | tuple):
            return tuple(_typed(get_args(one)[0], inner) for inner in value)
    return value


@dataclass(frozen=True)
class LoadingSettings:
    """How models and tokenizers are loaded."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Number type of the weights of frozen models, and of frozen weights under LoRA adapters."""
    attn_implementation: str | None = None
    """Attention implementation of transformers; None for its default."""
    pad_token: str | None = None
    """Token to pad with, if the tokenizer names none. A classifier in training may add a new one;
    everywhere else it must be in the vocabulary."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Leave it off unless you trust the author."""

    @property
    def of_frozen(self) -> dict[str, Any]:
        """What `load_model` takes of it for a model that is not trained."""
        return {name: value for name, value in vars(self).items() if name != "pad_token"}


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank adapter, trained instead of all weights."""

    rank: int = 0
    """Rank of the adapter; 0 trains all weights."""
    alpha: int = 32
    """Scale of the adapter."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Layers that get an adapter: the ends of their names, such as `[q_proj, v_proj]`, or
    `all-linear` for all linear layers except the head."""
    dropout: float = 0.0
    """Share of the inputs of the adapter that are set to zero in training."""
    quantization: Literal["4bit"] | None = None
    """`4bit` keeps the frozen weights under the adapter in 4 bits (QLoRA), which needs bitsandbytes
    and a GPU; None keeps them in `loading.dtype`."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "rank")
        require_share(self, "dropout", room="lora.")
        others = {"target_modules": "all-linear", "dropout": 0.0, "quantization": None}
        for name, default in others.items():
            value = getattr(self, name)
            if value != default and not self.rank:
                raise ConfigError(
                    f"lora.{name} is {value!r} with lora.rank 0, which trains all weights and no "
                    f"adapter; expected a lora.rank of at least 1, or {default!r}"
                )
        if not self.target_modules:
            raise ConfigError(
                "lora.target_modules is empty; expected names of layers, or 'all-linear'"
            )


@dataclass(frozen=True)
class TrainingSettings:
    """How a supervised recipe trains."""

    epochs: float = 1.0
    """Passes over the data."""
    max_steps: int | None = None
    """Optimiser steps, instead of `epochs`; None goes by epochs."""
    batch_size: int = 16
    """Rows per process and backward pass; pairs count once."""
    gradient_accumulation: int = 1
    """Backward passes per optimiser step."""
    learning_rate: float | None = None
    """Highest learning rate of AdamW, reached after the warm-up; a cosine takes it to 0. None takes
    the default of the recipe, which is ten times as high with LoRA."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` trains under autocast; weights stay float32."""
    gradient_checkpointing: bool = setting(False, free=True)
    """Compute activations again in the backward pass instead of keeping them: less memory, about a
    third more time, the same numbers."""
    log_every: int = setting(10, free=True)
    """Optimiser steps between two rows of `metrics.jsonl`; the first step has a row too."""
    evaluate_every: int | None = setting(None, free=True)
    """Optimiser steps between two evaluations on held-out data; None evaluates only at the end."""
    checkpoint_every: int = setting(100, free=True)
    """Optimiser steps between two checkpoints."""
    keep: int = setting(2, free=True)
    """How many checkpoints are kept during the run; all are removed when the model is written."""
    report_to: tuple[str, ...] = setting((), free=True)
    """Trackers that the Trainer of transformers knows, for example `tensorboard`, `wandb`, `mlflow`
    or `trackio`."""

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "batch_size", "gradient_accumulation", room="training.")
        require_share(self, "warmup", room="training.")
        counted = ("max_steps", "log_every", "evaluate_every", "checkpoint_every", "keep")
        require_at_least(self, 1, *counted, room="training.")


def settle_learning_rate(config: Any, *, of_all: float, of_lora: float | None = None) -> None:
    """Put the learning rate of a recipe where its settings name none.

    Adapters learn best at about ten times the rate of all weights (Schulman et al. 2025, "LoRA
    Without Regret").

    Args:
        config: settings with the group `training`, called while they are made.
        of_all: the rate for all weights.
        of_lora: the rate for adapters; None where the recipe has none.
    """
    if config.training.learning_rate is None:
        adapted = of_lora is not None and config.lora.rank
        settled = replace(config.training, learning_rate=of_lora if adapted else of_all)
        object.__setattr__(config, "training", settled)


@dataclass(frozen=True)
class HeldOutSettings:
    """Held-out rows, which are not trained on and by which the result is judged."""

    data: str | None = setting(None, was="eval_data")
    """Held-out data in the format of `data`; None holds out rows of `data`."""
    split: str | None = setting(None, was="eval_split")
    """Split of a dataset folder or id; None for that of the training data."""
    share: float = setting(0.05, was="held_out")
    """Share of the different prompts or texts that is held out where `evaluation.data` is None; 0
    holds out none."""

    def __post_init__(self) -> None:
        require_share(self, "share", room="evaluation.")


def require_gpu_if_quantized(lora: LoraSettings, device: str | None) -> None:
    """Raise ConfigError if weights in 4 bits are asked for on the CPU."""
    if lora.quantization is not None and device == "cpu":
        raise ConfigError(
            f"lora.quantization is {lora.quantization!r} with device 'cpu'; expected null there: "
            "bitsandbytes computes on a GPU"
        )


def require_trainable_device(device: str | None, *, name: str) -> None:
    """Refuse a device of training that nobody would take: Accelerate finds it.

    Args:
        device: as set.
        name: of the setting, for the message.

    Raises:
        ConfigError: it is neither `cpu` nor None.

    >>> require_trainable_device("cpu", name="device")
    """
    if device not in (None, "cpu"):
        raise ConfigError(
            f"{name} is {device!r}; expected 'cpu', or none for what Accelerate finds: "
            "CUDA_VISIBLE_DEVICES chooses among GPUs"
        )


def require_float32(loading: LoadingSettings, *, frozen: str | int | None) -> None:
    """Raise ConfigError if another precision is asked for where no model is frozen.

    Args:
        loading: the settings.
        frozen: what is loaded and not trained: a model beside the one in training, or the one under
            adapters; None, or empty, if there is nothing.
    """
    if loading.dtype != "float32" and not frozen:
        raise ConfigError(
            f"loading.dtype is {loading.dtype!r}; expected 'float32', in which weights are "
            "trained: training.mixed_precision 'bf16' computes in less"
        )
