"""Reward models that score as a user would: what describes each user lies beside the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_files import file_of, found_place
from tokencredit.models.hf_objectives import say_one_output
from tokencredit.models.users import PairSetEncoder, UserDecoder, description_on_sphere

_WEIGHTS, _USERS = "users.safetensors", "users.json"


@dataclass(frozen=True)
class ContextReading:
    """How the pairs that describe a user become features.

    Attributes:
        context_model: whose last hidden states they are: what the training began with.
        max_length: most tokens of a prompt with an answer.
        truncation: what a longer row loses first.
    """

    context_model: str
    max_length: int
    truncation: str


def write_users(
    encoder: PairSetEncoder,
    decoder: UserDecoder,
    users: Mapping[str, Float[Tensor, "size"]],
    model: PreTrainedModel,
    folder: Path,
    *,
    reading: ContextReading,
) -> None:
    """Put what knows users beside its model, whose configuration then says so.

    Args:
        encoder: from pairs to descriptions.
        decoder: from texts and descriptions to scores.
        users: the mean description of each, by name.
        model: whose outputs describe texts; its configuration is written by whoever saves it.
        folder: that it is saved in.
        reading: of the pairs that describe a user.
    """
    model.config.score_users = {
        "size": decoder.user.in_features,
        "width": decoder.text.out_features,
        "context_features": encoder.features,
        **asdict(reading),
    }
    parts = {"encoder": encoder, "decoder": decoder}
    weights = {
        f"{name}.{key}": weight.detach().cpu().contiguous()
        for name, part in parts.items()
        for key, weight in part.state_dict().items()
    }
    save_file(weights, folder / _WEIGHTS)
    (folder / _USERS).write_text(users_text(users), encoding="utf-8")


def users_text(users: Mapping[str, Float[Tensor, "size"]]) -> str:
    """What `users.json` says of some users: one line.

    Args:
        users: the mean description of each, by name.

    >>> users_text({"anna": torch.tensor([0.5, -1.0])}).strip()
    '{"anna": [0.5, -1.0]}'
    """
    return json.dumps({name: numbers.tolist() for name, numbers in users.items()}) + "\n"


def users_file(folder: Path) -> Path:
    """Where the users of a model in this folder are described."""
    return folder / _USERS


def read_users(
    config: Any, *, name: str | Path
) -> tuple[PairSetEncoder, UserDecoder, dict[str, Float[Tensor, "size"]]]:
    """What `write_users` wrote.

    Args:
        config: of the model.
        name: of its folder or on the Hub.

    Raises:
        ModelError: a file is not there, or fits another model.
    """
    said: dict[str, Any] = config.score_users
    place = found_place(name, what="reward model")
    weights, users = (file_of(place, file) for file in (_WEIGHTS, _USERS))
    if weights is None or users is None:
        raise ModelError(
            f"the configuration of {str(name)!r} has users, and {_WEIGHTS} or {_USERS} is not "
            "there; expected both beside the model: copy them there"
        )
    sizes = {"width": said["width"], "size": said["size"]}
    encoder = PairSetEncoder(said["context_features"], **sizes)
    decoder = UserDecoder(config.num_labels, **sizes)
    try:
        nn.ModuleDict({"encoder": encoder, "decoder": decoder}).load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise ModelError(
            f"{weights} does not fit its description in config.json ({error}); expected both as "
            "`tokencredit train-reward-model` wrote them"
        ) from error
    named = json.loads(users.read_text(encoding="utf-8"))
    return encoder, decoder, {user: torch.tensor(numbers) for user, numbers in named.items()}


def keep_score_of_user(model: PreTrainedModel, user: str, *, name: str | Path) -> None:
    """Make the score that a user would give the only output of a model.

    The description of a user is known before the response, so that the score of a prefix depends on
    nothing after it, and differences of prefix scores add up.

    Args:
        model: whose configuration says that it knows users.
        user: one of them.
        name: of the model's folder or on the Hub.

    Raises:
        ConfigError: it does not know this user, or none is named.
        ModelError: as `read_users`.
    """
    _, decoder, users = read_users(model.config, name=name)
    if user not in users:
        some = list(users)[:8]
        raise ConfigError(
            f"the reward model {str(name)!r} scores as one of its {len(users)} users would, and "
            f"{user!r} is asked for; expected one of {', '.join(some)}"
            f"{', ...' if len(users) > len(some) else ''} after '#', as in '{name}#{some[0]}'"
        )
    as_user = decoder.of_user(description_on_sphere(users[user])).requires_grad_(False).eval()
    head = model.get_submodule("score")
    model.set_submodule("score", nn.Sequential(head, as_user.to(model.device)))
    say_one_output(model, user)
