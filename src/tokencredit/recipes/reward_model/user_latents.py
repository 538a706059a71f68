"""Training of scores that depend on who judges, by a description read off other pairs of the user.

Follows VPL (Poddar et al. 2024, arXiv 2408.10075): an encoder turns pairs of a user into a normal
distribution, a draw from it stands beside what the model makes of a text, and the loss is that of
preferences with the price of the distribution's distance to the prior. Departures from their code:
(1) descriptions have one length in training and in use; (2) a pair is never shown for itself;
(3) the price is constant, where theirs goes in cycles; (4) the states that pairs are shown by are
standardised, and bounds are smooth. As there, these states are those of the model that training
begins with, and stay.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import DataError
from tokencredit.models.hf_objectives import linear_head
from tokencredit.models.hf_users import ContextReading, write_users
from tokencredit.models.users import (
    PairSetEncoder,
    UserDecoder,
    description_on_sphere,
    mean_description,
)
from tokencredit.recipes.reward_model.examples import JudgedRow, judgements_of
from tokencredit.recipes.reward_model.head_settings import LatentSettings
from tokencredit.recipes.reward_model.states import states_of_pairs
from tokencredit.reward_model.losses.mixtures import kl_to_standard_normal
from tokencredit.reward_model.objectives import Judgements
from tokencredit.scorers.hf_fractions import counted_scores


class UserLatents(nn.Module):
    """An encoder of users and a decoder of scores, in training with the model.

    Args:
        model: as it begins, with outputs that describe a text.
        settings: of descriptions.
        rows: pairs to learn from, with who prefers.
        loss_of_scores: of the scores of a batch.
        batch_size: texts per forward pass, where states are asked for before the training.

    Raises:
        DataError: a user has no second pair.
        ModelError: the model has no linear head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: LatentSettings,
        rows: Sequence[JudgedRow],
        loss_of_scores: Callable[[Judgements], Float[Tensor, ""]],
        *,
        batch_size: int,
    ) -> None:
        super().__init__()
        head = linear_head(model, needed_by="latent.size")
        self.settings, self.loss_of_scores = settings, loss_of_scores
        sizes = {"width": settings.width, "size": settings.size}
        self.encoder = PairSetEncoder(head.in_features, **sizes)
        self.decoder = UserDecoder(head.out_features, **sizes)
        self.pairs_of = pairs_by_user(rows)
        self.states = states_of_pairs(model, rows, batch_size=batch_size, needed_by="latent.size")
        self.encoder.standardise(self.states)
        self.users_of = [str(row.user) for row in rows]

    def columns(self, _rows: Sequence[JudgedRow], indices: Sequence[int]) -> dict[str, Tensor]:
        """The numbers of the rows of a batch."""
        return {"rows": torch.tensor(indices)}

    def shown(
        self, rows: Int[Tensor, "pairs"]
    ) -> tuple[Float[Tensor, "pairs others 2 width"], Bool[Tensor, "pairs others"]]:
        """The states of some other pairs of the same users, drawn anew, and which are there.

        A pair that was always shown with the same others could be known by them and remembered.

        Args:
            rows: the numbers of the pairs.
        """
        drawn = [
            drawn_others(row, self.pairs_of[self.users_of[row]], self.settings.pairs)
            for row in rows.tolist()
        ]
        states = nn.utils.rnn.pad_sequence([self.states[one] for one in drawn], batch_first=True)
        there = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in drawn], batch_first=True)
        return states.to(rows.device), there.bool().to(rows.device)

    def forward(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "texts sequence"],
        attention_mask: Int[Tensor, "texts sequence"],
        counted: Bool[Tensor, "texts sequence"],
        rows: Int[Tensor, "pairs"],
    ) -> tuple[
        Float[Tensor, "texts time"], Float[Tensor, "pairs size"], Float[Tensor, "pairs size"]
    ]:
        """Scores by descriptions that are drawn, and the mean and log-variance of these."""
        texts = counted_scores(model, input_ids, attention_mask, counted, every_output=True)
        with torch.autocast(texts.device.type, enabled=False):
            mean, log_var = self.encoder(*self.shown(rows))
            drawn = mean + (log_var / 2).exp() * torch.randn_like(mean)
            user = description_on_sphere(drawn).repeat(2, 1)  # of both answers
            return self.decoder(texts, user[:, None]), mean, log_var

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        """What the pairs of a batch cost, with the price of descriptions."""
        scores, mean, log_var = outputs
        distance = kl_to_standard_normal(mean, log_var).mean()
        return self.loss_of_scores(judgements_of(scores, inputs)) + self.settings.kl_coef * distance

    def users(self) -> dict[str, Float[Tensor, "size"]]:
        """The mean description of every user by the pairs to learn from."""
        return {
            user: mean_description(self.encoder, self.states[pairs])
            for user, pairs in self.pairs_of.items()
        }

    @torch.no_grad()
    def joined(
        self, texts: Float[Tensor, "texts fractions features"], rows: Sequence[JudgedRow]
    ) -> Float[Tensor, "texts fractions"]:
        """Held-out scores as the users of these rows would give them.

        Raises:
            DataError: a user has no pair to learn from.
        """
        users = self.users()
        strangers = sorted({str(row.user) for row in rows} - set(users))
        if strangers:
            raise DataError(
                f"the held-out users {', '.join(strangers[:8])} have no pair among those to learn "
                "from, by which they could be described; expected one at least: hold out less, or "
                "drop them"
            )
        device = self.decoder.score.weight.device
        described = torch.stack([users[str(row.user)] for row in rows]).to(device)
        user = description_on_sphere(described).repeat(2, 1)
        return self.decoder(texts.to(device), user[:, None]).cpu()

    def writing(
        self, reading: ContextReading
    ) -> Callable[[PreTrainedModel, Path], dict[str, float]]:
        """What puts the users into the folder of the model, and counts them.

        Args:
            reading: of the pairs that describe a user; its model by a lasting name.
        """

        def write(model: PreTrainedModel, folder: Path) -> dict[str, float]:
            users = self.users()
            write_users(self.encoder, self.decoder, users, model, folder, reading=reading)
            return {"users": float(len(users))}

        return write


def pairs_by_user(rows: Sequence[JudgedRow]) -> dict[str, Int[Tensor, "pairs"]]:
    """The numbers of the pairs of each user.

    Args:
        rows: with who prefers.

    Raises:
        DataError: a user has no second pair, by which the first could be understood.
    """
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(str(row.user), []).append(number)
    alone = [user for user, pairs in found.items() if len(pairs) < 2]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(found)} users have one pair to learn from, such as "
            f"{', '.join(alone[:8])}; expected two or more of each, so that one can be judged by "
            "the others: drop these users, or collect more of their pairs"
        )
    return {user: torch.tensor(pairs) for user, pairs in found.items()}


def drawn_others(row: int, pairs: Int[Tensor, "pairs"], count: int) -> Int[Tensor, "others"]:
    """The numbers of some other pairs of a user, by the random generator of torch.

    Args:
        row: the number of a pair.
        pairs: the numbers of all pairs of the user.
        count: at most so many.

    >>> drawn_others(3, torch.tensor([3, 7]), 4)
    tensor([7])
    """
    others = pairs[pairs != row]
    return others[torch.randperm(len(others))[:count]]
