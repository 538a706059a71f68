"""Responses of others that a policy learns from beside its own, scored as its own are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from tokencredit.batch import Prompt, ResponseBatch
from tokencredit.errors import DataError
from tokencredit.preference.hf_datasets import load_prompted_responses
from tokencredit.recipes.policy.prompts import prompts_of_step
from tokencredit.recipes.policy.rollout import Rollout
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.text.hf_reading import Reading


@dataclass(frozen=True)
class Demonstrations:
    """Prompts with responses, as the policy reads them.

    Attributes:
        prompts: token ids of each.
        responses: token ids of each, with what ends it.
        asked: the prompts themselves.
        ended: False for each response that was cut off.
    """

    prompts: Sequence[Sequence[int]] = ()
    responses: Sequence[Sequence[int]] = ()
    asked: Sequence[Prompt] = ()
    ended: Sequence[bool] = ()


def demonstrations_of(config: TrainPolicyConfig, reading: Reading) -> Demonstrations:
    """The responses that the settings name, as long as the policy's may be.

    Raises:
        DataError: there are none, one is empty, or shorter than the policy's may be.
    """
    settings, sampling = config.soft_q, config.sampling
    if settings.data is None:
        return Demonstrations()
    found = load_prompted_responses(
        settings.data,
        split=settings.split,
        prompt_column=settings.prompt,
        response_column=settings.response,
        dataset=config.dataset,
    )
    asked = [one.prompt for one in found]
    rows = reading.rows(asked, [one.response for one in found], ended=True)
    prompts = reading.prompt_rows(asked, where=settings.data)
    ends_itself = sampling.response_lengths == "eos"
    responses, ended = [], []
    for number, (row, prompt, one) in enumerate(zip(rows, prompts, found, strict=True)):
        ids = row.input_ids[len(prompt) :]
        if row.input_ids[: len(prompt)] != prompt:  # a token that reaches over the border
            ids = reading.tokenizer(one.response, add_special_tokens=False)["input_ids"]
        ids = _up_to_an_end(ids, reading.turn_ends)
        closed = bool(ids) and ids[-1] in reading.turn_ends
        if closed and not (ends_itself and one.ended):
            ids, closed = ids[:-1], False
        elif not closed and ends_itself and one.ended:
            closing = [token for token in row.input_ids[row.start :] if token in reading.turn_ends]
            ids, closed = [*ids, (*closing, reading.turn_ends[0])[0]], True
        if len(ids) < max(1, sampling.min_new_tokens):
            raise DataError(
                f"{settings.data}, row {number}: a response of {len(ids)} tokens; expected at "
                f"least {max(1, sampling.min_new_tokens)} (sampling.min_new_tokens), as the policy "
                "writes"
            )
        responses.append(ids[: sampling.max_new_tokens])
        ended.append(closed and len(ids) <= sampling.max_new_tokens)
    return Demonstrations(prompts, responses, asked, ended)


def _up_to_an_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Token ids up to the first that ends a turn, and all of them where none does."""
    place = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: place + 1]


def with_demonstrations(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    known: Demonstrations,
    rollout: Rollout,
    step: int,
    *,
    pad: int,
) -> Rollout:
    """A rollout with the responses of others of this step after those that were drawn.

    Args:
        config: the settings.
        accelerator: of the processes, each of which has as many.
        known: all responses of others; none leave the rollout as it is.
        rollout: of this process.
        step: its number.
        pad: fills shorter rows.
    """
    if not known.responses:
        return rollout
    size = config.soft_q.data_batch_size
    chosen = prompts_of_step(len(known.responses), size, config.seed, step)
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    drawn = rollout.batch
    pairs = [
        (one.prompt_ids[0][one.prompt_mask[0]].tolist(), one.response_ids[0].tolist())
        for one in (drawn[row : row + 1] for row in range(len(drawn)))
    ]
    prompts, responses = zip(
        *pairs, *((known.prompts[i], known.responses[i]) for i in mine), strict=True
    )
    masks = [*drawn.response_mask.tolist(), *([True] * len(known.responses[i]) for i in mine)]
    device = drawn.response_ids.device
    cut = torch.tensor([not known.ended[i] for i in mine], device=device)
    return replace(
        rollout,
        batch=ResponseBatch.of_rows(
            prompts, responses, masks=masks, pad_token_id=pad, device=device
        ),
        truncated=torch.cat([rollout.truncated, cut]),
        asked=None if rollout.asked is None else [*rollout.asked, *(known.asked[i] for i in mine)],
        group_ids=None,
    )
