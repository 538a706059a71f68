"""Add users to a reward model that scores as a user would: `tokencredit describe-users`.

    tokencredit describe-users --reward_model my/users --data pairs.jsonl

Nothing is trained. The encoder of VPL (Poddar et al. 2024, arXiv 2408.10075) reads a description of
each user off pairs of the user, as training did for its own users, and `users.json` of the model
takes it. From then on `my/users#anna` scores as Anna would, wherever a reward model is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_loading import load_tokenizer, model_description, quiet_transformers
from tokencredit.models.hf_users import read_users, users_file, users_text
from tokencredit.models.users import MOST_PAIRS, PairSetEncoder, mean_description
from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.preference.pairs import PreferencePair
from tokencredit.ranges import require_positive
from tokencredit.recipes.reward_model.ensembles import several_heads
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.pair_columns import PairColumns
from tokencredit.recipes.reward_model.pair_data import different_pairs, read_pairs
from tokencredit.recipes.reward_model.states import states_of_pairs
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.run.run_folder import held, write_atomically
from tokencredit.recipes.settings import LoadingSettings, group
from tokencredit.recipes.training.models import classifier_to_train
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import Truncation

Pairs = dict[str, list[PreferencePair]]


@dataclass(frozen=True)
class UserPairColumns(PairColumns):
    """Names of the columns of pairs of users."""

    user: str = "user"
    """Who prefers, by a name or a number."""


@dataclass(frozen=True)
class DescribeUsersConfig:
    """Settings of one description of users."""

    reward_model: str
    """Folder of a reward model that was trained with `latent.size`; its `users.json` is written."""
    data: str | None = None
    """JSON-lines file, dataset folder or id, of pairs with who prefers; None for no pairs."""
    users: tuple[str, ...] = ()
    """Whom to describe; empty for everyone in the data. Who has no pair there is given the mean of
    the prior, a user of whom nothing is known."""
    replace: bool = False
    """Describe users anew who are known already; otherwise they are an error."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    columns: UserPairColumns = group(UserPairColumns)
    """Where the parts of a pair stand, and who prefers."""
    context_model: str | None = None
    """The model that training began with, whose states describe pairs; None takes it from where the
    reward model says that it was."""
    max_length: int | None = None
    """Most tokens of prompt and response; None for that of training."""
    batch_size: int = 32
    """Texts per forward pass."""
    loading: LoadingSettings = group(LoadingSettings)
    """How that model is loaded."""
    device: str | None = None
    """To compute on; None for the CPU."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "max_length", "batch_size")
        if self.data is None and not self.users:
            raise ConfigError(
                "data is None and users is empty; expected pairs of users, or the names of users "
                "to describe without any"
            )


@quiet_transformers()
def describe_users(config: DescribeUsersConfig) -> Path:
    """Describe users by their pairs, and write them into the folder of a reward model.

    Args:
        config: the settings.

    Returns:
        `users.json` of the reward model.

    Raises:
        DataError: the data are not there, no row can be used, or one cannot where that is an error.
        ModelError: the reward model knows no users or is no folder, or the model that its training
            began with is not there or is another one.
        ConfigError: a user is known already, or the model is too short for `max_length`.
        RunFolderError: the folder is in use, or cannot be written.
    """
    folder = Path(config.reward_model).expanduser()
    trained = model_description(config.reward_model)
    if getattr(trained.config, "score_users", None) is None or not folder.is_dir():
        raise ModelError(
            f"the reward model {config.reward_model!r} knows no users, or is not a folder here; "
            "expected one that `tokencredit train-reward-model` trained with latent.size"
        )
    pairs = _pairs_by_user(config)
    with held(folder):
        encoder, _, known = read_users(trained.config, name=config.reward_model)
        _require_strangers(config, list(pairs), list(known))
        described, counts = _described(config, trained, encoder, pairs)
        known |= described
        write_atomically(users_file(folder), users_text(known))
    _tell(counts, len(known), folder)
    return users_file(folder)


def _pairs_by_user(config: DescribeUsersConfig) -> Pairs:
    """The pairs of each user who is to be described, in their order; none for some."""
    found: Pairs = {user: [] for user in config.users}
    if config.data is None:
        return found
    left_out = config.dataset.collecting()
    pairs = load_pairs(
        config.data,
        split=config.split,
        **config.columns.arguments,
        limit=config.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    tell_left_out(left_out, None)
    for pair in pairs:
        user = str(pair.user)
        if not config.users or user in found:
            found.setdefault(user, []).append(pair)
    return found


def _require_strangers(config: DescribeUsersConfig, users: list[str], known: list[str]) -> None:
    """Raise ConfigError if a user would be described anew without being asked for."""
    again = [user for user in users if user in known]
    if again and not config.replace:
        raise ConfigError(
            f"{config.reward_model!r} knows {', '.join(again[:8])} already; expected other names, "
            "or replace=true to describe them anew by these pairs alone"
        )


def _described(
    config: DescribeUsersConfig, trained: Any, encoder: PairSetEncoder, pairs: Pairs
) -> tuple[dict[str, Float[Tensor, "size"]], dict[str, int]]:
    """The mean description of each user, and how many pairs it was read off."""
    rows: list[JudgedRow] = []
    states = torch.zeros(0, 2, encoder.features)
    if any(pairs.values()):
        rows, states = _states(config, trained, pairs, encoder.features)
    found, counts = {}, {}
    for user in pairs:
        own = [at for at, row in enumerate(rows) if row.user == user]
        found[user], counts[user] = mean_description(encoder, states[own]), len(own)
    return found, counts


def _states(
    config: DescribeUsersConfig, trained: Any, pairs: Pairs, features: int
) -> tuple[list[JudgedRow], Float[Tensor, "pairs 2 features"]]:
    """The pairs that say something, and the states by which they describe, as in training."""
    said: dict[str, Any] = trained.config.score_users
    name = config.context_model or said["context_model"]
    max_length = config.max_length or said.get("max_length", 512)
    model, _ = classifier_to_train(
        AutoModelForSequenceClassification,
        name,
        config.loading,
        max_length=max_length,
        **several_heads(said["width"], name="feature"),
    )
    width = model.config.get_text_config().hidden_size
    if width != features:
        raise ModelError(
            f"the states of {name!r} have {width} numbers, and users are described by {features}; "
            "expected the model that the training began with: name it as context_model"
        )
    reading = reading_of(trained, load_tokenizer(config.reward_model))
    truncation: Truncation = said.get("truncation", "prompt-start")
    rows = _rows(reading, pairs, max_length=max_length, truncation=truncation)
    if config.device is not None:
        model.to(config.device)
    size = config.batch_size
    return rows, states_of_pairs(model, rows, batch_size=size, needed_by="describe-users")


def _rows(
    reading: Reading, pairs: Pairs, *, max_length: int, truncation: Truncation
) -> list[JudgedRow]:
    """The pairs of all users as token ids, without those whose sides are then the same."""
    rows = [
        JudgedRow(both, pair.margin, user=user)
        for user, own in pairs.items()
        for pair, both in zip(
            own,
            read_pairs(reading, own, max_length=max_length, truncation=truncation) if own else (),
            strict=True,
        )
    ]
    return different_pairs(rows, attrgetter("responses"))


def _tell(counts: Mapping[str, int], known: int, folder: Path) -> None:
    """Say who was described by how many pairs."""
    for user, count in list(counts.items())[:8]:
        by = f"by {min(count, MOST_PAIRS)} pairs" if count else "by no pair, as the prior says"
        print(f"{user}: described {by}")
    print(f"{len(counts)} users described, {known} known: {users_file(folder)}")
