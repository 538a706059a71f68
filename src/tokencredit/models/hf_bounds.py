"""Reward models with what their data say of each direction of their states, and scores by it."""

import math
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.bounds import PessimisticScore, whitening
from tokencredit.models.hf_files import file_of, found_place
from tokencredit.models.hf_objectives import linear_head

_FILE = "covariance.safetensors"
PESSIMISTIC = "pessimistic"
"""What is asked for after the name of a model, with `=` and the coefficient."""


def write_covariance(
    covariance: Float[Tensor, "width width"], reference: Float[Tensor, "width"], folder: Path
) -> None:
    """Put what data say of each direction beside a model.

    Args:
        covariance: of `difference_covariance`.
        reference: features that cost nothing.
        folder: of the model.
    """
    save_file(
        {"covariance": covariance.double().contiguous(), "reference": reference.contiguous()},
        folder / _FILE,
    )


def pessimism_asked(asked: str) -> float | None:
    """The coefficient in what is asked of a model; None where something else is asked.

    Args:
        asked: what stands after `#`, such as `pessimistic=0.5`.

    Raises:
        ConfigError: there is no number, or one below 0.

    >>> pessimism_asked("pessimistic=0.5"), pessimism_asked("helpful")
    (0.5, None)
    """
    name, _, number = asked.partition("=")
    if name != PESSIMISTIC:
        return None
    try:
        coef = float(number)
    except ValueError:
        coef = math.nan
    if not 0 <= coef < math.inf:
        raise ConfigError(
            f"{asked!r} after the name of a model; expected '{PESSIMISTIC}=' and a number from 0"
        )
    return coef


def keep_pessimistic_score(model: PreTrainedModel, coef: float, *, name: str | Path) -> None:
    """Make the pessimistic score the score of a model.

    Args:
        model: causal, with a linear head of one output.
        coef: β of `PessimisticScore`.
        name: of its folder or on the Hub.

    Raises:
        ModelError: it has no linear head of one output, or no covariance lies beside it.
    """
    head = linear_head(model, needed_by=f"'#{PESSIMISTIC}'")
    file = file_of(found_place(name, what="reward model"), _FILE)
    if file is None or head.out_features != 1:
        raise ModelError(
            f"{str(name)!r} has {head.out_features} output(s), and {_FILE} is "
            f"{'not there' if file is None else 'there'}; expected one output and what "
            "`tokencredit train-reward-model --bound.ridge 1` writes beside its model"
        )
    tensors = load_file(file)
    whitened = whitening(tensors["covariance"]).float()
    bounded = PessimisticScore(head, whitened, tensors["reference"].float(), coef=coef)
    model.set_submodule("score", bounded.to(head.weight.device))
