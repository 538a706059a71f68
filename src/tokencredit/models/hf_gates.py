"""A gate over the objectives of a reward model: what each weighs is read off the prompt.

The weights are known before the response, so that they commute with differences: token scores of
the objectives, times their weights, add up to those of the gated score, and no token is paid for
what comes after it.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ModelError
from tokencredit.models.heads import debiased, objective_names
from tokencredit.models.hf_files import file_of, found_place
from tokencredit.models.hf_objectives import gate_scores

_FILE = "gate.safetensors"


class PromptGate(nn.Module):
    """Weights of objectives, made of the state of the trunk at the end of a prompt.

        g(x) = s · softmax(MLP(h(x)) / τ)

    Args:
        features: width of the states.
        objectives: how many there are.
        width: of each hidden layer.
        layers: hidden layers, with ReLU; 0 makes a linear gate.
        dropout: of hidden layers in training.
        temperature: τ.

    Source: Wang et al. 2024, arXiv 2406.12845 (ArmoRM), stage 2 of their code: τ 10, and s, which
    is learnt and begins at 1.
    """

    def __init__(
        self,
        features: int,
        objectives: int,
        *,
        width: int = 1024,
        layers: int = 3,
        dropout: float = 0.2,
        temperature: float = 10.0,
    ) -> None:
        super().__init__()
        sizes = [features, *[width] * layers]
        parts: list[nn.Module] = []
        for before, after in pairwise(sizes):
            parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.network = nn.Sequential(*parts, nn.Linear(sizes[-1], objectives))
        self.scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch objectives"]:
        """The weights, positive, which add up to the scale."""
        return (self.network(states) / self.temperature).softmax(-1) * self.scale


def write_gate(
    gate: PromptGate,
    penalties: Float[Tensor, "objectives"],
    model: PreTrainedModel,
    folder: Path,
    *,
    against: str | None,
) -> None:
    """Put a gate beside its model, whose configuration then says that it has one.

    Args:
        gate: as it was trained.
        penalties: of `debiased`; zeros where nothing is taken off.
        model: of several objectives, whose configuration is written by whoever saves it.
        folder: that it is saved in.
        against: name of the objective that others shall not follow; None for none.
    """
    hidden = [part for part in gate.network if isinstance(part, nn.Linear)][:-1]
    model.config.score_gate = {
        "width": hidden[0].out_features if hidden else 0,
        "layers": len(hidden),
        "temperature": gate.temperature,
        "against": against,
    }
    state = {f"gate.{name}": tensor.contiguous() for name, tensor in gate.state_dict().items()}
    save_file({**state, "penalties": penalties.contiguous()}, folder / _FILE)


def keep_gated_score(model: PreTrainedModel, *, name: str | Path) -> None:
    """Make the gated sum of the outputs of a model its only output.

    Args:
        model: whose configuration says that it has a gate.
        name: of its folder or on the Hub.

    Raises:
        ModelError: the gate is not there, or fits another model.
    """
    said: dict[str, Any] = model.config.score_gate
    file = file_of(found_place(name, what="reward model"), _FILE)
    if file is None:
        raise ModelError(
            f"the configuration of {str(name)!r} has a gate and there is no {_FILE}; expected it "
            "beside the model: copy it there, or ask for an objective after '#'"
        )
    tensors = load_file(file)
    penalties = tensors.pop("penalties")
    names = objective_names(model.config)
    features = tensors["gate.network.0.weight"].shape[1]
    gate = PromptGate(
        features,
        len(penalties),
        width=said["width"],
        layers=said["layers"],
        temperature=said["temperature"],
    )
    try:
        gate.load_state_dict({key.removeprefix("gate."): own for key, own in tensors.items()})
    except RuntimeError as error:
        raise ModelError(
            f"{file} does not fit its description in config.json ({error}); expected both as "
            "`tokencredit train-gate` wrote them"
        ) from error
    factors = torch.eye(len(penalties))
    if said["against"] is not None:
        # Row k of the debiased head is row k less p_k times the row of what is taken off.
        factors = debiased(factors.T, penalties, against=names.index(said["against"])).T
    gate = gate.to(model.device).requires_grad_(False).eval()
    gate_scores(model, gate, factors, name=str(name))
