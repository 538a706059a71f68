"""Training of a head for each group of users, who are sorted into groups while the heads learn.

Follows the expectation-maximisation of Chakraborty et al. 2024 (arXiv 2402.08925, MaxMin-RLHF):
users begin in groups by their number, and now and then each is put into the group under whose head
their preferences are likeliest. Departures: (1) heads stand on one trunk, where theirs are models
of their own; (2) a head goes on from where it is after users were sorted anew, in one training;
(3) log-likelihoods are added up, where theirs are quotients of exponentials; (4) memberships may be
probabilities, and pairs may be sorted one by one.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from tokencredit.errors import TokenCreditWarning
from tokencredit.recipes.reward_model.examples import JudgedRow, judgements_of
from tokencredit.recipes.reward_model.head_settings import GroupSettings
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.recipes.training.trainer import LossTrainer
from tokencredit.reward_model.losses.mixtures import memberships
from tokencredit.reward_model.objectives import Judgements

ROW = "row"
"""Column of a batch: the number of each row among all."""


class UserGroups:
    """Who belongs to which group, and what pairs cost the heads.

    Args:
        settings: of the groups.
        rows: pairs to learn from.
        pair_losses: of one head's scores, pair by pair.
    """

    def __init__(
        self,
        settings: GroupSettings,
        rows: Sequence[JudgedRow],
        pair_losses: Callable[[Judgements], Float[Tensor, "pairs"]],
    ) -> None:
        self.settings, self.pair_losses = settings, pair_losses
        named = [str(row.user) for row in rows] if settings.of == "users" else range(len(rows))
        self.numbers = {name: number for number, name in enumerate(dict.fromkeys(named))}
        self.units = torch.tensor([self.numbers[name] for name in named])
        first = torch.arange(len(self.numbers)) % settings.count
        self.memberships = torch.nn.functional.one_hot(first, settings.count).float()

    @property
    def shares(self) -> Float[Tensor, "groups"]:
        """How much of all users each group has; never quite nothing, so that it may come back."""
        counts = self.memberships.sum(0) + 1e-3
        return counts / counts.sum()

    def columns(self, _rows: Sequence[JudgedRow], indices: Sequence[int]) -> dict[str, Tensor]:
        """The numbers of the rows of a batch."""
        return {ROW: torch.tensor(indices)}

    def losses(
        self, scores: Float[Tensor, "texts time groups"], inputs: dict[str, Tensor]
    ) -> Float[Tensor, "pairs groups"]:
        """What each pair costs each head, by its strength."""
        losses = [self.pair_losses(judgements_of(own, inputs)) for own in scores.unbind(-1)]
        return inputs["strengths"].float()[:, None] * torch.stack(losses, dim=-1)

    def loss(
        self, scores: Float[Tensor, "texts time groups"], inputs: dict[str, Tensor]
    ) -> Float[Tensor, ""]:
        """The mean over pairs of what each costs the heads that its user belongs to."""
        belongs = self.memberships[self.units[inputs[ROW].cpu()]].to(scores.device)
        return (belongs * self.losses(scores, inputs)).sum(-1).mean()

    def sort(self, trainer: LossTrainer) -> None:
        """Put everybody into groups anew, by what their pairs cost the heads now: the E-step."""
        found = torch.zeros(len(self.units), self.settings.count)
        size = trainer.args.per_device_train_batch_size
        for start in range(0, len(self.units), size):
            some = range(start, min(start + size, len(self.units)))
            batch = trainer.data_collator([{"row": row, "prefix": 0} for row in some])
            inputs = {name: one.to(trainer.args.device) for name, one in batch.items()}
            read = {name: inputs[name] for name in inputs if name not in trainer.unread}
            with torch.no_grad():
                found[list(some)] = self.losses(trainer.model(**read), inputs).cpu()
        self.memberships = memberships(
            found, self.units, self.shares, hard=self.settings.membership == "hard"
        )

    def joined(
        self, scores: Float[Tensor, "texts fractions groups"], rows: Sequence[JudgedRow]
    ) -> Float[Tensor, "texts fractions"]:
        """Held-out scores by the groups of who prefers; of strangers by the size of the groups."""
        weights = torch.stack(
            [
                self.memberships[self.numbers[row.user]]
                if row.user in self.numbers
                else self.shares
                for row in rows
            ]
        ).repeat(len(scores) // len(rows), 1)
        return (scores * weights[:, None]).sum(-1)

    def write(self, model: PreTrainedModel, folder: Path) -> dict[str, float]:
        """Put `groups.json` into the folder: the size of each group, and who belongs to it."""
        names = [str(model.config.id2label[at]) for at in range(self.settings.count)]
        shares = (self.memberships.mean(0)).tolist()
        empty = [name for name, share in zip(names, shares, strict=True) if share < 1e-3]
        if empty:
            warnings.warn(
                f"nobody belongs to {', '.join(empty)}, whose head learnt from next to nothing; "
                "expected users of different tastes: ask for fewer groups, or another seed",
                TokenCreditWarning,
                stacklevel=2,
            )
        said: dict[str, Any] = {"shares": dict(zip(names, shares, strict=True))}
        if self.settings.of == "users":
            pairs = Counter(self.units.tolist())
            said["users"] = {
                user: {
                    "group": names[int(self.memberships[number].argmax())],
                    "probability": float(self.memberships[number].max()),
                    "pairs": pairs[number],
                }
                for user, number in self.numbers.items()
            }
        write_atomically(folder / "groups.json", json.dumps(said, indent=2) + "\n")
        return {f"group_share/{name}": share for name, share in zip(names, shares, strict=True)}


class GroupTrainer(LossTrainer):
    """The Trainer of heads for groups: users are sorted anew at even distances.

    Args:
        groups: of the run.
    """

    def __init__(self, *arguments: Any, groups: UserGroups, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.groups = groups
        self.add_callback(_Rounds(self))

    def remembered(self) -> dict[str, Any]:
        """Who belongs to which group."""
        return {"memberships": self.groups.memberships.tolist()}

    def recall(self, remembered: Mapping[str, Any]) -> None:
        """Take back who belongs to which group."""
        self.groups.memberships = torch.tensor(remembered["memberships"])


class _Rounds(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: GroupTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        rounds = self.trainer.groups.settings.rounds
        at = {math.ceil(state.max_steps * number / (rounds + 1)) for number in range(1, rounds + 1)}
        if state.global_step in at:
            self.trainer.groups.sort(self.trainer)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # and was not asked to stop before
            self.trainer.groups.sort(self.trainer)
