"""Which score is meant of a model that has one of each of several objectives.

A model that is asked for one objective, or for one score made of several, becomes one with one
output, and whatever reads reward models reads it: at the last token, at every prefix, or next to a
policy. The scores that it is made of stay there (`JoinedScores`), and one pass says all of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.heads import objective_names
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loaded_weights import head_modules

Join = Callable[[Float[Tensor, "*batch objectives"]], Float[Tensor, "*batch"]]
"""From the scores by each objective to one score."""


class JoinedScores(nn.Module):
    """The last layer of a head: scores by several objectives, and the one score made of them.

    Attributes:
        rows: the linear layer with a row of each objective.
        names: of the objectives.
        weights: of each in the sum that is the score; a buffer, None where it is no such sum.
        gate: makes the weights from the state at the end of a prompt, where they depend on it.
        join: makes the score where it is no weighted sum.
        every: whether it gives the scores by all objectives at the moment, as in `every_score`.
    """

    weights: Tensor | None

    def __init__(
        self,
        rows: nn.Linear,
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        gate: nn.Module | None = None,
        join: Join | None = None,
    ) -> None:
        super().__init__()
        self.rows, self.names, self.join, self.gate = rows, tuple(names), join, gate
        self.every = False
        found = None if weights is None else torch.tensor(weights, device=rows.weight.device)
        self.register_buffer("weights", found)

    def weights_of(
        self, outputs: Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, "batch objectives"] | None:
        """The weights of the objectives for each prompt; None where there are none.

        Args:
            outputs: at the end of each prompt, as `forward` gives them inside `every_score`.
        """
        if self.gate is not None:
            return outputs[:, len(self.names) :]
        if self.weights is None:
            return None
        return self.weights.expand(len(outputs), len(self.names))

    def joined(
        self,
        scores: Float[Tensor, "*batch objectives"],
        weights: Float[Tensor, "*#batch objectives"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """One score of those by each objective.

        Args:
            scores: by each objective.
            weights: of `weights_of`; None takes those that depend on no prompt.

        Raises:
            ModelError: the weights depend on the prompt, and are not given.
        """
        if self.gate is not None and weights is None:
            raise ModelError(
                "the reward model weighs its objectives by a gate that reads the end of the "
                "prompt, and is asked for scores of texts whose prompt is not known here; "
                "expected a command that knows it (score-tokens, explain, serve, train-policy, "
                "evaluate-reward-model), or fixed weights after '#'"
            )
        weights = self.weights if weights is None else weights
        if weights is not None:
            return (scores * weights).sum(-1)
        assert self.join is not None
        return self.join(scores)

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch outputs"]:
        """The score, in a last axis of length 1; inside `every_score` that by each objective.

        There the outputs of a gate come after them: the weights, were this the end of the prompt.
        """
        scores = self.rows(states)
        if not self.every:
            return self.joined(scores)[..., None].to(scores.dtype)
        return scores if self.gate is None else torch.cat([scores, self.gate(states)], dim=-1)


def joined_scores(model: nn.Module) -> JoinedScores | None:
    """What makes one score of several objectives in a model; None where its head gives just one."""
    return next((one for one in model.modules() if isinstance(one, JoinedScores)), None)


@contextmanager
def every_score(joined: JoinedScores | None) -> Iterator[None]:
    """Let a head give the scores by all objectives in the place of the one that they make.

    Args:
        joined: of the head; None changes nothing.
    """
    if joined is None:
        yield
        return
    joined.every = True
    try:
        yield
    finally:
        joined.every = False


def split_objectives(name_or_path: str | Path) -> tuple[str | Path, str]:
    """The name of a model, and what is asked of it: what stands after `#`, or an empty text.

    Args:
        name_or_path: a Hub id or a folder; a folder may have a `#` in its own name.

    >>> split_objectives("my/reward#helpful=0.7,short=0.3")
    ('my/reward', 'helpful=0.7,short=0.3')
    """
    name = str(name_or_path)
    if "#" not in name or Path(name).expanduser().is_dir():
        return name_or_path, ""
    place, _, asked = name.rpartition("#")
    return place, asked


def objective_weights(asked: str, names: Sequence[str]) -> list[float]:
    """How much each objective weighs in what is asked for.

    Args:
        asked: a name, or names with weights: `helpful=0.7,short=0.3`. Those not named weigh 0.
        names: of all objectives.

    Raises:
        ConfigError: there is no such objective, one is named twice, or a weight is no finite
            number.

    >>> objective_weights("short", ["helpful", "short"])
    [0.0, 1.0]
    >>> objective_weights("short=-2,helpful=0.5", ["helpful", "short"])
    [0.5, -2.0]
    """
    if asked in names:
        return [float(name == asked) for name in names]
    found: dict[str, float] = {}
    for part in asked.split(","):
        name, _, number = part.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if name not in names or name in found or not math.isfinite(weight):
            raise ConfigError(
                f"{part!r} of the objectives {asked!r} after the name of a model; expected one of "
                f"{', '.join(names)}, or each of some once with a number, as in '{names[0]}=0.7'"
            )
        found[name] = weight
    return [found.get(name, 0.0) for name in names]


def mean_of_all(config: Any) -> str:
    """What to ask of a model of several objectives for the mean of all.

    >>> from types import SimpleNamespace
    >>> mean_of_all(SimpleNamespace(num_labels=4, id2label=dict(enumerate("abcd"))))
    'a=0.25,b=0.25,c=0.25,d=0.25'
    """
    names = objective_names(config)
    return ",".join(f"{name}={1 / len(names)}" for name in names)


def keep_one_score(model: PreTrainedModel, asked: str, *, name: str) -> None:
    """Make the weighted sum of some outputs the only output of a model.

    The score of a prefix is then the weighted sum of its scores by the objectives, and so are
    differences of them.

    Args:
        model: a classifier whose head ends in a linear layer.
        asked: as `objective_weights` reads it.
        name: of the model, for messages.

    Raises:
        ConfigError: as `objective_weights`.
        ModelError: its outputs are two classes, or its head does not end in a layer with a row of
            each of them.
    """
    names = _outputs(model, asked, name=name)
    weights = objective_weights(asked, names)
    at, last = _last_layer(model, names, name=name)
    used = [output for output, weight in enumerate(weights) if weight]
    if len(used) > 1:
        own = [weights[output] for output in used]
        rows = _kept_rows(last, torch.eye(len(names))[used])
        joined = JoinedScores(rows, [names[output] for output in used], weights=own)
        model.set_submodule(at, joined)
    else:
        model.set_submodule(at, _kept_rows(last, torch.tensor([weights])))
    means = getattr(model.config, "rating_mean", None)
    say_one_output(model, asked)
    if isinstance(means, list):
        pairs = zip(weights, means, strict=True)
        model.config.rating_mean = math.fsum(weight * mean for weight, mean in pairs)


def join_scores(model: PreTrainedModel, join: Join, asked: str, *, name: str) -> None:
    """Make what a function makes of all outputs the only output of a model.

    Args:
        model: as `keep_one_score` takes it.
        join: acts on the last axis alone, so that prefixes are joined one by one.
        asked: what it is called.
        name: of the model, for messages.

    Raises:
        ModelError: as `keep_one_score`.
    """
    names = _outputs(model, asked, name=name)
    at, last = _last_layer(model, names, name=name)
    model.set_submodule(at, JoinedScores(last, names, join=join))
    say_one_output(model, asked)


def gate_scores(
    model: PreTrainedModel,
    gate: nn.Module,
    factors: Float[Tensor, "objectives outputs"],
    *,
    name: str,
) -> None:
    """Make the sum of all outputs, weighted by a gate, the only output of a model.

    Args:
        model: as `keep_one_score` takes it, which reads from left to right.
        gate: from states to weights.
        factors: of each output in each objective that is weighed.
        name: of the model, for messages.

    Raises:
        ModelError: as `keep_one_score`, or its head is more than one layer, so that its states are
            not those of the trunk.
    """
    names = _outputs(model, "a gate", name=name)
    at, last = _last_layer(model, names, name=name)
    if at != "score":
        raise ModelError(
            f"the head of {name!r} ends in {at!r}; expected a causal model with a linear head "
            "`score`, at whose prompts a gate can read"
        )
    model.set_submodule(at, JoinedScores(_kept_rows(last, factors), names, gate=gate))
    say_one_output(model, "gated")


@contextmanager
def gated_for_now(model: PreTrainedModel, gate: nn.Module) -> Iterator[None]:
    """Let the score of a model be the sum of its outputs weighted by a gate, and then no more.

    Args:
        model: of several objectives, with a linear head `score`, also in training.
        gate: from states to weights.
    """
    head, before = model.get_submodule("score"), dict(vars(model.config))
    outputs, names = model.num_labels, objective_names(model.config)
    rows: Any = head
    model.set_submodule("score", JoinedScores(rows, names, gate=gate))
    say_one_output(model, "gated")
    try:
        yield
    finally:
        model.set_submodule("score", head)
        vars(model.config).update(before)
        model.num_labels = outputs


def linear_head(model: PreTrainedModel, *, needed_by: str) -> nn.Linear:
    """The head of a causal model, which makes its scores of the states of the trunk alone.

    Args:
        model: a classifier.
        needed_by: the setting that asks for it, for the message.

    Raises:
        ModelError: it reads in both directions, or its head is not one linear layer `score`.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or not is_causal(model):
        raise ModelError(
            f"{type(model).__name__} is no causal model with a linear head `score`; expected one, "
            f"whose states can be read at every token, or no {needed_by}"
        )
    return head


