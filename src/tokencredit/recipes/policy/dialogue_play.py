"""Dialogues of a policy with an environment: a Python function that answers and rewards."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokencredit.batch import Message, Prompt, ResponseBatch, padded_rows
from tokencredit.errors import DataError
from tokencredit.models.hf_architecture import context_limit
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.recipes.policy.dialogue_buffer import Utterance
from tokencredit.recipes.policy.prompts import prompts_of_step
from tokencredit.recipes.policy.rollout import drawn_lengths
from tokencredit.recipes.policy.run_state import PolicyRun
from tokencredit.recipes.policy.setting_groups import sampling_of
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.text.hf_reading import Reading

Environment = Callable[[list[list[Message]]], Sequence[Any]]
"""From dialogues, whose last message is the policy's, to an answer and a reward for each."""


@dataclass(frozen=True)
class Played:
    """The dialogues of one step.

    Attributes:
        utterances: of the policy, those of one turn together.
        returns: sum of the rewards of each dialogue.
    """

    utterances: list[Utterance]
    returns: list[float]


def play_dialogues(run: PolicyRun, environment: Environment, step: int, rng: Any) -> Played:
    """Let the policy talk with the environment, once from each prompt of a step.

    A dialogue ends where the environment gives no answer, after as many turns as the settings
    allow, and where the policy could not read it with one more utterance.

    Args:
        run: whose policy talks.
        environment: the other side.
        step: its number.
        rng: draws how long an utterance may be.

    Raises:
        DataError: the environment does not give an answer and a finite reward for each dialogue.
    """
    config, prompts = run.config, run.prompts
    chosen = prompts_of_step(len(prompts.rows), config.batch_size, config.seed, step)
    assert prompts.asked is not None
    dialogues = [_messages(prompts.asked[i]) for i in chosen]
    states = [prompts.rows[i] for i in chosen]
    returns = [0.0] * len(states)
    active, utterances = list(range(len(states))), list[Utterance]()
    for turn in range(config.dialogue.turns):
        batch, truncated = drawn_utterances(run, [states[i] for i in active], rng)
        for i, text in zip(active, decoded_responses(run.models.tokenizer, batch), strict=True):
            dialogues[i].append({"role": "assistant", "content": text.response})
        answers = _answers(environment, [dialogues[i] for i in active])
        going_on = []
        for row, (i, (answer, reward)) in enumerate(zip(active, answers, strict=True)):
            following: list[int] = []
            if answer is not None and turn + 1 < config.dialogue.turns:
                dialogues[i].append({"role": "user", "content": answer})
                following = _read(run.models.reading, dialogues[i])
            if not _has_room(run, following):
                following = []
            said = batch.response_ids[row][batch.response_mask[row]].tolist()
            utterances.append(
                Utterance(
                    states[i], said, reward, not following, following, not bool(truncated[row])
                )
            )
            returns[i] += reward
            if following:
                states[i] = following
                going_on.append(i)
        active = going_on
        if not active:
            break
    return Played(utterances, returns)


@torch.no_grad()
def drawn_utterances(
    run: PolicyRun, states: Sequence[Sequence[int]], rng: torch.Generator
) -> tuple[ResponseBatch, Tensor]:
    """What the policy as it is says in some states, and True for what was cut off."""
    config, models = run.config, run.models
    device = run.accelerator.device
    ids, mask = padded_rows(states, fill=models.tokenizer.pad_token_id, side="left")
    lengths = drawn_lengths(config.sampling, len(states), rng)
    draw = partial(
        sampled_responses,
        prompt_ids=ids.to(device),
        prompt_mask=mask.to(device),
        sampling=sampling_of(
            config.sampling, end_ids=models.reading.turn_ends, undrawable=models.undrawable
        ),
        pad_token_id=models.tokenizer.pad_token_id,
        eos_token_id=models.reading.turn_ends,
        response_lengths=None if lengths is None else lengths.to(device),
    )
    with run.accelerator.autocast():
        return models.actor_critic.policy_alone(draw)


def _messages(asked: Prompt) -> list[Message]:
    if isinstance(asked, str):
        return [{"role": "user", "content": asked}]
    return [dict(message) for message in asked]


def _read(reading: Reading, dialogue: list[Message]) -> list[int]:
    """A dialogue as the policy reads it: by its chat template, or as one text."""
    prompt: Prompt = dialogue
    if reading.template != "chat":
        prompt = "".join(str(message["content"]) for message in dialogue)
    return reading.prompt_rows([prompt], where="the dialogue so far")[0]


def _has_room(run: PolicyRun, state: list[int]) -> bool:
    limit = context_limit(run.models.actor_critic.policy)
    return limit is None or len(state) + run.config.sampling.max_new_tokens <= limit


def _answers(
    environment: Environment, dialogues: list[list[Message]]
) -> list[tuple[str | None, float]]:
    """What the environment gives, checked."""
    found = list(environment([list(dialogue) for dialogue in dialogues]))
    if len(found) != len(dialogues):
        raise DataError(
            f"the environment gives {len(found)} answers to {len(dialogues)} dialogues; expected "
            "one to each"
        )
    answers = []
    for one in found:
        try:
            answer, reward = one
            reward = float(reward)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the environment gives {one!r:.200}; expected an answer, or None at the end of "
                "the dialogue, and a reward"
            ) from error
        if not (answer is None or isinstance(answer, str)) or not math.isfinite(reward):
            raise DataError(
                f"the environment gives {one!r:.200}; expected a text or None, and a finite number"
            )
        answers.append((answer, reward))
    return answers
