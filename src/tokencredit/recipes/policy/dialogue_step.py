"""ArCHer: dialogues of several turns, and what each utterance of the policy was worth.

    tokencredit train-policy --config run.yaml --dialogue.environment my_game:answer

Zhou et al. 2024 (arXiv 2402.19446). A critic of whole utterances learns from a buffer, by temporal
differences; every token of an utterance is paid its advantage. Departures: (1) the policy learns
from what it has just said, theirs from fresh utterances in states of the buffer, (2) the critic is
a copy of the policy that reads state and utterance in one pass, theirs an encoder that reads them
apart, (3) the loss is clipped, and the price of KL counts.
"""

from dataclasses import dataclass, field

import torch
from accelerate.utils import AutocastKwargs

from tokencredit.batch import ResponseBatch, TokenScorer
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.policy.losses.utterances import utterance_advantages
from tokencredit.recipes.policy.demonstrations import with_demonstrations
from tokencredit.recipes.policy.dialogue_critic import (
    critic_values,
    learn_values,
    utterance_batch,
)
from tokencredit.recipes.policy.dialogue_play import drawn_utterances, play_dialogues
from tokencredit.recipes.policy.rollout import Rollout, draw_responses
from tokencredit.recipes.policy.run_state import PolicyRun


@dataclass(frozen=True)
class StepRollout:
    """What a policy wrote in a step, and who pays for it.

    Attributes:
        rollout: the responses, or the utterances of dialogues.
        token_scorer: pays their tokens in the place of the rewards; None for the rewards.
        told: more numbers for the row of metrics.
    """

    rollout: Rollout
    token_scorer: TokenScorer | None
    told: dict[str, float] = field(default_factory=dict)


def rollout_of_step(run: PolicyRun, step: int, rng: torch.Generator) -> StepRollout:
    """Responses to the prompts of a step, or dialogues that begin with these.

    Args:
        run: whose policy writes.
        step: its number.
        rng: draws how long responses may be, and what the critic learns from.
    """
    if run.dialogues is not None:
        return _dialogues(run, step, rng)
    config, pad = run.config, run.models.tokenizer.pad_token_id
    rollout = draw_responses(config, run.accelerator, run.models, run.prompts, step, rng)
    rollout = with_demonstrations(
        config, run.accelerator, run.demonstrations, rollout, step, pad=pad
    )
    return StepRollout(rollout, run.token_scorer)


def _dialogues(run: PolicyRun, step: int, rng: torch.Generator) -> StepRollout:
    """Talk, let the critic learn, and pay each utterance its advantage."""
    dialogues, settings = run.dialogues, run.config.dialogue
    assert dialogues is not None
    device, pad = run.accelerator.device, run.models.tokenizer.pad_token_id
    played = play_dialogues(run, dialogues.environment, step, rng)
    buffer = dialogues.buffer
    buffer.extend(played.utterances)
    del buffer[: max(0, len(buffer) - settings.buffer_size)]
    count = settings.critic_updates * settings.critic_batch_size
    rows = [buffer[i] for i in torch.randint(len(buffer), (count,), generator=rng).tolist()]
    fresh, _ = drawn_utterances(run, [one.state for one in rows], rng)
    pairs = zip(fresh.response_ids, fresh.response_mask, strict=True)
    said = [ids[mask].tolist() for ids, mask in pairs]
    # No cast of a weight may outlive the weight: the critic learns in here, and its slow copy takes
    # its place.
    with run.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
        losses = learn_values(dialogues, run.config, rows, said, pad=pad, device=device)
        batch = utterance_batch(played.utterances, pad=pad, device=device)
        with torch.no_grad():
            advantages = utterance_advantages(*critic_values(dialogues.critic, batch))
    cut = [not one.has_ended for one in played.utterances]

    def pay(batch: ResponseBatch) -> torch.Tensor:
        return terminal_credit(advantages, batch.response_mask)

    turns = len(played.utterances) / len(played.returns)
    mean = sum(played.returns) / len(played.returns)
    told = {"return": mean, "turns": turns, **losses}
    return StepRollout(Rollout(batch, torch.tensor(cut, device=device)), pay, told)