def _outputs(model: PreTrainedModel, asked: str, *, name: str) -> tuple[str, ...]:
    """The names of the outputs, of which there is one or each is a score."""
    config = model.config
    names = objective_names(config) or tuple(map(str, config.id2label.values()))
    if config.num_labels == 2 and not objective_names(config):
        raise ModelError(
            f"{asked!r} is asked of {name!r}, whose outputs are the two classes "
            f"{', '.join(names)} and make one score; expected a model of several objectives, or no "
            "'#' after its name"
        )
    return names


def _last_layer(
    model: PreTrainedModel, names: Sequence[str], *, name: str
) -> tuple[str, nn.Linear]:
    """The layer that the head ends in, and where it stands in the model."""
    layers = [
        (f"{head}.{part}".rstrip("."), layer)
        for head, module in head_modules(model).items()
        for part, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    if not layers or layers[-1][1].out_features != len(names):
        raise ModelError(
            f"the head of {name!r} does not end in a linear layer with a row of each of "
            f"{', '.join(names)}; expected one, whose rows can be added up"
        )
    return layers[-1]


@torch.no_grad()
def _kept_rows(layer: nn.Linear, factors: Float[Tensor, "kept rows"]) -> nn.Linear:
    """A layer of which each row is a weighted sum of the rows of another."""
    kept = nn.Linear(layer.in_features, len(factors), bias=layer.bias is not None)
    factors = factors.to(layer.weight.device, torch.float64)
    for key, rows in list(layer.named_parameters(recurse=False)):
        total = torch.tensordot(factors, rows.double(), dims=1)
        setattr(kept, key, nn.Parameter(total.to(rows.dtype)))
    return kept


def say_one_output(model: PreTrainedModel, asked: str) -> None:
    """Let the configuration of a model say that it has one output.

    Args:
        model: whose head was changed so.
        asked: what the output is called.
    """
    config = model.config
    config.num_labels, model.num_labels = 1, 1
    config.id2label, config.label2id = {0: asked}, {asked: 0}
    for key in ("rating_mean", "rating_standard_deviation"):
        vars(config).pop(key, None)
