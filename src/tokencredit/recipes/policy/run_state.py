"""A training of a policy: what stays as it is from step to step, and what changes."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from tokencredit.aggregation.transforms import RunningMoments
from tokencredit.batch import TokenScorer
from tokencredit.recipes.policy.checkpoints import read_state
from tokencredit.recipes.policy.demonstrations import Demonstrations
from tokencredit.recipes.policy.dialogue_critic import Dialogues
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.pretraining import PretrainingRows
from tokencredit.recipes.policy.prompts import PolicyPrompts
from tokencredit.recipes.policy.references import Reference
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.target_network import FILE as TARGET
from tokencredit.recipes.policy.target_network import TargetWeights
from tokencredit.recipes.policy.watching import History


@dataclass(frozen=True)
class PolicyRun:
    """A training with everything that stays as it is from step to step.

    Attributes:
        config: the settings.
        folder: of the run.
        accelerator: of its processes.
        models: everything that speaks during a rollout.
        model: what is trained, as Accelerate wraps or shards it.
        optimizer: likewise.
        prompts: all of them.
        prompts_digest: tells other prompts from these.
        token_scorer: pays the tokens in the place of the credit; None for the credit.
        references: what is known of the reference's responses, by the key of their prompt; what is
            drawn in a step is added.
        pretraining: texts that the policy learns besides.
        history: what was watched of the steps so far; each step adds its row.
        target: weights of the target network, which follow those of the policy; empty for
            algorithms that have none.
        demonstrations: responses of others that the policy learns from besides.
        dialogues: environment and critic of a run whose policy talks; None for single responses.
    """

    config: TrainPolicyConfig
    folder: Path
    accelerator: Accelerator
    models: PolicyModels
    model: Any
    optimizer: Any
    prompts: PolicyPrompts
    prompts_digest: str
    token_scorer: TokenScorer | None
    references: dict[str, Reference]
    pretraining: PretrainingRows
    history: History
    target: TargetWeights = field(default_factory=dict)
    demonstrations: Demonstrations = field(default_factory=Demonstrations)
    dialogues: Dialogues | None = None

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds besides the policy and its optimiser, by the name of the file."""
        own = {TARGET: dict(self.target)} if self.target else {}
        return own | (self.dialogues.tensors if self.dialogues is not None else {})


@dataclass
class RunState:
    """What changes from step to step besides the weights."""

    step: int = 0
    kl_coef: float = 0.0
    moments: dict[str, RunningMoments] = field(default_factory=dict)
    warned_of_negative_kl: bool = False
    warned_of_unscored: bool = False
    multipliers: dict[str, list[float]] = field(default_factory=dict)
    best_step: int | None = None
    best_held_out_score: float | None = None

    @classmethod
    def read(cls, checkpoint: Path | None, *, kl_coef: float) -> "RunState":
        """The state in a checkpoint, or that of a run that begins.

        Args:
            checkpoint: of the run; None for one that begins.
            kl_coef: the coefficient to begin with.
        """
        if checkpoint is None:
            return cls(kl_coef=kl_coef)
        saved = read_state(checkpoint)
        known = {one.name: saved[one.name] for one in fields(cls) if one.name in saved}
        moments = {name: RunningMoments(**one) for name, one in saved["moments"].items()}
        return cls(**{**known, "moments": moments})
