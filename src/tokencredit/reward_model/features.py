"""A reward model that reads numbers about a text and no text (OpinPref)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from tokencredit.errors import ConfigError, DataError, ShapeError

_FORM = 1
_STEPS = 500


@dataclass(frozen=True)
class FeatureModel:
    """A score of standardised features: linear, or of one hidden layer.

        R = w · z,  or  R = v · tanh(W z + b),  z = (f − μ) / σ

    Attributes:
        mean: μ.
        deviation: σ, above 0.
        layers: w as a row; or W, b as a column, and v as a row.
    """

    mean: Float[Tensor, "features"]
    deviation: Float[Tensor, "features"]
    layers: tuple[Float[Tensor, "_rows _columns"], ...]

    def scores(self, features: Float[Tensor, "texts features"]) -> Float[Tensor, "texts"]:
        """Scores in nats, in float64.

        Raises:
            ShapeError: there are other than the features that the model knows.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ShapeError(
                f"features have shape {tuple(features.shape)}; expected {len(self.mean)} of each "
                "text"
            )
        standard = (features.double() - self.mean) / self.deviation
        return _scores(standard, self.layers)

    def as_json(self) -> str:
        """The model as JSON, every number as it is."""
        parts = {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}
        layers = [layer.tolist() for layer in self.layers]
        return json.dumps({"form": _FORM, **parts, "layers": layers})


def feature_model_of(values: Mapping[str, Any]) -> FeatureModel:
    """The model that `as_json` wrote.

    Args:
        values: as JSON reads them.

    Raises:
        DataError: they are of no such model.
    """
    try:
        mean, deviation = (
            torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "deviation")
        )
        layers = tuple(torch.tensor(one, dtype=torch.float64) for one in values["layers"])
        model = FeatureModel(mean, deviation, layers)
        known = values["form"] == _FORM and len(layers) in (1, 3) and bool((deviation > 0).all())
        if not known or not bool(model.scores(mean[None]).isfinite().all()):
            raise ValueError("it has another form")
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, ShapeError) as error:
        raise DataError(
            f"the file holds no model of features ({error}); expected what train-feature-model "
            "writes"
        ) from error
    return model


def fitted_feature_model(
    chosen: Float[Tensor, "pairs features"],
    rejected: Float[Tensor, "pairs features"],
    *,
    hidden: int = 0,
    ridge: float = 1e-3,
    seed: int = 0,
) -> FeatureModel:
    """The feature model under which preferences are likeliest, less a price of large weights.

        mean −log σ(R(f_w) − R(f_l)) + ρ/2 · Σ weights²

    Without a hidden layer this is logistic regression on the differences of features.

    Args:
        chosen: f_w, features of the preferred responses.
        rejected: f_l, of the others.
        hidden: units of the hidden layer; 0 for none.
        ridge: ρ, above 0, of standardised features.
        seed: of the first weights of a hidden layer.

    Raises:
        ConfigError: `ridge` is not above 0, or `hidden` below it.
        ShapeError: both sides differ in shape, or there is no pair.
        DataError: a feature is NaN or infinite.

    Source: Siledar et al. 2024, arXiv 2402.15473 (OpinPref), whose features are ratings of
    a language model and whose net is small: from memory, no code was found.

    >>> better = torch.tensor([[1.0], [2.0], [0.0]])
    >>> model = fitted_feature_model(better, better - 1, ridge=0.1)
    >>> bool((model.scores(better) > model.scores(better - 1)).all())
    True
    """
    if not ridge > 0 or hidden < 0:
        raise ConfigError(f"ridge is {ridge} and hidden {hidden}; expected above 0, and 0 or more")
    if chosen.shape != rejected.shape or chosen.ndim != 2 or not len(chosen):
        raise ShapeError(
            f"features have shapes {tuple(chosen.shape)} and {tuple(rejected.shape)}; expected as "
            "many of both answers of every pair, and at least one pair"
        )
    both = torch.cat([chosen, rejected]).double()
    if not bool(both.isfinite().all()):
        raise DataError("a feature is NaN or infinite; expected numbers: leave the row out")
    mean, deviation = both.mean(0), both.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    first, second = ((both - mean) / deviation).chunk(2)
    layers = [one.requires_grad_() for one in _first_layers(both.shape[1], hidden, seed)]
    optimizer = torch.optim.LBFGS(
        layers, max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        lead = _scores(first, tuple(layers)) - _scores(second, tuple(layers))
        price = 0.5 * ridge * torch.stack([one.square().sum() for one in layers]).sum()
        loss = softplus(-lead).mean() + price
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return FeatureModel(mean, deviation, tuple(one.detach() for one in layers))


def _first_layers(features: int, hidden: int, seed: int) -> list[Tensor]:
    if not hidden:
        return [torch.zeros(1, features, dtype=torch.float64)]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(hidden, features, generator=generator, dtype=torch.float64)
    last = torch.randn(1, hidden, generator=generator, dtype=torch.float64)
    bias = torch.zeros(hidden, 1, dtype=torch.float64)
    return [drawn / math.sqrt(features), bias, last / math.sqrt(hidden)]


def _scores(
    standard: Float[Tensor, "texts features"], layers: tuple[Tensor, ...]
) -> Float[Tensor, "texts"]:
    if len(layers) == 1:
        return (standard @ layers[0].T)[:, 0]
    first, bias, last = layers
    return (torch.tanh(standard @ first.T + bias[:, 0]) @ last.T)[:, 0]
