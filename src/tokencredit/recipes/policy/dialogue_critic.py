"""The critic of whole utterances: one trunk, two values of states and two of utterances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from tokencredit.batch import ResponseBatch
from tokencredit.masking import last_true_index
from tokencredit.models.heads import float32_outputs
from tokencredit.models.hf_loading import disable_dropout, load_model
from tokencredit.models.hf_shared_beginnings import pass_arguments
from tokencredit.policy.losses.utterances import utterance_q_losses, utterance_v_losses
from tokencredit.recipes.policy.checkpoints import restore_optimizer
from tokencredit.recipes.policy.dialogue_buffer import FILE as BUFFER
from tokencredit.recipes.policy.dialogue_buffer import Utterance, packed, unpacked
from tokencredit.recipes.policy.metrics import require_finite
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import whole_moments
from tokencredit.recipes.policy.target_network import (
    FILE as TARGET,
)
from tokencredit.recipes.policy.target_network import (
    TargetWeights,
    follow,
    in_place,
    opened_target,
)
from tokencredit.scorers.functions import named_function

CRITIC, MOMENTS = "utterance-critic.safetensors", "utterance-critic-optimizer.safetensors"
"""Where the critic and its optimiser stand in a checkpoint."""

Values = tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch 2"]]
"""Values of utterances and of the states that they are said in, by both critics."""


@dataclass(frozen=True)
class Dialogues:
    """What a run with an environment has besides.

    Attributes:
        environment: the other side of every dialogue.
        critic: of whole utterances; all its weights are trained.
        optimizer: of the critic.
        target: the slow copy of the critic.
        buffer: utterances of this policy and earlier ones, the newest last.
    """

    environment: Any
    critic: Any
    optimizer: torch.optim.Optimizer
    target: TargetWeights
    buffer: list[Utterance]

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of it, by the name of the file."""
        weights = {name: value.detach() for name, value in self.critic.state_dict().items()}
        return {
            CRITIC: weights,
            MOMENTS: whole_moments(self.critic, self.optimizer, keep=True),
            TARGET: dict(self.target),
            BUFFER: packed(self.buffer),
        }


def opened_dialogues(
    config: TrainPolicyConfig, checkpoint: Path | None, device: torch.device
) -> Dialogues | None:
    """Environment, critic and buffer of a run, as its last checkpoint has them; None without one.

    The critic begins as a copy of the policy with a fresh head.

    Args:
        config: the settings.
        checkpoint: of the run; None for one that begins.
        device: where the critic is called.
    """
    settings = config.dialogue
    if settings.environment is None:
        return None
    torch.manual_seed(config.seed)  # of the head, whose two halves must differ
    critic = load_model(
        AutoModelForSequenceClassification,
        config.policy,
        num_labels=4,
        new_head=True,
        trust_remote_code=config.loading.trust_remote_code,
        attn_implementation=config.loading.attn_implementation,
        dtype="float32",
        device=str(device),
    )
    disable_dropout(critic)
    if checkpoint is not None:
        critic.load_state_dict(load_file(checkpoint / CRITIC, device=str(device)))
    optimizer = torch.optim.AdamW(
        critic.parameters(), lr=settings.critic_learning_rate, weight_decay=0.0
    )
    buffer = []
    if checkpoint is not None:
        restore_optimizer(critic, optimizer, checkpoint, file=MOMENTS)
        buffer = unpacked(load_file(checkpoint / BUFFER))
    return Dialogues(
        named_function(settings.environment),
        critic,
        optimizer,
        opened_target(critic, checkpoint),
        buffer,
    )


def utterance_batch(
    rows: Sequence[Utterance], *, pad: int, device: torch.device, said: bool = True
) -> ResponseBatch:
    """Utterances after the states that they are said in, or the states after them alone."""
    states = [one.state if said else one.following or [pad] for one in rows]
    texts = [one.said if said else [pad] for one in rows]
    return ResponseBatch.of_rows(states, texts, pad_token_id=pad, device=device)


def critic_values(critic: Any, batch: ResponseBatch) -> Values:
    """Values of utterances at their last token, and of states at their last.

    A causal trunk reads both in one pass.

    Args:
        critic: a sequence-classification model with four outputs.
        batch: utterances after their states.
    """
    columns = batch.response_ids.shape[1] + 1
    asked = pass_arguments(
        critic, batch.input_ids, batch.attention_mask, columns=columns, once=False
    )
    hidden = critic.base_model(**asked).last_hidden_state[:, -columns:]
    last = last_true_index(batch.response_mask) + 1
    rows = torch.arange(len(batch), device=hidden.device)
    read = torch.stack([hidden[rows, last], hidden[:, 0]], dim=1)
    outputs = float32_outputs(critic.score, read)
    return outputs[:, 0, :2], outputs[:, 1, 2:]


def learn_values(
    dialogues: Dialogues,
    config: TrainPolicyConfig,
    rows: Sequence[Utterance],
    fresh: Sequence[Sequence[int]],
    *,
    pad: int,
    device: torch.device,
) -> dict[str, float]:
    """Train the critic on utterances of the buffer, and let its slow copy follow.

    Args:
        dialogues: whose critic learns.
        config: the settings.
        rows: drawn from the buffer.
        fresh: what the policy as it is has said in the state of each.
        pad: fills shorter rows.
        device: where the critic is called.

    Returns:
        Mean losses.

    Raises:
        NumericError: a loss is NaN or infinite.
    """
    settings, critic, totals = config.dialogue, dialogues.critic, [0.0, 0.0]
    parts = list(_parts(rows, fresh, settings.critic_batch_size))
    for part, said in parts:
        batch = utterance_batch(part, pad=pad, device=device)
        pairs = zip(part, said, strict=True)
        now = [Utterance(one.state, list(ids), 0.0, True, []) for one, ids in pairs]
        with torch.no_grad(), in_place(dialogues.target, critic):
            after = utterance_batch(part, pad=pad, device=device, said=False)
            _, next_values = critic_values(critic, after)
            fresh_values, _ = critic_values(critic, utterance_batch(now, pad=pad, device=device))
        q_values, values = critic_values(critic, batch)
        q_loss = utterance_q_losses(
            q_values,
            torch.tensor([one.reward for one in part], device=device),
            next_values,
            torch.tensor([one.is_last for one in part], device=device),
            discount=settings.discount,
        ).mean()
        v_loss = utterance_v_losses(values, fresh_values).mean()
        require_finite("the loss of the critic of utterances", q_loss + v_loss)
        torch.autograd.backward(q_loss + v_loss)
        nn.utils.clip_grad_norm_(critic.parameters(), config.optimizer.max_grad_norm)
        dialogues.optimizer.step()
        dialogues.optimizer.zero_grad()
        follow(dialogues.target, critic, settings.target_rate)
        for place, loss in enumerate((q_loss, v_loss)):
            totals[place] += loss.item() / len(parts)
    return {"utterance_q_loss": totals[0], "utterance_v_loss": totals[1]}


def _parts(
    rows: Sequence[Utterance], fresh: Sequence[Sequence[int]], size: int
) -> Iterator[tuple[Sequence[Utterance], Sequence[Sequence[int]]]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size], fresh[first : first + size]
